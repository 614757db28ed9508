"""Extraction: the teacher sees every view of every record once, and the store keeps what it said.

    open the data -> load the teacher -> the gate -> agree with plan.json -> missing units, in bundles -> manifest

What exists under its final name is skipped before anything is decoded, so a killed extraction goes on, and one
process, several (``--num-workers``) and a scheduler's job array (``--worker i/n``) make the same store. Whenever a
group of views is whole the manifest says so: students can begin with it while later views are still being extracted.
``extractor`` has the work itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from teachonce.codecs.registry import build_codec
from teachonce.engine.cores import num_cores
from teachonce.engine.jobs import describe_start, partition, run_jobs
from teachonce.engine.progress import phase, progress
from teachonce.errors import CheckError, ConfigError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extractor import UnitExtractor
from teachonce.extraction.gate import Gate
from teachonce.extraction.plan_source import ExtractedData, open_plan_source
from teachonce.extraction.unit_result import write_missing_records
from teachonce.extraction.units import Unit, all_units, bundle_units, missing_units
from teachonce.models.classifier import Classifier, load_model, resolve_device
from teachonce.models.own_classes import resolve_model_offset
from teachonce.models.spec import ModelSpec
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource, choose_data_classes
from teachonce.storage.files import open_storage
from teachonce.store.begin import begin_store, check_agrees, check_store_folder
from teachonce.store.join import StoreJoin
from teachonce.store.manifests import finalize_store, is_complete
from teachonce.store.plan import Plan, describe_data, group_views
from teachonce.store.plan_files import holds_store, put_config
from teachonce.store.repair import remove_damaged, report_repaired
from teachonce.store.store import Store
from teachonce.store.tables import count_hits
from teachonce.terminal import print_note
from teachonce.views.policy import build_policy, policy_to_json

MIN_SAMPLES = 4
"""Samples of each view file; of few shards more, so that a group of views has about ``SAMPLES_A_GROUP``."""
SAMPLES_A_GROUP = 256
MAX_SAMPLED_PART = 1 / 16
"""Of a shard's records: dense logits of more of them would be most of a small store."""


def extract(config: ExtractConfig) -> bool:
    """Make the store, or this worker's part of it; True when the store is whole and its manifest written.

    Raises CheckError when the gate does not hold, PlanMismatchError when the store was begun with another plan, and
    RecordError, LogitsError or StoreError, with the place, for what is wrong with a record, the teacher or a file.
    """
    check_store_folder(config.out)
    source = open_records(config.data, config.split, with_boxes=draws_by_boxes(config))
    with phase("extract", "loading the teacher"):
        teacher = load_model(config.teacher, device=config.device, precision=config.precision, compile=config.compile)
    plan = build_plan(config, source, teacher)
    gate = Gate(
        num_samples=config.gate_samples,
        expect_top1=config.expect_top1,
        batch_size=config.batch_size,
        seed=config.seed,
        data=config.data,
    )
    is_gated = config.gate_samples == 0
    if not is_gated and not holds_store(config.out):
        # Before the plan is written: a teacher that is refused must not leave a store that refuses the right one.
        gate.check(teacher, source, plan.class_space.offset)
        is_gated = True
    if holds_store(config.out):
        check_agrees(config.out, plan)
        if config.repair:
            report_repaired(config.out, remove_damaged(config.out))
        # What a kill, or a repair, left without its manifest: data that has grown is compared with the index.
        finalize_store(config.out)
    plan = begin_store(config.out, plan, config.views_per_file, ExtractedData(config.out, source))
    source = open_plan_source(config.out, plan, source)
    if config.repair:
        write_missing_records(config.out, plan, source)
    missing = missing_units(config.out, plan)
    if missing:
        put_config(config.out, config.to_repeat())
    # Parts are taken of all units, not of the missing ones: those shrink while other workers are at it.
    units = [unit for unit in partition(all_units(plan), *config.worker_part()) if unit in missing]
    num_units = _count_units(plan)
    if config.views is not None and config.views < plan.num_views:
        _log(f"{config.out}: planned for {plan.num_views} views, more than --views {config.views}: all are extracted")
    _log(f"{config.out}: {num_units - len(missing)} of {num_units} units done, {len(units)} to do here")
    if units:
        if not is_gated:
            gate.check(teacher, source, plan.class_space.offset)
        _extract_units(config, plan, source, teacher, units)
    elif config.expect_top1 is not None and not missing:
        if plan.read_policy()[0].is_random:
            gate.check(teacher, source, plan.class_space.offset)  # stored views are no center crops
        else:
            _check_stored_top1(config)
    return _finish(config.out, plan, has_new_files=bool(units))


