"""What a student is trained and evaluated on, and whether a configuration fits it.

Opens the records, the store and the validation split in the student's class space, derives the evaluation
preprocessing, and puts down in ``resolve_run`` everything that the numbers of a run depend on.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import xxhash

from teachonce.data.dataset import EvalDataset, KDDataset
from teachonce.errors import ConfigError
from teachonce.models.fine_tuning import InitialRun, hash_classes, initial_preprocessing, open_initial_run
from teachonce.models.spec import override_preprocessing, parse_model_spec
from teachonce.options import to_json
from teachonce.pixels.in_memory import RecordsInMemory
from teachonce.pixels.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource
from teachonce.runs.run import find_run
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.versions import library_versions
from teachonce.views.options import ViewOptions
from teachonce.views.policy import CropPolicy, build_policy

_STUDENT_OPTIONS = {"weights", "pretrained", "interpolation", "mean", "std", "range"}


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What is trained and evaluated on, in the student's class space."""

    train: KDDataset
    validation: EvalDataset | None
    preprocessing: Preprocessing
    data_classes: int
    classes_hash: str | None = None
    """``hash_classes`` of the student's classes, where the data knows their names."""
    initial: InitialRun | None = None
    """The run that the student starts from."""


def open_training_data(config: TrainConfig, online: Preprocessing | None = None) -> TrainingData:
    """The data of a training; raises ConfigError, StoreError or LogitsError where its parts do not fit together.

    ``online`` is what an online teacher wants to see.
    """
    source = open_records(config.data, config.split)
    initial = None if config.init is None else open_initial_run(config.init, config.student)
    preprocessing = student_preprocessing(config, initial)
    stores = open_stores(config) if config.temperature > 0 else []
    use_record_logits = config.logits == "records" and config.temperature > 0
    policy = build_policy(config.policy, config)
    assert isinstance(policy, CropPolicy)
    if config.in_memory:
        if policy.needs_boxes:
            source.read_boxes()
        source = RecordsInMemory(source, with_logits=use_record_logits)
    if online is None:
        # Without an online teacher, mixup is of the batch (``mixup``); here it would be of the views.
        policy = dataclasses.replace(policy, mix=None)

    def build(class_space: ClassSpace | None) -> KDDataset:
        return KDDataset(
            source,
            size=config.size,
            seed=config.seed,
            store=stores or None,
            use_record_logits=use_record_logits,
            class_space=class_space,
            policy=policy,
            interpolation=preprocessing.interpolation if preprocessing.antialias else "bilinear",
            temperature=config.temperature or 1.0,
            view_order=config.view_order,
            own_views=config.own_views,
            online=online,
            view_seed=config.view_seed,
            as_stored=True,
        )

    data_classes = config.num_classes or build(None).num_classes
    if not 0 <= config.offset < data_classes - 1:
        raise ConfigError(
            f"--offset {config.offset}: expected 0 to {data_classes - 2}, the data has {data_classes} classes"
        )
    space = ClassSpace(num_classes=data_classes - config.offset, offset=config.offset)
    validation = _open_validation(config, source)
    return TrainingData(
        train=build(space),
        validation=None if validation is None else EvalDataset(validation, preprocessing, space),
        preprocessing=preprocessing,
        data_classes=data_classes,
        classes_hash=None if source.classes is None else hash_classes(source.classes.names[config.offset :]),
        initial=initial,
    )


def open_stores(config: TrainConfig) -> list[Store]:
    """The stores of a training, each cut to the views that it uses.

    A run that was begun while a store was growing goes on with the views that it began with.
    """
    begun = find_run(config.out)
    stores = [Store(path) for path in config.store]
    whole = min((store.num_views for store in stores), default=0)
    # More than there are: another store, which check_run refuses.
    num_views = config.views or min((begun and begun.store_views) or whole, whole)
    return [Store(path, num_views=num_views) for path in config.store]


def student_preprocessing(config: TrainConfig, initial: InitialRun | None = None) -> Preprocessing:
    """How images are evaluated: ``eval_size``, ``eval_resize`` or ``eval_crop_frac``, and the SPEC's or its library's
    mean, std and filter, or those of the run that the student starts from.

    The filter is that of the views too, unless it is one without antialiasing (TensorFlow 1's ``tf1_bilinear``): views
    are 8-bit pixels, which teachers share, and such a filter is the evaluation's alone.
    """
    spec = parse_model_spec(config.student)
    unknown = sorted(spec.options.keys() - _STUDENT_OPTIONS)
    if unknown:
        raise ConfigError(
            f"--student {config.student}: {unknown[0]}= is not for a student, which has --size, --eval-size, "
            f"--eval-resize, --offset and --num-classes; its SPEC takes {', '.join(sorted(_STUDENT_OPTIONS))}"
        )
    size_px = config.eval_size or config.size
    resize_px = config.eval_resize or math.floor(size_px / config.eval_crop_frac + 1e-9)
    if initial is not None:
        return initial_preprocessing(initial, size_px, resize_px, config.student)
    mean, std = _library_mean_std(spec.kind, spec.name)
    return override_preprocessing(Preprocessing(size_px=size_px, resize_px=resize_px, mean=mean, std=std), spec)


