"""The part of ``verify`` that runs the teacher: fresh logits of a sample against the stored ones."""

from __future__ import annotations

import numpy as np
import torch

from teachonce.engine.progress import phase
from teachonce.errors import CheckError, TeachonceError
from teachonce.extraction.config import VerifyConfig
from teachonce.extraction.differences import describe_versions, rounding
from teachonce.models.classifier import Classifier, load_model
from teachonce.pixels.render import ViewReader, render_views
from teachonce.rng import generator
from teachonce.storage.resume import plan_differences
from teachonce.store.join import StoreJoin
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews


def compare_fresh_logits(join: StoreJoin, config: VerifyConfig, spec: str) -> tuple[int, float, float]:
    """Run the teacher ``spec`` on a sample; returns (records, largest error, largest excess) as in ``Verdict``.

    Raises CheckError for another teacher than the store's, and what ``check_logits`` raises.
    """
    store = join.store
    try:
        with phase("verify", "loading the teacher"):
            teacher = load_model(spec, device=config.device, precision=store.plan.teacher.get("precision", "float32"))
    except TeachonceError as error:
        if config.teacher is not None:
            raise
        raise type(error)(
            f"{error}; this is the teacher of the store's plan, {spec}, whose paths are relative to the folder "
            "where extract was run; give its present location with --teacher, or --samples 0 to check without a "
            "teacher"
        ) from error
    _check_teacher(store, teacher)
    positions = _draw_positions(join, config)
    return len(positions), *check_logits(join, teacher, positions, config.batch_size)


def check_logits(
    join: StoreJoin, teacher: Classifier, positions: list[tuple[int, int, int]], batch_size: int
) -> tuple[float, float]:
    """Compare fresh logits of some (shard, row, view), by the data's shards, with the stored ones.

    Returns (largest error, largest excess).

    Raises CheckError naming the record with the largest difference, when that exceeds what codec and arithmetic
    explain.
    """
    store = join.store
    precision = store.plan.teacher.get("precision", "float32")
    reader = ViewReader(join.source, StoredViews(store), [join])
    largest_error, largest_excess, worst = 0.0, 0.0, ""
    for start in range(0, len(positions), batch_size):
        chosen = positions[start : start + batch_size]
        record_views = [reader.read([(shard, row)], view)[0] for shard, row, view in chosen]
        pixels = render_views(record_views, teacher.preprocessing)
        fresh = teacher.collect_logits(teacher.logits(torch.from_numpy(pixels)))
        stored = join.locate([(shard, row) for shard, row, _ in chosen], [item.record for item in record_views])
        rows = [store.read_rows(shard, view, [row]) for (shard, row), (_, _, view) in zip(stored, chosen, strict=True)]
        columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        slack = rounding(store, fresh, teacher.device.type)
        errors, allowed = store.codec.compare_logits(columns, fresh, slack)
        # A NaN, fresh or stored, must not pass as a comparison that is merely false.
        with np.errstate(invalid="ignore"):
            ratios = errors / allowed
        excess = np.where(np.isnan(ratios), np.inf, ratios).max(axis=1)
        largest_error = max(largest_error, float(errors.max()))
        at = int(excess.argmax())
        if excess[at] > largest_excess:
            largest_excess = float(excess[at])
            record = record_views[at].record
            worst = (
                f"{record.where} ({record.filename}) view {chosen[at][2]}: fresh and stored logits differ by "
                f"{errors[at].max():.4g}, {excess[at]:.1f} times what codec {store.codec.name} and "
                f"{precision} allow"
            )
    if largest_excess > 1:
        raise CheckError(
            f"{worst}: the pixels are the teacher's, so weights or numerics differ "
            f"({describe_versions(store, 'torch', 'onnxruntime', 'tensorflow')}), or the store was changed; "
            "extract again"
            if store.plan.num_samples
            else f"{worst}: another decoder, library or device? or the store was changed; extract again"
        )
    return largest_error, largest_excess


def _check_teacher(store: Store, teacher: Classifier) -> None:
    found = {"weights_sha256": teacher.weights_sha256, "preprocessing": teacher.preprocessing.to_json()}
    expected = {name: store.plan.teacher[name] for name in found if store.plan.teacher.get(name) is not None}
    hashes = {"weights_sha256": "its weights"}
    differences = plan_differences(expected, {name: found[name] for name in expected}, hashes=hashes)
    if differences:
        raise CheckError(
            f"{store.path}: a different teacher than at extraction: {'; '.join(differences)}; give --teacher with that "
            "of the extraction, or --teacher none to leave it out"
        )
    if teacher.num_classes != store.class_space.num_classes:
        raise CheckError(
            f"{store.path}: logits of {store.class_space.num_classes} classes, the teacher has {teacher.num_classes}"
        )


def _draw_positions(join: StoreJoin, config: VerifyConfig) -> list[tuple[int, int, int]]:
    """(shard, row, view), shard and row of the data."""
    rng = generator(config.seed, "verify")
    total = join.source.num_records * join.store.num_views
    # choice without replacement would permute all of ImageNet's views for a few hundred; doubles are harmless here.
    flat = np.unique(rng.integers(0, total, config.samples)) if config.samples < total else np.arange(total)
    views, indices = np.divmod(flat, join.source.num_records)
    locations = join.source.locate_all(indices)
    return [(shard, row, view) for (shard, row), view in zip(locations, views.tolist(), strict=True)]
