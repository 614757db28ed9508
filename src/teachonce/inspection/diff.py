"""``teachonce diff A B``: in what two runs, or two stores, differ: settings, weights, results and environment.

Settings are everything that the numbers depend on, as config.json and plan.json have it; of data and stores also what
they are (hashes), not only where they are stored. Results are shown whether or not they differ, but for times, which no
two runs share; of weights it is said whether they are equal. Nothing here is judged:
which difference of a setting made which of a result is for the reader, and for several seeds (``teachonce ablate``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teachonce.errors import ConfigError
from teachonce.inspection.config import DiffConfig
from teachonce.runs.metrics import TIME_COLUMNS
from teachonce.runs.run import Run, holds_run
from teachonce.storage.files import open_storage, read_json
from teachonce.store.plan_files import CONFIG_NAME, holds_store
from teachonce.store.store import Store
from teachonce.terminal import as_text

_ENVIRONMENT = frozenset({"device", "devices", "num_nodes", "num_workers", "in_memory", "world_size", "versions"})
"""Entries of a run's config.json that say where it was computed."""
_WHERE = frozenset({"out"})
"""Entries that differ between any two."""
_OPTIONS = "options."
MAX_CHARACTERS = 48
"""Of a value in the table; JSON has all of it."""
Values = Mapping[str, Any]
"""By name; "a.b" is b of the object a."""


@dataclass(frozen=True)
class Described:
    """What there is to compare."""

    path: Path
    kind: Literal["run", "store"]
    settings: Values
    results: Values
    environment: Values
    has_options: bool = True
    """Whether the options of the call that made a store are among its settings, each as options.NAME."""


def diff(config: DiffConfig) -> str:
    """The differences as text or JSON; raises ConfigError unless both are runs or both stores, and what these raise."""
    first, second = _describe(config.first), _describe(config.second)
    if first.kind != second.kind:
        raise ConfigError(f"{first.path} is a {first.kind}, {second.path} a {second.kind}: expected two of one kind")
    settings = _differences(first.settings, second.settings)
    weights = [Run(one.path).hash_weights() for one in (first, second) if one.kind == "run"]
    notes = []
    if first.has_options != second.has_options:
        lacking = "B" if first.has_options else "A"
        notes = [f"{lacking} has no {CONFIG_NAME}: options are not compared"]
        settings = {name: both for name, both in settings.items() if not name.startswith(_OPTIONS)}
    results = {name: (first.results.get(name), second.results.get(name)) for name in [*first.results, *second.results]}
    environment = _differences(first.environment, second.environment)
    if config.json:
        found: dict[str, Any] = {"first": str(first.path), "second": str(second.path), "kind": first.kind}
        if weights:
            found["weights"] = dict(zip(("first", "second"), weights, strict=True))
        return json.dumps(
            found | {"settings": settings, "results": results, "environment": environment, "notes": notes}, indent=2
        )
    return "\n\n".join(
        [
            as_text([f"{first.kind}s: A is {first.path}, B is {second.path}", *notes]),
            _table("settings", settings),
            *([_compare_weights(*weights)] if weights else []),
            _table("results", results),
            _table("environment", environment),
        ]
    )


def _describe(path: Path) -> Described:
    if holds_store(path):
        return _describe_store(Store(path))
    if holds_run(path):
        return _describe_run(Run(path))
    raise ConfigError(f"{path}: is neither a run nor a store; expected the folder of one")


def _describe_run(run: Run) -> Described:
    settings = {name: value for name, value in run.config.items() if name not in _ENVIRONMENT | _WHERE}
    environment = {name: value for name, value in run.config.items() if name in _ENVIRONMENT}
    result = run.result
    if result is None:
        rows = run.metrics
        result = {"epochs": rows[-1]["epoch"] if rows else 0, "finished": False}
    # What is among the settings too.
    left_out = {*run.config, *TIME_COLUMNS} - {"epochs"}
    results = {name: value for name, value in result.items() if name not in left_out}
    return Described(run.path, "run", _flatten(settings), _flatten(results), _flatten(environment))


def _compare_weights(first: str | None, second: str | None) -> str:
    lacking = [name for name, one in (("A", first), ("B", second)) if one is None]
    if lacking:
        return f"weights: {' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} none yet"
    return "weights: " + ("equal, bit for bit" if first == second else "different")


def _describe_store(store: Store) -> Described:
    plan = store.plan.to_json()
    settings = {name: value for name, value in plan.items() if name not in {"shards", "view_groups"}}
    has_options = open_storage(store.path).has(CONFIG_NAME)
    if has_options:
        settings["options"] = {
            name: value for name, value in read_json(store.path / CONFIG_NAME).items() if name not in _WHERE
        }
    hits = [
        store.read_hits(shard, group) for group in store.plan.view_groups for shard in range(len(store.plan.shards))
    ]
    num_rows = sum(map(store.count_labeled, range(len(store.plan.shards)))) * store.num_views
    # A mixed view has no single label.
    is_judged = store.policy.mix is None and None not in hits and num_rows > 0
    results = {
        "records": store.num_records,
        "shards": len(store.plan.shards),
        "views": store.num_views,
        "bytes": store.num_bytes(),
        "top1": sum(sum(found or []) for found in hits) / num_rows if is_judged else None,
    }
    devices = sorted({str(made["device"]) for made in store.made_by if "device" in made})
    environment = {"versions": store.versions, "device": " and ".join(devices) or None}
    return Described(store.path, "store", _flatten(settings), results, _flatten(environment), has_options=has_options)


def _flatten(values: Values, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _differences(first: Values, second: Values) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _table(title: str, rows: Mapping[str, tuple[Any, Any]]) -> str:
    if not rows:
        return f"{title}: the same"
    shown = [(name, _brief(first), _brief(second), _change(first, second)) for name, (first, second) in rows.items()]
    widths = [max(len(row[column]) for row in [*shown, ("", "A", "B", "")]) for column in range(3)]
    lines = [("", "A", "B", ""), *shown]
    return as_text(
        [f"{title}:"]
        + [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d}".rstrip() for a, b, c, d in lines]
    )


def _brief(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."


def _change(first: Any, second: Any) -> str:
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (first, second))
    if not is_number or first == second:
        return ""
    return f"{second - first:+,}" if isinstance(second - first, int) else f"{second - first:+.4g}"
