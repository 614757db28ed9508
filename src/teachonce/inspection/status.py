"""``teachonce status``: the progress of a store or a run, its workers, and the last error.

What is done is what is there: a unit whose files are all under their names, an epoch in metrics.csv, result.json.
Heartbeats (``engine.heartbeat``) add who works, how fast, and errors; without any the rest is as true.

**Whether a worker is alive** is checked by its process where it runs on this machine. Of another machine a heartbeat's
counter shows, while it is being watched: it rose during the last ``SILENT_BEATS`` beats by the clock that is here, or
it did not. A single reading has only the worker's own clock: within ``SILENT_BEATS`` beats of the one here it is taken
for alive, else nothing is known, as the worker may be dead or its clock wrong. Times of the storage's files are not
used: clocks of storages differ too. ``judged_by`` says which of these it was.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teachonce.engine.heartbeat import Beat, read_heartbeats
from teachonce.engine.progress import LINE_SECONDS, format_rate, format_seconds
from teachonce.errors import ConfigError
from teachonce.inspection.config import StatusConfig
from teachonce.runs.run import Run, holds_run
from teachonce.storage.files import open_storage
from teachonce.storage.writers import is_dead, is_of_this_machine
from teachonce.store.legacy import is_legacy
from teachonce.store.manifests import holds_first_views, is_complete, missing_files, missing_parts, visible_views
from teachonce.store.plan_files import OTHERS_NOT_HERE, holds_store, read_plan, resuming_command
from teachonce.terminal import as_text, one_line, plural, print_text

SILENT_BEATS = 3
"""Beats without which a worker is not taken for alive."""
WORKERS_SHOWN = 20
PART_SECONDS = 600.0
"""How long the first views alone may be there, and nobody at work, until a watch ends: before its first heartbeat an
extraction that adds views plans them, loads the teacher and asks the gate, and a copy has no heartbeat."""

Summary = dict[str, Any]


def status(config: StatusConfig) -> str:
    """The text, or JSON, to print; with ``watch`` of the last refresh, when the work is complete.

    Raises ConfigError for a folder that is neither a store nor a run.
    """
    storage = open_storage(config.path)
    # A web server lists nothing: there a store or a run is known by its files alone.
    if storage.can_list and not storage.is_folder():
        raise ConfigError(f"{config.path}: no such folder; expected a store or a run")
    if not holds_store(config.path) and not holds_run(config.path):
        raise ConfigError(f"{config.path}: is neither a store nor a run; expected what extract or train writes")
    look = Look(config.path)
    if config.watch:
        return _watch(look, config)
    return json.dumps(look()) if config.json else render_status(look())


class Look:
    """Reads the state of a store or a run repeatedly; it remembers when each worker's counter last rose."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counters: dict[str, tuple[int, float, bool]] = {}
        """By worker: the counter, when this value was first seen here, and whether another one was seen before."""

    def __call__(self) -> Summary:
        """What there is to say now, as JSON values."""
        beats = read_heartbeats(self.path)
        workers = [self._describe_worker(writer, beat) for writer, beat in beats.items()]
        summarize = _summarize_store if holds_store(self.path) else _summarize_run
        return summarize(self.path, sorted(workers, key=lambda item: (item["part"], item["host"], item["pid"])))

    def _describe_worker(self, writer: str, beat: Beat) -> Summary:
        alive, judged_by = self._judge(writer, beat)
        return dataclasses.asdict(beat) | {
            "alive": alive,
            "judged_by": judged_by,
            "age_seconds": round(time.time() - beat.written, 1),
        }

    def _judge(self, writer: str, beat: Beat) -> tuple[bool | None, str]:
        """Whether a worker is alive (None: unknown), and by what that was judged; the module says how."""
        if beat.state != "running":
            return False, "state"
        if is_of_this_machine(writer):
            return not is_dead(writer, time.time()), "process"
        limit = SILENT_BEATS * beat.beat_seconds
        now = time.monotonic()
        counter, since, has_risen = self._counters.get(writer, (beat.beat, now, False))
        if counter != beat.beat:
            since, has_risen = now, True
        self._counters[writer] = beat.beat, since, has_risen
        if now - since > limit:
            return False, "counter"
        if has_risen:
            return True, "counter"
        return (True if abs(time.time() - beat.written) <= limit else None), "clock"