def build_plan(config: ExtractConfig, source: RecordSource, teacher: Classifier) -> Plan:
    """The plan of an extraction; raises ConfigError where teacher and data have no explicit common class space."""
    names = None if source.classes is None else source.classes.names
    data_classes = choose_data_classes(config.num_classes, source)
    if data_classes is None and config.offset is None and teacher.default_offset is None:
        raise ConfigError(
            f"{config.data}: does not say how many classes it has (no classes.json): give --num-classes (ImageNet "
            "TFRecords: 1001) or --offset (the data label of the teacher's class 0)"
        )
    offset = resolve_model_offset(teacher, names, data_classes, config.offset)
    views_of = open_views_of(config, source)
    drawn = build_policy(config.policy, config)
    is_random = views_of is not None or drawn.is_random
    if is_random and not teacher.preprocessing.antialias:
        raise ConfigError(
            f"--teacher {config.teacher}: sees pixels without antialiasing, and views are antialiased and rounded to 8 "
            "bits; add ',interpolation=bilinear,antialias=1' to look through views, or use --policy center"
        )
    if views_of is None:
        policy = policy_to_json(drawn) | ({"seed": config.seed} if drawn.is_random else {})
        num_views = config.views or 1
    else:
        policy = views_of.plan.policy
        num_views = config.views or views_of.num_views
    return Plan(
        teacher={
            "spec": config.teacher,
            "model": teacher_identity(teacher.spec),
            "weights_sha256": teacher.weights_sha256,
            "precision": teacher.precision,
            "num_parameters": _num_parameters(teacher),
            "preprocessing": teacher.preprocessing.to_json(),
        },
        class_space=ClassSpace(num_classes=teacher.num_classes, offset=offset),
        data_classes=data_classes or teacher.num_classes + offset,
        **describe_data(source, data_classes),
        policy=policy,
        codec=build_codec(config.codec, num_classes=teacher.num_classes, k=config.topk).to_json(),
        view_groups=group_views(num_views, config.views_per_file),
        num_samples=_num_samples([shard.num_records for shard in source.shards]),
    )


