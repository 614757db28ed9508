"""What is in a store: coverage, the teacher's accuracy by shard, entropy, calibration, bytes.

A look at the data that costs no teacher: everything is computed from the stored logits and labels. Works on unfinished
stores too, where only coverage is known. Nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.files import read_json
from teachonce.shard_files import records_file, views_file
from teachonce.store import MANIFEST_NAME, PLAN_NAME, Plan, Store, missing_files
from teachonce.views import VIEW_COLUMNS

NUM_BINS = 15
ROWS_AT_ONCE = 4096
SHARDS_SHOWN = 16


def summarise_store(path: Path) -> dict[str, Any]:
    """A store as JSON values; accuracy, entropy (nats) and ECE are means over records and views at temperature 1."""
    plan = Plan.from_json(read_json(path / PLAN_NAME), path / PLAN_NAME)
    missing = missing_files(path, plan)
    num_files = len(plan.shards) * (1 + len(plan.view_groups))
    summary: dict[str, Any] = {
        "kind": "store",
        "path": str(path),
        "is_finished": (path / MANIFEST_NAME).exists(),
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
        "num_views": plan.num_views,
    }
    if not summary["is_finished"]:
        return summary
    store = Store(path)
    shards = [_summarise_shard(store, shard) for shard in range(len(store.shards))]
    total = sum(shard["weight"] for shard in shards)
    for name in ("top1", "top5", "entropy_nats"):
        summary[name] = sum(shard[name] * shard["weight"] for shard in shards) / total
    summary["ece"] = _calibration_error(sum(shard.pop("bins") for shard in shards))
    # By shard and for one view, as the teacher's accuracy shows a shard that was damaged or sorted.
    for shard in shards:
        del shard["weight"]
    summary["num_views"] = store.num_views
    summary["bytes"] = store.num_bytes()
    summary["bytes_per_view"] = store.num_bytes() / (store.num_records * store.num_views)
    summary["bytes_per_view_by_column"] = _column_bytes(store)
    summary["shards"] = shards
    return summary


def render_store(summary: dict[str, Any]) -> str:
    """The summary for people."""
    views = f"{summary['num_records']:,} records x {summary['num_views']} views in {summary['num_shards']} shards"
    lines = [
        f"{summary['path']}: store of split {summary['split']}, {views}",
        f"  teacher   {summary['teacher']['model']}, {summary['num_classes']} classes, offset {summary['offset']}",
        f"  policy    {_parameters(summary['policy'])}",
        f"  codec     {_parameters(summary['codec'])}",
        f"  coverage  {summary['files_present']} of {summary['files_planned']} files"
        + ("" if summary["is_finished"] else "; NOT finished: run the same extract again"),
    ]
    if not summary["is_finished"]:
        return "\n".join(lines)
    columns = ", ".join(f"{name} {size:g}" for name, size in summary["bytes_per_view_by_column"].items())
    lines += [
        f"  bytes     {summary['bytes']:,}, {summary['bytes_per_view']:,.0f} a view ({columns})",
        f"  accuracy  top-1 {summary['top1']:.4f}, top-5 {summary['top5']:.4f}",
        f"  entropy   {summary['entropy_nats']:.3f} nats; calibration error {summary['ece']:.4f}",
        "",
        "  shard                      records   top-1   top-5  entropy",
    ]
    shards = summary["shards"]
    lines += [
        f"  {s['name']:<26} {s['num_records']:>7,}  {s['top1']:.4f}  {s['top5']:.4f}  {s['entropy_nats']:>7.3f}"
        for s in shards[:SHARDS_SHOWN]
    ]
    if len(shards) > SHARDS_SHOWN:
        accuracies = sorted(shard["top1"] for shard in shards)
        lines.append(
            f"  ... {len(shards) - SHARDS_SHOWN} more (--json shows all); top-1 by shard: least {accuracies[0]:.4f}, "
            f"median {accuracies[len(shards) // 2]:.4f}, most {accuracies[-1]:.4f}"
        )
    return "\n".join(lines)


def _summarise_shard(store: Store, shard: int) -> dict[str, Any]:
    name, num_records = store.shards[shard]
    labels = store.read_labels(shard).astype(np.int64) - store.class_space.offset
    hits1 = hits5 = entropy = 0.0
    bins = np.zeros((NUM_BINS, 3))  # records, confidence, hits of each bin
    for view in range(store.num_views):
        for start in range(0, num_records, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            logits = store.read_logits(shard, view, rows).astype(np.float64)
            log_probs = logits - logits.max(axis=1, keepdims=True)
            log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
            probs = np.exp(log_probs)
            entropy -= float((probs * log_probs).sum())
            top = _top_classes(logits, 5)
            hits = top == labels[rows, None]
            hits1 += float(hits[:, 0].sum())
            hits5 += float(hits.any(axis=1).sum())
            confidence = probs.max(axis=1)
            index = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
            np.add.at(bins, index, np.stack([np.ones(len(hits)), confidence, hits[:, 0]], axis=1))
    weight = num_records * store.num_views
    return {
        "name": name,
        "num_records": num_records,
        "top1": hits1 / weight,
        "top5": hits5 / weight,
        "entropy_nats": entropy / weight,
        "weight": weight,
        "bins": bins,
    }


def _top_classes(logits: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ``count`` likeliest classes [N, count], likeliest first."""
    count = min(count, logits.shape[1])
    chosen = np.argpartition(-logits, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(logits, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _calibration_error(bins: NDArray[np.float64]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): |accuracy - confidence| weighted by bin size."""
    return float(np.abs(bins[:, 2] - bins[:, 1]).sum() / bins[:, 0].sum())


def _column_bytes(store: Store) -> dict[str, float]:
    columns = store.read_columns(0, 0)
    sizes = {name: values.nbytes / len(values) for name, values in columns.items()}
    view_bytes = sum(size for name, size in sizes.items() if name in VIEW_COLUMNS)
    codec_bytes = sum(size for name, size in sizes.items() if name not in VIEW_COLUMNS)
    files = [records_file(name) for name, _ in store.shards]
    record_bytes = sum((store.path / name).stat().st_size for name in files) / store.num_records
    views = [views_file(name, group) for name, _ in store.shards for group in store.plan.view_groups]
    all_view_bytes = sum((store.path / name).stat().st_size for name in views)
    overhead = all_view_bytes / (store.num_records * store.num_views) - view_bytes - codec_bytes
    return {
        "codec": codec_bytes,
        "view": view_bytes,
        "record (once)": round(record_bytes / store.num_views, 1),
        "file overhead": round(overhead, 1),
    }


def _parameters(entry: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "name")
    return f"{entry['name']} ({rest})" if rest else str(entry["name"])