def _summarize_store(path: Path, workers: list[Summary]) -> Summary:
    plan = read_plan(path)
    missing = missing_parts(path, plan)
    num_views = visible_views(path)
    is_done = num_views >= plan.num_views if is_legacy(path) else is_complete(path, plan)
    sizes = [num_records for _, num_records in plan.shards]
    groups = [
        {
            "views": list(group),
            "units_done": len(sizes) - sum(1 for _, other in missing if other == group),
            "units": len(sizes),
            "is_complete": num_views > group[1],
        }
        for group in plan.view_groups
    ]
    left = sum(sizes[shard] * (last - first + 1) for shard, (first, last) in missing)
    rate = _sum_rates(workers)
    return {
        "kind": "store",
        "path": str(path),
        "is_complete": is_done,
        # A worker that began none of their files yet, or died before, has a heartbeat.
        "is_part": not is_done and not workers and holds_first_views(path, plan, missing_files(path, plan)),
        "resuming_command": resuming_command(path, plan),
        "num_records": sum(sizes),
        "num_views": num_views,
        "num_views_planned": plan.num_views,
        "units_done": len(sizes) * len(groups) - len(missing),
        "units_missing": len(missing),
        "groups": groups,
        "views_done": sum(sizes) * plan.num_views - left,
        "views_missing": left,
        "views_per_second": rate,
        "records_per_second": None if rate is None else rate / plan.num_views,
        "seconds_left": None if rate is None or not left else left / rate,
        "workers": workers,
        "last_error": _last_error(workers),
    }


def _summarize_run(path: Path, workers: list[Summary]) -> Summary:
    run = Run(path)
    rows, result = run.metrics, run.result
    at_work = next((worker for worker in workers if worker["alive"]), workers[-1] if workers else None)
    details = {} if at_work is None else at_work["details"]
    rate = None if result is not None else _sum_rates(workers)
    left = None if at_work is None or at_work["total"] is None else at_work["total"] - at_work["done"]
    return {
        "kind": "run",
        "path": str(path),
        "is_complete": result is not None,
        "is_part": False,
        "resuming_command": "the same train command",
        "student": run.student,
        "epochs_done": len(rows),
        "epochs": run.setting("epochs", int),
        # An epoch ends between two heartbeats.
        "step": max(details.get("step", 0), rows[-1]["step"] if rows else 0),
        "images_per_second": rate,
        "seconds_left": None if rate is None or not left else left / rate,
        "last_epoch": rows[-1] if rows else None,
        "result": result,
        "workers": workers,
        "last_error": _last_error(workers),
    }


def _sum_rates(workers: list[Summary]) -> float | None:
    rates = [worker["per_second"] for worker in workers if worker["alive"] and worker["per_second"]]
    return sum(rates) if rates else None


def _last_error(workers: list[Summary]) -> Summary | None:
    """The error of the worker that wrote last, by the workers' own clocks."""
    failed = [worker for worker in workers if worker["last_error"] is not None]
    if not failed:
        return None
    last = max(failed, key=lambda worker: worker["written"])
    return {name: last[name] for name in ("host", "pid", "part", "written")} | {"error": last["last_error"]}


def render_status(summary: Summary) -> str:
    """A state as text."""
    lines = [render_line(summary)]
    if summary["kind"] == "store":
        lines.append(f"  views      {_describe_groups(summary)}")
    elif summary["last_epoch"] is not None:
        row = summary["last_epoch"]
        names = ("train_loss", "train_top1", "validation_loss", "validation_top1", "images_per_second")
        figures = [f"{name} {row[name]:.4g}" for name in names if row[name] is not None]
        lines.append(f"  epoch {row['epoch']}    {', '.join(figures)}")
    workers = summary["workers"]
    if not _is_at_rest(summary):
        lines.append(f"  workers    {_count_workers(workers)}")
    shown = sorted(workers, key=lambda worker: (not worker["alive"], -worker["written"]))[:WORKERS_SHOWN]
    lines += [f"    {_describe_worker(worker)}" for worker in shown]
    if len(workers) > len(shown):
        lines.append(f"    ... {len(workers) - len(shown)} more (--json shows all)")
    if summary["last_error"] is not None:
        error = summary["last_error"]
        lines.append(f"  last error {error['host']}, process {error['pid']}: {error['error']}")
    if not _is_at_rest(summary) and not any(worker["alive"] is not False for worker in workers):
        lines.append(f"  no worker is active: run {summary['resuming_command']} to resume")
    return as_text(lines)


def render_line(summary: Summary) -> str:
    """A state as one line."""
    parts = []
    if summary["kind"] == "store":
        done, missing = summary["units_done"], summary["units_missing"]
        parts.append(f"{done:,} of {plural(done + missing, 'unit')} done, {missing:,} missing")
        rate = summary["views_per_second"]
        if rate is not None:
            records = format_rate(summary["records_per_second"])
            parts.append(f"{format_rate(rate).removesuffix('/s')} views/s ({records.removesuffix('/s')} records/s)")
    else:
        parts.append(f"{summary['epochs_done']} of {plural(summary['epochs'], 'epoch')} done, step {summary['step']:,}")
        if summary["images_per_second"] is not None:
            parts.append(f"{format_rate(summary['images_per_second']).removesuffix('/s')} images/s")
    if summary["seconds_left"] is not None:
        parts.append(f"{format_seconds(summary['seconds_left'])} left")
    if summary["is_complete"]:
        parts.append("complete")
    elif summary["is_part"]:
        parts.append("not begun here")
    else:
        num_alive = sum(1 for worker in summary["workers"] if worker["alive"])
        parts.append(f"{plural(num_alive, 'worker')} alive")
    return one_line(f"{summary['path']}: {', '.join(parts)}")


