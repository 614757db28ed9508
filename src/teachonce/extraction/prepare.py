"""What comes before the first unit: the data opened, the teacher loaded, the gate, agreement with the store's plan.

All of it happens where a teacher can be loaded, which a cluster's login node need not be: on a worker, whose
``Preparation`` goes back to the program. So does what makes a worker: ``build_extractor``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from teachonce.codecs.registry import build_codec
from teachonce.engine.machine import local_rank, local_ranks, num_cores, slurm_step_tasks
from teachonce.engine.progress import phase
from teachonce.engine.stop_between_units import check_stop
from teachonce.errors import CheckError, ConfigError, PlanMismatchError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extractor import UnitExtractor
from teachonce.extraction.gate import Gate
from teachonce.extraction.plan_source import ExtractedData, open_plan_source
from teachonce.extraction.unit_result import write_missing_records
from teachonce.extraction.units import Preparation, missing_units
from teachonce.models.classifier import Classifier, load_model, resolve_device
from teachonce.models.own_classes import resolve_model_offset
from teachonce.models.spec import ModelSpec
from teachonce.pixels.view_sources import warn_of_own_class_partners
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource, choose_data_classes, require_labels
from teachonce.store.begin import begin_store, check_agrees, check_store_folder
from teachonce.store.join import StoreJoin
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Plan, describe_data, group_views
from teachonce.store.plan_files import holds_store, put_config
from teachonce.store.repair import remove_damaged, report_repaired
from teachonce.store.store import Store
from teachonce.store.tables import count_hits
from teachonce.views.policy import build_policy, policy_to_json

MIN_SAMPLES = 4
"""Samples of each view file; of few shards more, so that a group of views has about ``SAMPLES_A_GROUP``."""
SAMPLES_A_GROUP = 256
MAX_SAMPLED_PART = 1 / 16
"""Of a shard's records: dense logits of more of them would be most of a small store."""


def prepare(config: ExtractConfig) -> tuple[Preparation, Classifier]:
    """What is to be made, after the store was started or agreed with; and the teacher, which has passed the gate.

    Raises CheckError when the gate does not hold, and PlanMismatchError when the store was started with another plan.
    """
    check_store_folder(config.out)
    with phase("extract", "opening the data"):
        source = open_records(config.data, config.split, config, with_boxes=draws_by_boxes(config))
    if config.views_of is None:
        warn_of_own_class_partners(build_policy(config.policy, config), source, config.data)
    if config.expect_top1 is not None:
        require_labels(source, "--expect-top1", "leave it out")
    with phase("extract", "loading the teacher"):
        own_device = _own_device(config.device)
        teacher = load_model(
            config.teacher,
            device=own_device,
            precision=config.precision,
            compile=config.compile,
            or_cpu=config.device == "auto",
        )
    check_stop()
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
            with phase("extract", "comparing every byte of the store's files with their hashes"):
                damaged = remove_damaged(config.out)
            report_repaired(config.out, damaged)
        # What a kill, or a repair, left without its manifest: data that has grown is compared with the index.
        finalize_store(config.out)
    plan = begin_store(config.out, plan, config.views_per_file, ExtractedData(config.out, source))
    source = open_plan_source(config.out, plan, source)
    if config.repair:
        write_missing_records(config.out, plan, source)
    missing = missing_units(config.out, plan)
    if missing:
        put_config(config.out, config.to_repeat())
    if missing:
        if not is_gated:
            gate.check(teacher, source, plan.class_space.offset)
    elif config.expect_top1 is not None:
        if plan.read_policy()[0].is_random:
            gate.check(teacher, source, plan.class_space.offset)  # stored views are no center crops
        else:
            _check_stored_top1(config)
    # Where ``auto`` led: a backend may have no GPU where PyTorch has one. Workers choose of all GPUs, not of this one.
    device = teacher.device.type if own_device != config.device else str(teacher.device)
    return Preparation(plan, source, missing, device), teacher


def _own_device(name: str) -> str:
    """Of processes that torchrun or srun started, each its own GPU, where the device does not say which."""
    if str(resolve_device(name)) != "cuda" or not _is_one_of_several():
        return name
    return f"cuda:{local_rank() % torch.cuda.device_count()}"


def _is_one_of_several() -> bool:
    return "LOCAL_RANK" in os.environ or slurm_step_tasks(os.environ) > 0


