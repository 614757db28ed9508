"""``teachonce inspect``: what is in a folder, whichever kind it is: records, a store, or a run."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from teachonce.engine.progress import phase
from teachonce.errors import ConfigError
from teachonce.extras import require
from teachonce.inspection.config import InspectConfig
from teachonce.inspection.records import render_records, summarize_records
from teachonce.inspection.store import render_store, summarize_store
from teachonce.records.class_space import shows_top5
from teachonce.records.class_table import brief_names
from teachonce.records.image_listing import known_as
from teachonce.records.options import given_record_options
from teachonce.runs.metrics import METRIC_COLUMNS
from teachonce.runs.run import Run, holds_run
from teachonce.storage.files import locate
from teachonce.store.plan_files import holds_store
from teachonce.terminal import as_text, plural, visible

EPOCHS_SHOWN = 8


class Inspection(NamedTuple):
    """What there is to print, and whether all of it can be used."""

    text: str
    is_sound: bool = True
    """False where records have images that cannot be read."""


def inspect(config: InspectConfig) -> Inspection:
    """What is in a folder; raises ConfigError for one that holds neither records nor a store nor a run."""
    is_store, is_run = holds_store(config.path), holds_run(config.path)
    if config.split is not None and (is_store or is_run):
        raise ConfigError(
            f"--split {config.split}: is for records, {config.path} is a {'store' if is_store else 'run'}"
        )
    if (is_store or is_run) and config.data is None and (given := given_record_options(config)):
        raise ConfigError(f"{given}: is for records, {config.path} is a {'store' if is_store else 'run'}")
    if config.trust and not is_store:
        raise ConfigError(f"--trust: is for stores, {config.path} is {'a run' if is_run else 'not a store'}")
    if config.html:
        if not is_store:
            kind = "a run, whose page is its report.html" if is_run else "not a store"
            raise ConfigError(f"--html: is for stores, {config.path} is {kind}")
        require("matplotlib", "jinja2", purpose="--html")
        from teachonce.inspection.page import write_page

        page = write_page(
            config.path, config.data, config.out, overwrite=config.overwrite, trust=config.trust, options=config
        )
        locate(page)[0].remove_temporaries()
        return Inspection(visible(str(page)))
    if is_run and not is_store:
        run = Run(config.path)
        return Inspection(json.dumps(summarize_run(run)) if config.json else render_run(run))
    if is_store:
        with phase("inspect", "reading the store"):
            summary = summarize_store(config.path, trust=config.trust)
        return Inspection(json.dumps(summary) if config.json else render_store(summary))
    summary = summarize_records(config.path, config.split, options=config)
    is_sound = not any(split["unreadable"] for split in summary["splits"])
    return Inspection(json.dumps(summary) if config.json else render_records(summary), is_sound)


def summarize_run(run: Run) -> dict[str, Any]:
    """A run as JSON values: configuration, curve, and the result where it is finished."""
    result = run.result
    return {
        "kind": "run",
        "path": str(run.path),
        "is_finished": result is not None,
        "class_names": run.class_names,
        "class_texts": run.class_texts,
        "config": run.config,
        "metrics": run.metrics,
        "result": result,
    }


def render_run(run: Run) -> str:
    """A run as text."""
    rows, result = run.metrics, run.result
    data, split = run.setting("data", str), run.setting("split", str)
    epochs, batch_size = run.setting("epochs", int), run.setting("batch_size", int)
    state = "finished" if result is not None else "NOT finished: run the same command to resume"
    lines = [
        f"{run.path}: run of {run.student}, {plural(run.num_classes, 'class', 'classes')}, {state}",
        f"  data      {data}, split {known_as(split)}; {run.describe_supervision()}",
        f"  epochs    {rows[-1]['epoch'] if rows else 0} of {epochs}, batch {batch_size}",
    ]
    if run.class_names is not None:
        lines.insert(2, f"  classes   {brief_names(run.class_texts or run.class_names)}")
    if result is not None and result["top1"] is not None:
        top5 = f", top-5 {result['top5']:.4f}" if shows_top5(run.num_classes) else ""
        lines.append(f"  result    top-1 {result['top1']:.4f}{top5}, ECE {result['ece']:.4f}")
    if rows:
        hidden = () if shows_top5(run.num_classes) else ("validation_top5",)
        columns = [name for name in METRIC_COLUMNS if rows[-1][name] is not None and name not in hidden]
        widths = [max(len(name), 9) for name in columns]
        lines += ["", "  " + "  ".join(name.rjust(width) for name, width in zip(columns, widths, strict=True))]
        if len(rows) > EPOCHS_SHOWN:
            lines.append(f"  ... {plural(len(rows) - EPOCHS_SHOWN, 'earlier epoch')} (--json shows all)")
        for row in rows[-EPOCHS_SHOWN:]:
            cells = [f"{row[name]:.4g}" if row[name] is not None else "-" for name in columns]
            lines.append("  " + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    return as_text(lines)