def _num_samples(sizes: Sequence[int]) -> int:
    wanted = -(-SAMPLES_A_GROUP // len(sizes))
    return max(MIN_SAMPLES, min(wanted, int(max(sizes) * MAX_SAMPLED_PART)))


def draws_by_boxes(config: ExtractConfig) -> bool:
    """Whether the records' bounding boxes are needed to draw the views."""
    return config.views_of is None and build_policy(config.policy, config).needs_boxes


def open_views_of(config: ExtractConfig, source: RecordSource) -> Store | None:
    """The store of ``--views-of``, checked to be of this data and to have the views asked for; None without."""
    if config.views_of is None:
        return None
    store = Store(config.views_of)
    StoreJoin(store, source, advice=f"give the data of {store.path}, or extend that store by this data first")
    if not store.policy.is_random:
        raise StoreError(
            f"{store.path}: policy {store.policy.name} stores no views to look through; extract with --policy crop"
        )
    if config.views is not None:
        Store(config.views_of, num_views=config.views)  # raises for one that has fewer
    return store


def teacher_identity(spec: ModelSpec) -> str:
    """What a SPEC names, wherever its files lie; the weights themselves are identified by their hash."""
    name = f":{spec.name}" if spec.kind in ("timm", "torchvision") else ""
    outputs = [f",{key}={spec.options[key]}" for key in ("signature", "output", "probs") if key in spec.options]
    return spec.kind + name + "".join(outputs)


def _extract_units(
    config: ExtractConfig, plan: Plan, source: RecordSource, teacher: Classifier, units: list[Unit]
) -> None:
    bundles = bundle_units(plan, units, config.batch_size)
    build: Callable[[int], UnitExtractor]
    num_workers = min(config.num_workers, len(bundles))
    if num_workers == 1:
        threads = config.decode_threads or num_cores()
        views_of = open_views_of(config, source)
        extractor = UnitExtractor(
            config.out, plan, source, teacher, config.batch_size, threads, views_of, config.profile
        )
        build = partial(_same, extractor)
    else:
        # Where ``auto`` led: a backend may have no GPU where PyTorch has one.
        resolved = replace(config, num_workers=num_workers, device=str(teacher.device))
        build = partial(_build_extractor, resolved, plan, source)
    sizes = [num_records for _, num_records in plan.shards]
    total = sum(sizes[unit.shard] * unit.num_views for unit in units)
    left = Counter(unit.group for unit in units)
    start = describe_start(num_workers, len(bundles))
    with progress("extract", total, unit="views", phase=start) as advance:
        for bundle, _ in run_jobs(build, bundles, num_workers=num_workers, report=advance):
            _count_group(config.out, plan, bundle, left)


def _count_group(path: Path, plan: Plan, bundle: Sequence[Unit], left: Counter[tuple[int, int]]) -> None:
    """Write the manifest of what is whole when this process's part of a group of views is done."""
    group = bundle[0].group
    left[group] -= len(bundle)
    is_last = sum(left.values()) == 0
    if left[group] == 0 and not is_last:
        num_views = finalize_store(path)
        if num_views > group[1]:
            _log(f"{path}: views 0 to {num_views - 1} are complete; training can begin with them")


def _build_extractor(config: ExtractConfig, plan: Plan, source: RecordSource, worker_index: int) -> UnitExtractor:
    threads = max(1, num_cores() // config.num_workers)
    torch.set_num_threads(threads)
    teacher = load_model(
        config.teacher,
        device=_worker_device(config.device, worker_index, config.num_workers),
        precision=config.precision,
        compile=config.compile,
    )
    threads = config.decode_threads or threads
    views_of = open_views_of(config, source)
    return UnitExtractor(config.out, plan, source, teacher, config.batch_size, threads, views_of, config.profile)


def _same(extractor: UnitExtractor, worker_index: int) -> UnitExtractor:
    return extractor


def _num_parameters(teacher: Classifier) -> int | None:
    return None if teacher.module is None else sum(parameter.numel() for parameter in teacher.module.parameters())


def _worker_device(device: str, worker_index: int, num_workers: int) -> str:
    resolved = resolve_device(device)
    if str(resolved) == "cuda" and num_workers > 1:
        return f"cuda:{worker_index % torch.cuda.device_count()}"
    return str(resolved)


def _count_units(plan: Plan) -> int:
    return len(plan.shards) * len(plan.view_groups)


def _check_stored_top1(config: ExtractConfig) -> None:
    """The gate of a store that is whole: by its own logits. Raises CheckError below ``expect_top1``."""
    store = Store(config.out, is_partial=True)
    num_hits = 0
    for shard in range(len(store.shards)):
        logits = store.read_logits(shard, 0, slice(None))
        num_hits += count_hits(logits, store.read_labels(shard), store.class_space.offset)
    top1 = num_hits / store.num_records
    assert config.expect_top1 is not None
    if top1 < config.expect_top1:
        raise CheckError(
            f"{config.out}: is whole, and its logits have top-1 {top1:.3f}, expected at least {config.expect_top1}; "
            "extract with another teacher or other settings into another --out"
        )


def _finish(path: Path, plan: Plan, *, has_new_files: bool) -> bool:
    open_storage(path).remove_temporaries()
    is_current = not has_new_files and is_complete(path, plan)
    if not is_current:
        finalize_store(path)
    if not is_complete(path, plan):
        missing = len(missing_units(path, plan))
        _log(f"{path}: {missing} of {_count_units(plan)} units are left to other workers; the last one finishes it")
        return False
    store = Store(path)
    _log(
        f"{path}: complete: {store.num_records:,} records x {store.num_views} views, {store.num_bytes():,} bytes "
        f"({store.num_bytes() / store.num_records / store.num_views:,.0f} a view)"
    )
    return True


def _log(text: str) -> None:
    print_note(text)