def resolve_run(
    config: TrainConfig, data: TrainingData, world_size: int, online_sha256: str | None = None
) -> dict[str, Any]:
    """The content of config.json: the configuration, what it came to, and what the data and the store are."""
    return {
        **to_json(config),
        "kd_temp": config.temperature,
        "eval_size": data.preprocessing.size_px,
        "num_classes": data.train.num_classes,
        "offset": data.train.class_space.offset,
        "data_classes": data.data_classes,
        "classes_hash": data.classes_hash,
        "init_weights_sha256": None if data.initial is None else data.initial.weights_sha256,
        "preprocessing": data.preprocessing.to_json(),
        "train_records": _identify(data.train.source),
        "validation_records": None if data.validation is None else _identify(data.validation.source),
        "store_fingerprint": _join([store.fingerprint for store in data.train.stores]),
        "store_views": data.train.num_views or None,
        "online_weights_sha256": online_sha256,
        "world_size": world_size,
        "versions": library_versions(),
    }


def warn_without_effect(config: TrainConfig, dataset: KDDataset) -> None:
    """Warn, once, of settings that were given and change nothing."""
    useless = {
        "is not read at --kd-temp 0": [
            name for name in ("store", "logits") if config.temperature == 0 and getattr(config, name) is not None
        ],
        "needs teacher logits and --kd-temp > 0": ["kd_weight"] if config.temperature == 0 else [],
        "needs a --store": [] if dataset.stores else ["views", "view_order", "own_views", "store_weights"],
        "needs --kd-weight > 0": ["kd_temp"] if config.kd_weight == 0 else [],
        "needs --label-weight > 0": ["label_smoothing"] if config.label_weight == 0 else [],
        "is for --optimizer sgd": ["momentum"] if config.optimizer != "sgd" else [],
        "is for --mixup-alpha without an online --teacher": [] if config.mixes_batches else ["mixup_type"],
        "needs --object-covered": [] if config.object_covered > 0 or dataset.replays_views else ["object_boxes"],
        "is not read where --eval-resize is given": ["eval_crop_frac"] if config.eval_resize is not None else [],
        **_idle_schedule_options(config),
        "needs a --validation-split": [] if _has_validation(config) else ["validation_data"],
        "does nothing where the store's views are replayed": (
            ["policy", *(field.name for field in dataclasses.fields(ViewOptions))] if dataset.replays_views else []
        ),
        "is for an online --teacher": ["mix_prob", "cutmix_prob"] if config.teacher is None else [],
    }
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for reason, names in useless.items():
        for name in names:
            if getattr(config, name) != defaults[name]:
                flag = f"--{name.replace('_', '-')} {getattr(config, name)}"
                warnings.warn(f"{flag} has no effect: it {reason}", stacklevel=3)
    if dataset.stores and isinstance(dataset.stores[0].policy, CropPolicy):
        broken = [
            "--own-views: the student does not see what the teacher saw" if config.own_views else "",
            "--mixup-alpha: the teacher never saw the mixed images (extract --mixup-alpha shows them to it)"
            if config.mixup_alpha > 0
            else "",
        ]
        for why in filter(None, broken):
            warnings.warn(f"{why}; this breaks the agreement that stored views are for", stacklevel=3)


def _idle_schedule_options(config: TrainConfig) -> dict[str, list[str]]:
    """The options of other schedules than the one in force, by the reason why they do nothing."""
    owners = {
        "cosine": ["warmup_prefix"],
        "cosine or polynomial": ["min_lr"],
        "step": ["step_epochs", "step_rate"],
        "exponential or polynomial": ["decay_epochs"],
        "exponential": ["decay_rate"],
        "piecewise": ["boundary_epochs", "boundary_rates"],
    }
    return {
        f"is for --schedule {schedules}": [] if config.schedule in schedules.split(" or ") else names
        for schedules, names in owners.items()
    }


def _open_validation(config: TrainConfig, source: RecordSource) -> RecordSource | None:
    if not _has_validation(config):
        return None
    folder = config.validation_data or config.data
    try:
        validation = open_records(folder, str(config.validation_split))
    except ConfigError as error:
        raise ConfigError(f"{error}; for the evaluation: --validation-split and --validation-data, or none") from error
    if source.classes and validation.classes and source.classes.names != validation.classes.names:
        raise ConfigError(
            f"{folder}: split {config.validation_split} has {len(validation.classes.names)} classes, the training data "
            f"{len(source.classes.names)}, with other names; give the validation split of this data"
        )
    return validation


def _has_validation(config: TrainConfig) -> bool:
    return config.validation_split not in (None, "none")


def _library_mean_std(kind: str, name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if kind == "timm":
        from timm.models import get_pretrained_cfg

        entry = get_pretrained_cfg(name)
        if entry is not None:
            return tuple(entry.mean), tuple(entry.std)  # type: ignore[return-value]
    return IMAGENET_MEAN, IMAGENET_STD


def _join(fingerprints: list[str]) -> str | None:
    return "+".join(fingerprints) or None


def _identify(source: RecordSource) -> dict[str, Any]:
    described = source.describe()
    shards = xxhash.xxh3_64_hexdigest(repr(described["shards"]).encode())
    return {**described, "shards": shards, "num_records": source.num_records}
