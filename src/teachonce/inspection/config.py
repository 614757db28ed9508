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
    check_ranges,
    flag,
    only_with,
    require,
)

_Seconds = Annotated[float, Range(0, 86_400, "more than 0 seconds, at most 86400", excludes_least=True)]


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what is in a folder of records, a store or a run."""

    path: InData[Positional[Path]]
    """Folder of records, a store or a run."""
    split: InData[str | None] = None
    """Records: only this split. Default: all that are there."""
    json: InOutput[bool] = False
    """Print JSON."""
    html: InOutput[bool] = False
    """Store: write a page to look at in a browser, inspect.html."""
    data: InData[Path | None] = None
    """The records that the store was extracted from, for the pictures of --html."""
    trust: InStore[bool] = False
    """Store: do not compare blocks with their hashes as they are first read."""
    out: InOutput[Path | None] = None
    """File for the page of --html. Default: inspect.html in the store."""
    overwrite: InOutput[bool] = False
    """Replace the file of --out where there is one."""

    def __post_init__(self) -> None:
        require(not (self.html and self.json), "--html", "with --json", "one of the two")
        for name in ("data", "out"):
            value = getattr(self, name)
            require(self.html or value is None, flag(name), value, "--html with it, it is for the page alone")
        require(self.out is not None or not self.overwrite, "--overwrite", "without --out", "--out FILE with it")


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """How far the work on a store or a run is: what is done and missing, how fast, who is alive, the last error."""

    path: InData[Positional[Path]]
    """Folder of a store or a run, on any machine that reads it."""
    watch: InRunning[bool] = False
    """Look again and again, until the work is complete; Ctrl-C stops the watching alone."""
    watch_seconds: InRunning[_Seconds] = only_with(5.0, Condition("--watch", lambda config: config.watch))
    """Seconds between two looks."""
    json: InOutput[bool] = False
    """Print JSON; with --watch a line for each look."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Compare two runs, or two stores: settings, results and environment, where they differ."""

    first: InData[Positional[Path]]
    """Folder of a run or a store."""
    second: InData[Positional[Path]]
    """Folder of another of the same kind."""
    json: InOutput[bool] = False
    """Print JSON."""
