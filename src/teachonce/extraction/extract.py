"""Extraction: run the teacher once on every view of every record, and store its logits.

    open the data -> load the teacher -> the gate -> agree with plan.json -> missing units, in bundles -> manifest

What exists under its final name is skipped before anything is decoded, so a killed extraction resumes, and one process,
several (``--num-workers``), a scheduler's job array (``--worker i/n``) and a cluster (``--engine ray``) make the same
store. Whenever a group of views is complete its manifest is written: students can begin with it while later views are
still being extracted. ``prepare`` has what comes before the units, ``extractor`` the work itself; both need the
teacher, and this module, which may run where it cannot be loaded, imports them only where it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.engine.heartbeat import heartbeats, remove_heartbeats
from teachonce.engine.jobs import describe_start, others_permuted, partition, run_jobs
from teachonce.engine.machine import num_cores
from teachonce.engine.progress import Advance, progress
from teachonce.engine.stop_between_units import stopping_gently
from teachonce.errors import StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.units import (
    Preparation,
    Unit,
    UnitCounts,
    all_units,
    bundle_units,
    describe_units,
    missing_units,
)
from teachonce.storage.files import open_storage
from teachonce.store.card import write_card
from teachonce.store.manifests import finalize_store, is_complete, put_manifests
from teachonce.store.plan import Plan
from teachonce.store.store import Store
from teachonce.terminal import plural, print_note

if TYPE_CHECKING:
    from teachonce.extraction.extractor import UnitExtractor
    from teachonce.models.classifier import Classifier


def extract(config: ExtractConfig) -> bool:
    """Make what is missing of the store; True when it is complete and its manifest is written.

    Raises CheckError when the gate does not hold, PlanMismatchError when the store was started with another plan,
    RecordError, LogitsError or StoreError, with the place, for what is wrong with a record, the teacher or a file, and
    StoppedError after SIGTERM.
    """
    with stopping_gently(config.grace_seconds):
        preparation, teacher = _prepare(config)
        if config.engine == "local" and config.num_workers > 1:
            # Every worker loads its own: this one would take half of the first worker's GPU.
            teacher = None
            _give_memory_back()
        plan = preparation.plan
        missing, num_units = preparation.missing, len(plan.shards) * len(plan.view_groups)
        index, count = config.worker_part()
        # Parts are taken of all units, not of the missing ones: those shrink while other workers are at it.
        units = [unit for unit in partition(all_units(plan), index, count) if unit in missing]
        if config.views is not None and config.views < plan.num_views:
            print_note(
                f"{config.out}: planned for {plan.num_views} views, more than --views {config.views}: all of them "
                "are extracted"
            )
        print_note(f"{config.out}: {num_units - len(missing)} of {num_units} units done, {len(units)} to do here")
        counts = _extract_units(config, preparation, teacher, units)
        if count > 1:
            missing = missing_units(config.out, plan)
            units = [unit for unit in others_permuted(all_units(plan), index, count) if unit in missing]
            if units:
                print_note(
                    f"{config.out}: own part done; {len(units)} units of other workers are missing and are processed "
                    "here"
                )
            counts += _extract_units(config, preparation, teacher, units)
        if count > 1 or counts.num_skipped or counts.num_twice:
            print_note(
                f"{config.out}: {counts.num_made} units made; {counts.num_skipped} skipped because other workers "
                f"had finished them, {counts.num_twice} processed twice"
            )
        return _finish(config, plan, has_new_files=counts.num_made > 0)


def _give_memory_back() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _prepare(config: ExtractConfig) -> tuple[Preparation, Classifier | None]:
    """What is to be made, and the teacher, where it was loaded here and not on a worker."""
    if config.engine == "local":
        from teachonce.extraction.prepare import prepare

        return prepare(config)
    one = replace(config.choose_engine(1, config.worker_gpus_wanted), num_workers=1, min_workers=1)
    ((_, preparation),) = run_jobs(_build_planner, [config], engine=one, report=lambda count: None)
    return preparation, None


def _build_planner(worker_index: int) -> Callable[[ExtractConfig, Advance], Preparation]:
    from teachonce.extraction.prepare import prepare

    return lambda config, report: prepare(config)[0]


def _extract_units(
    config: ExtractConfig, preparation: Preparation, teacher: Classifier | None, units: list[Unit]
) -> UnitCounts:
    plan = preparation.plan
    bundles = bundle_units(plan, units, config.batch_size)
    engine = config.choose_engine(len(bundles), config.worker_gpus_wanted)
    build: Callable[[int], Any]
    if teacher is not None and min(engine.num_workers, len(bundles)) <= 1:
        from teachonce.extraction.prepare import build_extractor

        build = partial(_same, build_extractor(config, preparation, teacher))
    else:
        num_threads = max(1, num_cores() // engine.num_workers) if engine.name == "local" else engine.worker_cpus
        build = partial(_build_extractor, config, preparation, num_threads)
    sizes = [num_records for _, num_records in plan.shards]
    total = sum(sizes[unit.shard] * unit.num_views for unit in units)
    left = Counter(unit.group for unit in units)
    counts = UnitCounts()
    if bundles:
        describe, part = partial(describe_units, plan), "{}/{}".format(*config.worker_part())
        start = describe_start(engine.num_workers, len(bundles))
        with (
            progress("extract", total, unit="views", phase=start) as advance,
            heartbeats(config.out, "extract", part) as beats,
        ):
            for bundle, made in run_jobs(beats.around(build, describe), bundles, engine=engine, report=advance):
                counts += made
                _count_group(config.out, plan, bundle, left)
    return counts


def _count_group(path: Path, plan: Plan, bundle: Sequence[Unit], left: Counter[tuple[int, int]]) -> None:
    """Write the manifest of what is complete when this process's part of a group of views is done."""
    group = bundle[0].group
    left[group] -= len(bundle)
    is_last = sum(left.values()) == 0
    if left[group] == 0 and not is_last:
        num_views = finalize_store(path)
        if num_views > group[1]:
            print_note(f"{path}: views 0 to {num_views - 1} are complete; training can begin with them")


def _build_extractor(
    config: ExtractConfig, preparation: Preparation, num_threads: int, worker_index: int
) -> UnitExtractor:
    from teachonce.extraction.prepare import build_extractor

    return build_extractor(config, preparation, num_threads=num_threads, worker_index=worker_index)


def _same(extractor: UnitExtractor, worker_index: int) -> UnitExtractor:
    return extractor


def _finish(config: ExtractConfig, plan: Plan, *, has_new_files: bool) -> bool:
    path = config.out
    open_storage(path).remove_temporaries()
    is_current = not has_new_files and is_complete(path, plan)
    if not is_current and not put_manifests(path).is_complete(plan):
        missing = len(missing_units(path, plan))
        if config.engine != "local" and missing:
            raise StoreError(
                f"{path}: {missing} units that workers finished are missing here: --out must be a folder that all "
                "nodes of the cluster share under this name"
            )
        print_note(f"{path}: {missing} units are left to other workers; the last one finishes it")
        return False
    remove_heartbeats(path)
    store = Store(path)
    write_card(store, config.teacher_license)
    print_note(
        f"{path}: complete: {plural(store.num_records, 'record')} x {plural(store.num_views, 'view')}, "
        f"{store.num_bytes():,} bytes ({store.num_bytes() / store.num_records / store.num_views:,.0f} a view)"
    )
    return True
