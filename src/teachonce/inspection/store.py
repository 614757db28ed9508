"""What is in a store, as JSON values and as text: coverage, accuracy by shard, entropy, calibration, what it costs.

A check of the data without a teacher: everything is computed from the stored logits and labels. Works on unfinished
stores too: where some views are complete in every shard it describes these, else only coverage is known. Nothing here
needs torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teachonce.inspection.costs import CodecError, ColumnBytes, measure_bytes, measure_codec
from teachonce.inspection.measures import measure_store
from teachonce.records.class_space import shows_top5
from teachonce.records.class_table import brief_names
from teachonce.records.image_listing import known_as
from teachonce.store.card import describe_entry
from teachonce.store.manifests import holds_first_views, missing_files, visible_views
from teachonce.store.plan import teacher_name
from teachonce.store.plan_files import OTHERS_NOT_HERE, read_plan, resuming_command
from teachonce.store.store import Store
from teachonce.terminal import as_text, plural

SHARDS_SHOWN = 16

_KIND_NAMES = {
    "codec": "codec",
    "view": "view",
    "record": "record (once)",
    "sample": "samples",
    "file": "file overhead",
}


def describe_store(path: Path, *, trust: bool = False) -> tuple[dict[str, Any], Store | None]:
    """What plan and manifests say, as JSON values, and the store that readers see; None where there is none yet.

    Both are of one moment, as others may be adding views or records just now: ``num_views`` and ``num_records`` are
    those of the store, of ``num_views_planned`` and ``num_records_planned``.
    """
    plan = read_plan(path)
    missing = missing_files(path, plan)
    num_files = sum(1 for _ in plan.files())
    store = Store(path, trust=trust) if visible_views(path) else None
    num_views, num_records = (0, plan.num_records) if store is None else (store.num_views, store.num_records)
    is_finished = num_views >= plan.num_views and num_records >= plan.num_records
    summary = {
        "kind": "store",
        "path": str(path),
        "is_finished": is_finished,
        "is_part": not is_finished and holds_first_views(path, plan, missing),
        "resuming_command": resuming_command(path, plan),
        "files_present": num_files - len(missing),
        "files_planned": num_files,
        "teacher": plan.teacher,
        "num_classes": plan.class_space.num_classes,
        "offset": plan.class_space.offset,
        "class_names": plan.class_names,
        "policy": plan.policy,
        "codec": plan.codec,
        "split": plan.data["split"],
        "num_shards": len(plan.shards if store is None else store.shards),
        "num_records": num_records,
        "num_records_planned": plan.num_records,
        "num_views": num_views,
        "num_views_planned": plan.num_views,
    }
    return summary, store


def summarize_store(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """A store as JSON values; accuracy, entropy (nats) and ECE are means over records and views at temperature 1.

    Accuracy and ECE are of the views that are not mixed and have a label, and None where there are none; top-5 is None
    too where the codec keeps fewer than five classes. ``codec_error`` is total variation
    against the dense softmax, by temperature, on ``num_samples`` samples. ``trust`` as in ``Store``.
    """
    summary, store = describe_store(path, trust=trust)
    if store is None:
        return summary
    measures = measure_store(store)
    for name in ("top1", "top5", "entropy_nats", "ece"):
        summary[name] = getattr(measures, name)
    summary["num_mixed"] = measures.num_rows - measures.num_plain
    summary["num_unlabeled"] = measures.num_plain - measures.num_labeled
    summary["bytes"] = store.num_bytes()
    summary["bytes_per_view"] = store.num_bytes() / (store.num_records * store.num_views)
    summary["bytes_per_view_by_column"] = _group_bytes(measure_bytes(store))
    codec = measure_codec(store)
    summary["num_samples"] = 0 if codec is None else codec.num_samples
    summary["codec_error"] = {} if codec is None else codec_error_json(codec)
    # By shard, as the teacher's accuracy shows one that was damaged or sorted.
    summary["shards"] = [
        {
            "name": shard.name,
            "num_records": shard.num_records,
            "top1": shard.sums.top1,
            "top5": shard.sums.top5,
            "entropy_nats": shard.sums.mean_entropy_nats,
        }
        for shard in measures.shards
    ]
    return summary


def codec_error_json(codec: CodecError) -> dict[str, dict[str, float]]:
    """``mean`` and ``largest`` total variation, and the ``tail_mass`` of a sparse codec, by temperature."""
    return {
        str(temperature): {"mean": mean, "largest": codec.largest[temperature]}
        | ({"tail_mass": codec.tail_mass[temperature]} if codec.tail_mass else {})
        for temperature, mean in codec.mean.items()
    }


def render_store(summary: dict[str, Any]) -> str:
    """The summary as text."""
    num_views, num_planned = summary["num_views"], summary["num_views_planned"]
    views = (
        f"{plural(summary['num_records'], 'record')} x {plural(num_views or num_planned, 'view')} in "
        f"{plural(summary['num_shards'], 'shard')}"
    )
    coverage = f"{summary['files_present']} of {plural(summary['files_planned'], 'file')}"
    if not summary["is_finished"]:
        usable = f"usable for {describe_usable(summary)}" if num_views else "NOT finished"
        if summary["is_part"]:
            coverage += f"; {usable}: {OTHERS_NOT_HERE}"
        else:
            coverage += f"; {usable}: run {summary['resuming_command']} to resume" + (
                " for the rest" if num_views else ""
            )
    lines = [
        f"{summary['path']}: store of split {known_as(summary['split'])}, {views}",
        f"  teacher   {teacher_name(summary['teacher'])}, {plural(summary['num_classes'], 'class', 'classes')}, "
        f"offset {summary['offset']}",
        *([] if not summary["class_names"] else [f"  classes   {brief_names(summary['class_names'])}"]),
        f"  policy    {describe_entry(summary['policy'])}",
        f"  codec     {describe_entry(summary['codec'])}",
        f"  coverage  {coverage}",
    ]
    if num_views == 0:
        return as_text(lines)
    has_top5 = _has_top5(summary)
    columns = ", ".join(f"{name} {size:g}" for name, size in summary["bytes_per_view_by_column"].items())
    lines += [
        f"  bytes     {summary['bytes']:,}, {summary['bytes_per_view']:,.0f} a view ({columns})",
        f"  error     {_describe_codec_error(summary)}",
        f"  accuracy  {_describe_accuracy(summary)}",
        f"  entropy   {summary['entropy_nats']:.3f} nats"
        + ("" if summary["ece"] is None else f"; calibration error {summary['ece']:.4f}"),
        "",
        f"  shard                      records   top-1{'   top-5' if has_top5 else ''}  entropy",
    ]
    shards = summary["shards"]
    lines += [
        f"  {s['name']:<26} {s['num_records']:>7,}  {_fraction(s['top1'])}"
        f"{'  ' + _fraction(s['top5']) if has_top5 else ''}  {s['entropy_nats']:>7.3f}"
        for s in shards[:SHARDS_SHOWN]
    ]
    if len(shards) > SHARDS_SHOWN:
        accuracies = sorted(shard["top1"] for shard in shards if shard["top1"] is not None)
        spread = (
            ""
            if not accuracies
            else (
                f"; top-1 by shard: minimum {accuracies[0]:.4f}, median {accuracies[len(accuracies) // 2]:.4f}, "
                f"maximum {accuracies[-1]:.4f}"
            )
        )
        lines.append(f"  ... {len(shards) - SHARDS_SHOWN} more (--json shows all){spread}")
    return as_text(lines)


def describe_usable(summary: dict[str, Any]) -> str:
    """What readers see of what is planned, as a phrase."""
    phrase = f"{summary['num_views']} of {plural(summary['num_views_planned'], 'view')}"
    num_records, num_planned = summary["num_records"], summary["num_records_planned"]
    return phrase if num_records == num_planned else f"{phrase} of {num_records:,} of {plural(num_planned, 'record')}"


def _describe_accuracy(summary: dict[str, Any]) -> str:
    num_mixed, num_unlabeled = summary["num_mixed"], summary["num_unlabeled"]
    if summary["top1"] is None:
        why = "the records have no labels" if num_unlabeled else "all views are mixed"
        return f"unknown: {why}{', and a mixed view has no single label' if num_mixed else ''}"
    left_out = [plural(num_mixed, "mixed view")] if num_mixed else []
    left_out += [f"{num_unlabeled:,} unlabeled"] if num_unlabeled else []
    without = f" (without {' and '.join(left_out)})" if left_out else ""
    top5 = f", top-5 {summary['top5']:.4f}" if _has_top5(summary) else ""
    return f"top-1 {summary['top1']:.4f}{top5}{without}"


def _has_top5(summary: dict[str, Any]) -> bool:
    """Whether people see it: of many classes, where the codec keeps as many as five."""
    return summary["top5"] is not None and shows_top5(summary["num_classes"])


def _describe_codec_error(summary: dict[str, Any]) -> str:
    if not summary["codec_error"]:
        return "unknown: the store has no samples of logits from before encoding"
    errors = ", ".join(
        f"{error['mean']:.2g} (largest {error['largest']:.2g}) at T={temperature}"
        for temperature, error in summary["codec_error"].items()
    )
    return f"{errors}: total variation of the softmax, mean of {plural(summary['num_samples'], 'sample')}"


def _fraction(value: float | None) -> str:
    return "     -" if value is None else f"{value:.4f}"


def _group_bytes(columns: list[ColumnBytes]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for column in columns:
        name = _KIND_NAMES[column.kind]
        sums[name] = sums.get(name, 0.0) + column.bytes_per_view
    sums.setdefault("view", 0.0)
    return {name: round(sums[name], 1) for name in _KIND_NAMES.values() if name in sums}
