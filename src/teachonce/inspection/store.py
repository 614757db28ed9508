"""What is in a store, as JSON values and as text: coverage, accuracy by shard, entropy, calibration, what it costs.

A look at the data that costs no teacher: everything is computed from the stored logits and labels. Works on unfinished
stores too: where some views are whole in every shard it is about these, else only coverage is known. Nothing here needs
torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teachonce.inspection.costs import CodecError, ColumnBytes, measure_bytes, measure_codec
from teachonce.inspection.measures import measure_store
from teachonce.store.manifests import missing_files, visible_views
from teachonce.store.plan_files import read_plan
from teachonce.store.store import Store
from teachonce.terminal import as_text

SHARDS_SHOWN = 16

_KIND_NAMES = {
    "codec": "codec",
    "view": "view",
    "record": "record (once)",
    "sample": "samples",
    "file": "file overhead",
}


def describe_store(path: Path) -> dict[str, Any]:
    """What plan and manifest say, as JSON values, without a look at any logits.

    ``num_views`` are those that readers see, of ``num_views_planned``; 0 where there is no manifest yet.
    """
    plan = read_plan(path)
    missing = missing_files(path, plan)
    num_files = sum(1 for _ in plan.files())
    num_views = visible_views(path)
    return {
        "kind": "store",
        "path": str(path),
        "is_finished": num_views >= plan.num_views,
        "files_present": num_files - len(missing),
        "files_planned": num_files,
        "teacher": plan.teacher,
        "num_classes": plan.class_space.num_classes,
        "offset": plan.class_space.offset,
        "policy": plan.policy,
        "codec": plan.codec,
        "split": plan.data["split"],
        "num_shards": len(plan.shards),
        "num_records": sum(num_records for _, num_records in plan.shards),
        "num_views": num_views,
        "num_views_planned": plan.num_views,
    }


def summarize_store(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """A store as JSON values; accuracy, entropy (nats) and ECE are means over records and views at temperature 1.

    Accuracy and ECE are of the views that are not mixed, and None where all are. ``codec_error`` is total variation
    against the dense softmax, by temperature, on ``num_samples`` samples. ``trust`` as in ``Store``.
    """
    summary = describe_store(path)
    if summary["num_views"] == 0:
        return summary
    store = Store(path, trust=trust)
    measures = measure_store(store)
    for name in ("top1", "top5", "entropy_nats", "ece"):
        summary[name] = getattr(measures, name)
    summary["num_mixed"] = measures.num_rows - measures.num_plain
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
    """The summary for people."""
    num_views, num_planned = summary["num_views"], summary["num_views_planned"]
    views = f"{summary['num_records']:,} records x {num_views or num_planned} views in {summary['num_shards']} shards"
    coverage = f"{summary['files_present']} of {summary['files_planned']} files"
    if not summary["is_finished"]:
        usable = f"usable for {num_views} of {num_planned} views" if num_views else "NOT finished"
        coverage += f"; {usable}: run the same extract again" + (" for the rest" if num_views else "")
    lines = [
        f"{summary['path']}: store of split {summary['split']}, {views}",
        f"  teacher   {summary['teacher']['model']}, {summary['num_classes']} classes, offset {summary['offset']}",
        f"  policy    {describe_entry(summary['policy'])}",
        f"  codec     {describe_entry(summary['codec'])}",
        f"  coverage  {coverage}",
    ]
    if num_views == 0:
        return as_text(lines)
    columns = ", ".join(f"{name} {size:g}" for name, size in summary["bytes_per_view_by_column"].items())
    lines += [
        f"  bytes     {summary['bytes']:,}, {summary['bytes_per_view']:,.0f} a view ({columns})",
        f"  error     {_describe_codec_error(summary)}",
        f"  accuracy  {_describe_accuracy(summary)}",
        f"  entropy   {summary['entropy_nats']:.3f} nats"
        + ("" if summary["ece"] is None else f"; calibration error {summary['ece']:.4f}"),
        "",
        "  shard                      records   top-1   top-5  entropy",
    ]
    shards = summary["shards"]
    lines += [
        f"  {s['name']:<26} {s['num_records']:>7,}  {_fraction(s['top1'])}  {_fraction(s['top5'])}"
        f"  {s['entropy_nats']:>7.3f}"
        for s in shards[:SHARDS_SHOWN]
    ]
    if len(shards) > SHARDS_SHOWN:
        accuracies = sorted(shard["top1"] for shard in shards if shard["top1"] is not None)
        spread = (
            ""
            if not accuracies
            else (
                f"; top-1 by shard: least {accuracies[0]:.4f}, median {accuracies[len(accuracies) // 2]:.4f}, "
                f"most {accuracies[-1]:.4f}"
            )
        )
        lines.append(f"  ... {len(shards) - SHARDS_SHOWN} more (--json shows all){spread}")
    return as_text(lines)


def describe_entry(entry: dict[str, Any]) -> str:
    """A policy's or a codec's entry of the plan: name (parameters), those of its parts too."""
    rest = ", ".join(_describe_parameter(key, value) for key, value in entry.items() if key != "name")
    return f"{entry['name']} ({rest})" if rest else str(entry["name"])


def _describe_parameter(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key} ({', '.join(_describe_parameter(*item) for item in value.items())})"
    if isinstance(value, list):
        return f"{key} {' to '.join(_describe_number(item) for item in value)}"
    return f"{key} {_describe_number(value)}"


def _describe_number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _describe_accuracy(summary: dict[str, Any]) -> str:
    num_mixed = summary["num_mixed"]
    if summary["top1"] is None:
        return "not known: all views are mixed, and a mix has no one label"
    mixed = f" (without {num_mixed:,} mixed views)" if num_mixed else ""
    return f"top-1 {summary['top1']:.4f}, top-5 {summary['top5']:.4f}{mixed}"


def _describe_codec_error(summary: dict[str, Any]) -> str:
    if not summary["codec_error"]:
        return "not known: the store keeps no samples of logits before the codec"
    errors = ", ".join(
        f"{error['mean']:.2g} (largest {error['largest']:.2g}) at T={temperature}"
        for temperature, error in summary["codec_error"].items()
    )
    return f"{errors}: total variation of the softmax, mean of {summary['num_samples']:,} samples"


def _fraction(value: float | None) -> str:
    return "     -" if value is None else f"{value:.4f}"


def _group_bytes(columns: list[ColumnBytes]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for column in columns:
        name = _KIND_NAMES[column.kind]
        sums[name] = sums.get(name, 0.0) + column.bytes_per_view
    sums.setdefault("view", 0.0)
    return {name: round(sums[name], 1) for name in _KIND_NAMES.values() if name in sums}
