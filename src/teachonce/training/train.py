"""Training: a student learns from labels and from stored teacher logits.

    open the data -> resolve and agree with RUN/config.json -> fit (resuming) -> weights, report, result

The loop is Lightning's; what is ours is the joining (``data.dataset``), the loss (``student_module``), and the promises
around them: the same command resumes an interrupted run, within an epoch too (``interruption``), with exactly the curve
and weights of an uninterrupted one (bit for bit on a CPU), another configuration is refused, a finished run is not
redone. The weights kept are those of the last epoch, never chosen by the validation split; the best epoch's are
next to them for those who want them.

Every epoch sees every record once, in batches of one size, give or take one record (``EpochBatches``). Several nodes
need --out on a file system that they share.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from teachonce.data.loader import Loader, choose_threads
from teachonce.data.sampler import EpochBatches
from teachonce.engine.machine import keep_freed_memory, local_rank
from teachonce.engine.progress import phase
from teachonce.engine.stop_long_work import StopSignals, end_by_signal
from teachonce.errors import ConfigError, TeachonceError
from teachonce.evaluation.findings.per_class import balanced_accuracy
from teachonce.extras import require
from teachonce.models.classifier import Classifier, load_model, resolve_device
from teachonce.models.spec import parse_model_spec
from teachonce.options import to_json
from teachonce.runs.metrics import write_metrics
from teachonce.runs.run import (
    CHECKPOINTS_NAME,
    LAST_CHECKPOINT,
    LOCK_NAME,
    RESULT_NAME,
    WEIGHTS_NAME,
    Run,
    begin_run,
    check_run,
    find_trained,
    hash_config,
)
from teachonce.storage.files import atomic_write, open_storage, write_json
from teachonce.terminal import print_note
from teachonce.training.building import build_student_module, start_student
from teachonce.training.callbacks import (
    AtomicCheckpointIO,
    CurveLog,
    EpochCount,
    EpochRecorder,
    TeacherPassed,
    TrainingProgress,
)
from teachonce.training.config import TrainConfig, check_logger, check_num_records, default_options
from teachonce.training.data import (
    TrainingData,
    check_replayed_views,
    check_validation,
    open_training_data,
    warn_without_effect,
)
from teachonce.training.guards.online_stats import measure_online_stats
from teachonce.training.guards.store_warnings import (
    StoreStats,
    measure_store_stats,
    warn_before_training,
    warn_of_teacher,
)
from teachonce.training.identity import check_batch, resolve_run
from teachonce.training.interruption import EpochLoader, Interruption, TrainingStoppedError
from teachonce.training.ranks import Agreement, is_first_rank, is_rank, is_slurm_rank, run_ranks, world_shape
from teachonce.training.report import describe_result, summarize_classes, write_report
from teachonce.training.schedules import scale_lr
from teachonce.training.student_module import StudentModule

_PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def train(config: TrainConfig, *, on_epoch: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Train a student into ``config.out``, or finish what an interrupted call began; returns result.json's content.

    ``on_epoch``: called with the number of finished epochs after each that this process trains.
    With several devices this process starts one per device, unless torchrun or srun did. Raises ConfigError for
    settings that do not fit the data or the machine, PlanMismatchError where the run was started with others,
    TeachonceError where the loss is not finite, and RecordError, StoreError or LogitsError, with the place, for what is
    wrong in the data.
    """
    require("matplotlib", "jinja2", purpose="train, for its report,")
    check_logger(config.logger)
    device = resolve_device(config.device)
    _check_device(config, device)
    scale_lr(config, math.prod(world_shape(config.devices, config.num_nodes)))  # refused before anything is loaded
    if device.type == "cpu":
        keep_freed_memory()
    if config.devices * config.num_nodes > 1 and not is_rank():
        run_ranks(train, config)
        return Run(config.out).result or {}
    student = parse_model_spec(config.student)
    with _phase("loading the teacher") if config.teacher else nullcontext():
        teacher = _load_online_teacher(config, device)
    with _phase("opening the data"):
        data = open_training_data(
            config, student, None if teacher is None else teacher.preprocessing, page_locked=device.type == "cuda"
        )
    trainer, recorder = _build_trainer(config, device, len(data.train))
    if on_epoch is not None:
        trainer.callbacks.append(EpochCount(on_epoch))  # type: ignore[attr-defined]  # Lightning adds it
    check_validation(config, data, trainer.world_size)
    check_replayed_views(config, data.train)
    if trainer.is_global_zero:
        warn_without_effect(config, data.train)
    changed = check_batch(config, trainer.world_size)
    resolved = resolve_run(config, data, trainer.world_size, None if teacher is None else teacher.weights_sha256)
    check_run(config.out, resolved, default_options())
    begun = find_trained(config.out)
    finished = None if begun is None else begun.result
    if finished is not None:
        _remove_temporaries(trainer, config)
        _log(
            trainer,
            f"{config.out}: already finished ({describe_result(finished, data.train.num_classes)}); nothing to do",
        )
        return finished
    # The caller's random numbers are not touched here; those of the student are a function of the seed.
    with torch.random.fork_rng(devices=[]):  # of GPUs, to read the state alone would take memory on each
        with _phase("building the student"):
            network, weights_sha256, phrase = start_student(config, student, data)
            module = build_student_module(network, config, student, data, teacher, trainer.world_size)
        if weights_sha256 is not None and (begun is None or resolved["init_weights_sha256"] is not None):
            resolved["init_weights_sha256"] = weights_sha256
        if phrase:
            _log(trainer, phrase)
        if trainer.is_global_zero:
            _guard(config, data, module, trainer, recorder)
        # Not before the student is known to fit: a mistake should leave nothing behind.
        with _alone(config, trainer):
            if trainer.is_global_zero and begin_run(config.out, resolved, default_options()):
                _log(trainer, f"{config.out}: was started with other settings, of which nothing was kept: begins anew")
            if changed:
                _log(trainer, changed)
            with _quiet_lightning():
                _fit(config, trainer, module, data, recorder, _inputs_of_ranks(resolved, data))
            return _finish(config, trainer, module, recorder, data)