def _describe_groups(summary: Summary) -> str:
    complete, planned = summary["num_views"], summary["num_views_planned"]
    parts = [f"0 to {complete - 1} of {planned} complete" if complete else f"none of {planned} complete"]
    for group in summary["groups"]:
        if not group["is_complete"] and group["units_done"]:
            first, last = group["views"]
            parts.append(f"{first} to {last}: {group['units_done']:,} of {plural(group['units'], 'shard')}")
    if summary["is_part"]:
        parts.append(OTHERS_NOT_HERE)
    if not summary["units_missing"] and not summary["is_complete"]:
        parts.append(f"all files are there except the manifest, which {summary['resuming_command']} writes")
    return "; ".join(parts)


def _count_workers(workers: list[Summary]) -> str:
    counts = {
        "alive": sum(1 for worker in workers if worker["alive"]),
        "no recent heartbeat": sum(1 for worker in workers if worker["alive"] is None),
        "gone": sum(1 for worker in workers if worker["alive"] is False and worker["state"] == "running"),
        "failed": sum(1 for worker in workers if worker["state"] == "failed"),
        "interrupted": sum(1 for worker in workers if worker["state"] == "interrupted"),
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "alive")


def _describe_worker(worker: Summary) -> str:
    who = f"{worker['host']} process {worker['pid']}" + (f", {worker['device']}" if worker["device"] else "")
    if worker["part"] != "0/1":
        who = f"part {worker['part']} on {who}"
    parts = [f"{who}: {_describe_life(worker)}"]
    if worker["work"] == "extract":
        parts.append(f"{worker['units_done']:,} units")
    parts.append(f"{worker['done']:,} {worker['item']}")
    if worker["alive"] and worker["per_second"]:
        parts.append(format_rate(worker["per_second"]))
    if worker["alive"] and worker["idle_seconds"] > SILENT_BEATS * worker["beat_seconds"]:
        parts.append(f"no progress for {format_seconds(worker['idle_seconds'])}")
    if worker["units"]:
        more = f" and {len(worker['units']) - 1} more" if len(worker["units"]) > 1 else ""
        parts.append(f"at {worker['units'][0]}{more}")
    parts += [f"{name} {value:.4g}" for name, value in worker["details"].items() if isinstance(value, float)]
    return ", ".join(parts)


def _describe_life(worker: Summary) -> str:
    if worker["alive"]:
        return "alive"
    if worker["state"] != "running":
        return str(worker["state"])
    if worker["judged_by"] == "process":
        return "gone (its process exited unexpectedly)"
    if worker["judged_by"] == "counter":
        return f"gone (its heartbeat stopped at {worker['beat']:,})"
    age = worker["age_seconds"]
    heard = f"{format_seconds(age)} ago" if age >= 0 else f"{format_seconds(-age)} ahead"
    return f"last heartbeat {heard} by its own clock; --watch shows whether it is alive"


def _is_at_rest(summary: Summary) -> bool:
    """Whether nobody has to resume: all is there, or a part of the views and nobody makes more of them."""
    return bool(summary["is_complete"] or summary["is_part"])


def _watch(look: Look, config: StatusConfig) -> str:
    """Show states until the work is complete; returns the last one. Ctrl-C ends it silently with exit code 130."""
    try:
        with _shown_looks(config) as show:
            part_since = None
            while not (summary := look())["is_complete"]:
                now = time.monotonic()
                part_since = None if not summary.get("is_part") else now if part_since is None else part_since
                if part_since is not None and now - part_since >= PART_SECONDS:
                    break
                show(summary)
                time.sleep(config.watch_seconds)
    except KeyboardInterrupt:
        # To stop watching stops nothing else.
        raise SystemExit(130) from None
    return json.dumps(summary) if config.json else render_status(summary)


@contextmanager
def _shown_looks(config: StatusConfig) -> Iterator[Callable[[Summary], None]]:
    """How a state is shown: one JSON line, on a terminal the text in place, else occasional plain lines."""
    if config.json:
        yield lambda summary: print_text(json.dumps(summary))
        return
    if not sys.stdout.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(file=sys.stdout), auto_refresh=False, transient=True) as live:
        yield lambda summary: live.update(Text(render_status(summary)), refresh=True)


class _Lines:
    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, summary: Summary) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            print_text(render_line(summary))