def build_extractor(
    config: ExtractConfig,
    preparation: Preparation,
    teacher: Classifier | None = None,
    *,
    num_threads: int = 0,
    worker_index: int = 0,
) -> UnitExtractor:
    """A worker: with the loaded teacher, or, in a process of its own with ``num_threads``, with one that it loads."""
    if teacher is None:
        torch.set_num_threads(num_threads)
        teacher = load_model(
            config.teacher,
            device=_worker_device(preparation.device, worker_index, config.num_workers),
            precision=config.precision,
            compile=config.compile,
        )
    plan, source, *_ = preparation
    if plan.teacher.get("weights_sha256", teacher.weights_sha256) != teacher.weights_sha256:
        raise PlanMismatchError(
            f"--teacher {config.teacher}: its weights have changed since the extraction began, as those of a run do "
            "while it is trained; restore them, or extract into another store when it has finished"
        )
    threads = config.decode_threads or num_threads or max(1, num_cores() // local_ranks())
    views_of = open_views_of(config, source)
    return UnitExtractor(config.out, plan, source, teacher, config.batch_size, threads, views_of, config.profile)


def build_plan(config: ExtractConfig, source: RecordSource, teacher: Classifier) -> Plan:
    """The plan of an extraction; raises ConfigError where teacher and data have no explicit common class space."""
    names = None if source.classes is None else source.classes.names
    data_classes = choose_data_classes(config.num_classes, source)
    asks_for_classes = source.labeled != "none"
    if asks_for_classes and data_classes is None and config.offset is None and teacher.default_offset is None:
        raise ConfigError(
            f"{config.data}: the number of classes is unknown (no classes.json): give --num-classes (ImageNet "
            "TFRecords: 1001) or --offset (the data label of the teacher's class 0)"
        )
    offset = resolve_model_offset(teacher, names, data_classes, config.offset)
    views_of = open_views_of(config, source)
    drawn = build_policy(config.policy, config)
    is_random = views_of is not None or drawn.is_random
    if is_random and not teacher.preprocessing.antialias:
        raise ConfigError(
            f"--teacher {config.teacher}: its preprocessing has no antialiasing, while views are antialiased and "
            "rounded to 8 bits; add ',interpolation=bilinear,antialias=1' for random views, or use --policy "
            "center"
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
    """The store of ``--views-of``, checked to be of this data and to have the views requested; None without."""
    if config.views_of is None:
        return None
    store = Store(config.views_of)
    StoreJoin(store, source, advice=f"give the data of {store.path}, or extend that store by this data first")
    if not store.policy.is_random:
        raise StoreError(f"{store.path}: policy {store.policy.name} has no random views; extract it with --policy crop")
    if config.views is not None:
        Store(config.views_of, num_views=config.views)  # raises for one that has fewer
    return store


def teacher_identity(spec: ModelSpec) -> str:
    """What a SPEC names, wherever its files are; the weights themselves are identified by their hash."""
    name = f":{spec.name}" if spec.kind in ("timm", "torchvision") else ""
    outputs = [f",{key}={spec.options[key]}" for key in ("signature", "output", "probs") if key in spec.options]
    return spec.kind + name + "".join(outputs)


def _num_parameters(teacher: Classifier) -> int | None:
    return None if teacher.module is None else sum(parameter.numel() for parameter in teacher.module.parameters())


def _worker_device(device: str, worker_index: int, num_workers: int) -> str:
    """One of the GPUs that this process sees, in turn: all of a machine's, or those that a cluster gave it.

    Where torchrun or srun started several processes with workers each, these have the next ones.
    """
    resolved = resolve_device(device)
    if str(resolved) != "cuda":
        return str(resolved)
    first = local_rank() * num_workers if _is_one_of_several() else 0
    return f"cuda:{(first + worker_index) % torch.cuda.device_count()}"


def _check_stored_top1(config: ExtractConfig) -> None:
    """The gate of a complete store: by its own logits. Raises CheckError below ``expect_top1``."""
    store = Store(config.out, is_partial=True)
    num_hits = 0
    for shard in range(len(store.shards)):
        logits = store.read_logits(shard, 0, slice(None))
        num_hits += count_hits(logits, store.read_labels(shard), store.class_space.offset)
    top1 = num_hits / store.num_records
    assert config.expect_top1 is not None
    if top1 < config.expect_top1:
        raise CheckError(
            f"{config.out}: is complete, and its logits have top-1 {top1:.3f}, expected at least "
            f"{config.expect_top1}; extract with another teacher or other settings into another --out"
        )