def _inputs_of_ranks(resolved: Mapping[str, Any], data: TrainingData) -> dict[str, int]:
    """What every rank must have found, each for itself."""
    return {"records": len(data.train), "views": data.num_views or 0, "hash of all": hash_config(resolved)}


def _phase(text: str) -> AbstractContextManager[None]:
    return phase("train", text) if is_first_rank() else nullcontext()


@contextmanager
def _alone(config: TrainConfig, trainer: lightning.Trainer) -> Iterator[None]:
    """Hold the run, for all ranks of this training; raises TeachonceError where another training does, or did."""
    if not trainer.is_global_zero:
        yield  # the first rank's end is everyone's
        return
    storage = open_storage(config.out)
    with storage.lock(LOCK_NAME, "trained"):
        if storage.has(RESULT_NAME):
            raise TeachonceError(f"{config.out}: another process finished it meanwhile; run again to see its result")
        yield


def _fit(
    config: TrainConfig,
    trainer: lightning.Trainer,
    module: StudentModule,
    data: TrainingData,
    recorder: EpochRecorder,
    inputs: Mapping[str, int],
) -> None:
    rank, world_size = trainer.global_rank, trainer.world_size
    order = EpochBatches(
        len(data.train),
        config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        paired=config.pairs_records,
        accumulate=config.accumulate,
        shuffle_shards=config.shuffle_shards,
        shard_sizes=[shard.num_records for shard in data.train.records.shards],
        classes=data.classes if config.sampler == "balanced" else None,
    )
    module.loss_weight = order.loss_weight
    num_threads = choose_threads(config.num_workers, trainer.strategy.root_device.type)
    loader = EpochLoader(Loader(data.train, order, num_threads))
    validation = None
    if data.validation is not None:
        validation = data.validation.batches(
            batch_size=config.batch_size, rank=rank, world_size=world_size, num_workers=num_threads
        )
    resume = config.out / LAST_CHECKPOINT if open_storage(config.out).has(LAST_CHECKPOINT) else None
    late = (
        f"training: no checkpoint could be written within {config.grace_seconds:g} seconds of SIGTERM "
        "(--grace-seconds); the previous one is kept. Run the same command to resume"
    )
    patience = "training: stopping after this step; press Ctrl+C again to stop now, without a checkpoint"
    is_first = trainer.is_global_zero
    with StopSignals(
        config.grace_seconds, late=late if is_first else "", patience=patience if is_first else ""
    ) as signals:
        agreement = Agreement(trainer.strategy.root_device, world_size)
        interruption = Interruption(config, signals, agreement, recorder, loader, data.train, inputs)
        trainer.callbacks.append(interruption)  # type: ignore[attr-defined]  # Lightning adds it
        module.after_update = partial(interruption.after_update, trainer, module)
        try:
            with _fastest_algorithms(device=trainer.strategy.root_device):
                trainer.fit(module, loader, validation, ckpt_path=resume)
        except TrainingStoppedError as stopped:
            _log(trainer, f"training: interrupted {stopped.place}; checkpoint saved. Run the same command to resume")
            raise end_by_signal(stopped.number) from None
        except SystemExit as error:
            # What Lightning makes of a second Ctrl+C.
            raise KeyboardInterrupt from error


