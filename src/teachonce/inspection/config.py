"""The options of ``inspect`` and ``diff``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from teachonce.options import (
    Condition,
    InData,
    InOutput,
    InRunning,
    InStore,
    Positional,
    Range,
    check_applicable,
    check_values,
    flag,
    only_with,
    require,
)
from teachonce.records.options import RecordOptions

_Seconds = Annotated[float, Range(0, 86_400, "more than 0 seconds, at most 86400", excludes_least=True)]


@dataclass(frozen=True, kw_only=True)
class InspectConfig(RecordOptions):
    """Summarize a folder of records, a store or a run."""

    path: InData[Positional[Path]]
    """Folder of records, a store or a run."""
    split: InData[str | None] = None
    """Records: only this split. Default: all splits."""
    json: InOutput[bool] = False
    """Print JSON."""
    html: InOutput[bool] = False
    """Store: write a self-contained HTML page, inspect.html."""
    data: InData[Path | None] = None
    """The records from which the store was extracted, for the images on the page of --html."""
    trust: InStore[bool] = False
    """Skip the comparison of the store's blocks with their hashes on first read."""
    out: InOutput[Path | None] = None
    """File to write the page of --html to. Default: inspect.html in the store."""
    overwrite: InOutput[bool] = False
    """Replace an existing --out file."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)
        require(not (self.html and self.json), "--html", "with --json", "one of the two")
        for name in ("data", "out"):
            value = getattr(self, name)
            require(self.html or value is None, flag(name), value, "--html, it is only used for the page")
        require(self.out is not None or not self.overwrite, "--overwrite", "without --out", "--out FILE")


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Show the progress of a store or a run: what is done and missing, throughput, live workers, last error."""

    path: InData[Positional[Path]]
    """Folder of a store or a run; any machine that can read it will do."""
    watch: InRunning[bool] = False
    """Refresh until the work is complete; Ctrl-C ends only the watching, not the work."""
    watch_seconds: InRunning[_Seconds] = only_with(5.0, Condition("--watch", lambda config: config.watch))
    """Seconds between refreshes."""
    json: InOutput[bool] = False
    """Print JSON; with --watch one line per refresh."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Show where two runs, or two stores, differ: settings, results and environment."""

    first: InData[Positional[Path]]
    """Folder of a run or a store."""
    second: InData[Positional[Path]]
    """Folder of another run or store, of the same kind."""
    json: InOutput[bool] = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_values(self)