@contextmanager
def _fastest_algorithms(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its algorithms, but not for an extraction after it, which is to have those of every other one."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _build_trainer(
    config: TrainConfig, device: torch.device, num_records: int
) -> tuple[lightning.Trainer, EpochRecorder]:
    devices, num_nodes = world_shape(config.devices, config.num_nodes)
    world_size = devices * num_nodes
    check_num_records(config, num_records, world_size)
    recorder = EpochRecorder(config.out, config.epochs, config.checkpoint_epochs)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if "TORCHELASTIC_RUN_ID" not in os.environ and (not is_slurm_rank() or "LOCAL_RANK" in os.environ):
        plugins.append(LightningEnvironment())  # alone, or our own ranks, whatever cluster they run on
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=devices if device.index is None else [device.index],
            num_nodes=num_nodes,
            # ``student_module`` averages running statistics at the end of an epoch: none are the first rank's.
            strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if world_size > 1 else "auto",
            precision=_PRECISIONS[config.precision],  # type: ignore[arg-type]  # Lightning lists literals
            max_epochs=config.epochs,
            check_val_every_n_epoch=config.validation_epochs,
            gradient_clip_val=config.clip_norm,
            accumulate_grad_batches=config.accumulate,
            callbacks=[
                TrainingProgress(config.epochs, num_records, recorder),
                *([] if config.logger == "none" else [CurveLog(config.logger, config.out, to_json(config), recorder)]),
                recorder,
            ],
            plugins=plugins,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=tempfile.gettempdir(),  # not the run's folder: that may be remote
        )
    _take_over_signals(trainer)
    return trainer, recorder


def _take_over_signals(trainer: lightning.Trainer) -> None:
    """Keep Lightning's hands off signals: ``interruption`` does what is to be done.

    Lightning's handler of SIGTERM sends a message to the other ranks, which wait for none where the signal is one
    rank's alone; under SLURM it writes checkpoints of its own. And before every batch all ranks ask the first one,
    which on GPUs means to wait for the device each time.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _guard(
    config: TrainConfig, data: TrainingData, module: StudentModule, trainer: lightning.Trainer, recorder: EpochRecorder
) -> None:
    """Warn of what each teacher is about to teach, and watch whether the student passes the best of them."""
    num_student = sum(parameter.numel() for parameter in module.student.parameters())
    best: StoreStats | None = None
    for store in data.stores:
        stats = measure_store_stats(store, config.temperature)
        warn_before_training(store, stats, config.temperature, num_student)
        if not math.isnan(stats.top1) and (best is None or stats.top1 > best.top1):  # of images that have labels
            best = stats
    is_seen = data.train.views.is_replay
    if module.online is not None:
        teacher = module.online.teacher
        stats = measure_online_stats(data.train, module.online, config.temperature, config.batch_size)
        num_teacher = None if teacher.module is None else sum(part.numel() for part in teacher.module.parameters())
        warn_of_teacher(
            f"--teacher {config.teacher}",
            stats,
            config.temperature,
            num_classes=data.train.num_classes,
            num_teacher=num_teacher,
            num_student=num_student,
        )
        best, is_seen = None if math.isnan(stats.top1) else stats, True
    # Both are then accuracies on the same views: without a mix, and of every record once.
    is_comparable = config.sampler == "uniform" and config.mixup_alpha == 0 and not data.train.views.has_mix
    if best is not None and is_seen and module.has_labels and is_comparable:
        guard = TeacherPassed(best.top1, best.num_judged, recorder)
        trainer.callbacks.insert(0, guard)  # type: ignore[attr-defined]  # Lightning adds it


def _load_online_teacher(config: TrainConfig, device: torch.device) -> Classifier | None:
    if config.teacher is None or config.temperature == 0:
        return None
    if str(device) == "cuda":  # a scheduler may show each process its own GPU alone, as number 0
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    teacher = load_model(config.teacher, device=device, or_cpu=config.device == "auto")
    if not teacher.preprocessing.antialias:
        raise ConfigError(
            f"--teacher {config.teacher}: its pixels are not rounded (antialias=0): no views to share with a student"
        )
    return teacher


def _finish(
    config: TrainConfig,
    trainer: lightning.Trainer,
    module: StudentModule,
    recorder: EpochRecorder,
    data: TrainingData,
) -> dict[str, Any]:
    """Weights, result and report; the result file comes last, as it says that the run is finished."""
    module.check_weights(with_statistics=True)  # those of a checkpoint that an older version has written
    rows = recorder.rows
    last, best = rows[-1], recorder.best_row
    classes = summarize_classes(recorder.class_sums, data.validation)
    result = {
        "top1": last["validation_top1"],
        "top5": last["validation_top5"],
        "ece": last["validation_ece"],
        "balanced_accuracy": balanced_accuracy(classes),
        "best_top1": None if best is None else best["validation_top1"],
        "best_epoch": None if best is None else best["epoch"],
        "train_loss": last["train_loss"],
        "train_top1": last["train_top1"],
        "validation_loss": last["validation_loss"],
        "epochs": last["epoch"],
        "steps": last["step"],
        "seconds": sum(float(row["seconds"] or 0) for row in rows),
        # The first epoch starts workers and warms caches; the median does not see it.
        "images_per_second": statistics.median(float(row["images_per_second"] or 0) for row in rows),
        "student": config.student,
        "num_parameters": sum(parameter.numel() for parameter in module.eval_model.parameters()),
        "store": "+".join(map(str, config.store)) or None,
        "store_views": data.num_views,
        "missing_records": data.num_missing,
        "relabeled_records": data.train.num_relabeled,
        "kd_temp": config.temperature,
        "shuffle_shards": config.shuffle_shards,
        "seed": config.seed,
    }
    if trainer.is_global_zero:
        with atomic_write(config.out / WEIGHTS_NAME) as file:
            file.write(module.weights())
        # The last epoch's row is missing where a kill came between the checkpoint that has it and this file.
        write_metrics(config.out, rows)
        write_report(config.out, result, classes)
        write_json(config.out / RESULT_NAME, result)
    _remove_temporaries(trainer, config)
    _log(trainer, f"{config.out}: finished: {describe_result(result, data.train.num_classes)}")
    return result


def _remove_temporaries(trainer: lightning.Trainer, config: TrainConfig) -> None:
    if trainer.is_global_zero:
        for folder in ("", CHECKPOINTS_NAME):
            open_storage(config.out).remove_temporaries(folder)


def _check_device(config: TrainConfig, device: torch.device) -> None:
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16: needs a GPU; use float32 or bf16 on the CPU")
    if config.devices > 1 and device.index is not None:
        raise ConfigError(f"--device {config.device} with --devices {config.devices}: give only the kind, such as cuda")
    if config.devices > 1 and device.type == "mps":
        raise ConfigError(f"--devices {config.devices}: mps has only one device")
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(f"--devices {config.devices}: this machine has {torch.cuda.device_count()} CUDA devices")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without tips and statements of the obvious; warnings that a user can act on still come."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Those that it means are processes.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # --device is too.
        warnings.filterwarnings("ignore", "GPU available but not used.*")
        # Nothing that an option could follow; convolutions, the most of it, are in TF32.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores .* available but not enabled.*")
        # Said by --validation-split none already.
        warnings.filterwarnings("ignore", ".*but have no `val_dataloader`.*")
        # ``interruption`` sees to it that it begins at the right batch.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        # Lightning calling torch's older names for its own purposes.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _log(trainer: lightning.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print_note(text)
