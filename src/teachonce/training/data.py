"""What a student is trained and evaluated on, and whether a configuration fits it.

Opens the records, the store and the validation split in the student's class space, and derives the evaluation
preprocessing.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teachonce.data.dataset import EvalDataset, KDDataset, find_num_classes
from teachonce.data.fetch_ahead import check_cache_size
from teachonce.data.logit_sources import LogitSource, RecordLogits
from teachonce.data.stored_logits import StoredLogits
from teachonce.errors import ConfigError, TeachonceError
from teachonce.models.fine_tuning import InitialRun, initial_preprocessing, open_initial_run
from teachonce.models.spec import BACKBONE_OPTIONS, TRAINING_OPTIONS, ModelSpec, override_preprocessing
from teachonce.models.torch_backend import library_mean_std
from teachonce.options import option_arguments
from teachonce.pixels.in_memory import RecordsInMemory
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.view_sources import DrawnViews, OwnViews, ViewSource, warn_of_own_class_partners
from teachonce.records.class_space import ClassSpace
from teachonce.records.class_table import describe_other_names, hash_classes, shown_names
from teachonce.records.data_keys import read_all_labels
from teachonce.records.discovery import open_records
from teachonce.records.image_folder import IMAGE_FILE_FORMATS
from teachonce.records.source import RecordSource, require_labels
from teachonce.runs.run import find_trained
from teachonce.storage.address import is_remote
from teachonce.storage.files import open_storage
from teachonce.storage.remote.cache import use_cache
from teachonce.store.join import known_records
from teachonce.store.manifests import visible_views
from teachonce.store.plan_files import read_plan
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.terminal import plural
from teachonce.training.config import TrainConfig, TrainingOptions
from teachonce.training.ranks import is_first_rank
from teachonce.views.options import ViewOptions
from teachonce.views.order import ViewOrder
from teachonce.views.policy import CenterPolicy, CropPolicy, Policy, build_policy, view_options

_STUDENT_OPTIONS = {"weights", "part", "pretrained", "interpolation", "mean", "std", "range"}
_STUDENT_OPTIONS |= {*TRAINING_OPTIONS, *BACKBONE_OPTIONS}


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What is trained and evaluated on, in the student's class space."""

    train: KDDataset
    validation: EvalDataset | None
    preprocessing: Preprocessing
    data_classes: int
    class_names: tuple[str, ...] | None = None
    """Names of the student's classes by output, where the data has names; fewer than outputs where it has fewer."""
    class_texts: tuple[str, ...] | None = None
    """What people see of these names, where it is something else."""
    initial: InitialRun | None = None
    """The run that the student starts from."""
    classes: NDArray[np.int32] | None = None
    """The student's class of each record [N], where weights or draws are balanced by it."""
    num_missing: int = 0
    """Records that are left out, as the stores do not know them."""

    @property
    def classes_hash(self) -> str | None:
        """``hash_classes`` of the student's classes, where the data knows their names."""
        return None if self.class_names is None else hash_classes(self.class_names)

    @property
    def stored(self) -> StoredLogits | None:
        """The stored logits, where there are any."""
        return self.train.logits if isinstance(self.train.logits, StoredLogits) else None

    @property
    def stores(self) -> list[Store]:
        """The stores of the teachers."""
        return [] if self.stored is None else self.stored.stores

    @property
    def num_views(self) -> int | None:
        """Views of each record that the stores give; None without stores."""
        return None if self.stored is None else self.stored.num_views


def open_training_data(
    config: TrainConfig, student: ModelSpec, online: Preprocessing | None = None, *, page_locked: bool = False
) -> TrainingData:
    """The data of a training; raises ConfigError, StoreError or LogitsError where its parts do not fit together.

    ``online`` is what an online teacher wants to see; ``page_locked`` is for a student on a CUDA device.
    """
    policy = build_policy(config.policy, config)
    is_cached = any(map(is_remote, config.read_locations()))
    cache = use_cache(config.cache, config.cache_bytes()) if is_cached else None
    source = open_records(config.data, config.split, config, with_boxes=policy.needs_boxes)
    if cache is not None and source.is_fetched:
        check_cache_size(source, config.shuffle_shards, cache.max_bytes)
    is_far = source.format in IMAGE_FILE_FORMATS and open_storage(config.data).requests_at_once > 1
    if is_far and not config.in_memory:
        warnings.warn(
            f"{config.data}: each image is a file, which no cache keeps: every epoch requests them all; make records "
            "of them (teachonce records), or give --in-memory",
            stacklevel=3,
        )
    if config.uses_labels:
        require_labels(source, "the label loss", "train on the teacher alone with --label-weight 0")
    for option, value in (("--class-weights", config.class_weights), ("--sampler", config.sampler)):
        if value == "balanced":
            require_labels(source, f"{option} {value}", "leave it out")
    initial = None if config.init is None else open_initial_run(config.init, student)
    preprocessing = student_preprocessing(student, *config.eval_sides_px, initial)
    stores = open_stores(config) if config.temperature > 0 else []
    has_record_logits = config.logits == "records" and config.temperature > 0
    num_missing = 0
    if config.own_views and stores and stores[0].policy.mix is not None:
        raise ConfigError(
            f"--own-views: the views of --store {stores[0].path} are mixed with other images, and its answers are of "
            "no other view; replay them, or give a store without mixing"
        )
    if stores and config.missing == "skip":
        source, unknown = known_records(stores, source)
        num_missing = unknown.count
        if num_missing:
            warnings.warn(unknown.describe("they are left out (--missing skip)"), stacklevel=3)
    if config.in_memory:
        source = RecordsInMemory(source, with_logits=has_record_logits)
    order = ViewOrder(num_views=stores[0].num_views, kind=config.view_order, seed=config.seed) if stores else None
    # Of --own-views the training warns itself.
    logits: LogitSource | None = RecordLogits() if has_record_logits else None
    if stores:
        logits = StoredLogits(stores, order, other_views=config.own_views)
    data_classes = config.num_classes or find_num_classes(source, logits)
    if data_classes < 2:
        raise ConfigError(
            f"{config.data}: has {data_classes} class, expected at least 2; if some classes have no records, give "
            "--num-classes"
        )
    if not 0 <= config.offset < data_classes - 1:
        raise ConfigError(
            f"--offset {config.offset}: expected 0 to {data_classes - 2}, the data has {data_classes} classes"
        )
    space = ClassSpace(num_classes=data_classes - config.offset, offset=config.offset)
    validation = _open_validation(config, source)
    evaluated = None if validation is None else EvalDataset(validation, preprocessing, space, page_locked=page_locked)
    if evaluated is not None and is_first_rank() and find_trained(config.out) is None:
        # Not after an epoch: the run would be lost, as what mends labels is another configuration.
        evaluated.check_labels()
    is_balanced = "balanced" in (config.class_weights, config.sampler)
    train = KDDataset(
        source,
        _choose_views(config, policy, source, stores, order, is_online=online is not None),
        logits,
        size=config.size,
        interpolation=preprocessing.interpolation if preprocessing.antialias else "bilinear",
        class_space=space,
        online=online,
        page_locked=page_locked,
    )
    names = None if source.classes is None else source.classes.names[config.offset :]
    shown = shown_names(source.classes)
    texts = None if shown is None else shown[config.offset :]
    return TrainingData(
        train=train,
        validation=evaluated,
        preprocessing=preprocessing,
        data_classes=data_classes,
        class_names=names,
        class_texts=None if texts == names else texts,
        initial=initial,
        classes=read_all_labels(source) - config.offset if is_balanced else None,
        num_missing=num_missing,
    )


def _choose_views(
    config: TrainConfig,
    policy: Policy,
    source: RecordSource,
    stores: list[Store],
    order: ViewOrder | None,
    *,
    is_online: bool,
) -> ViewSource:
    """An online teacher's views are drawn as its extraction would; stored ones are replayed; else the student's own."""
    if is_online:
        return DrawnViews(policy, config.seed if config.view_seed is None else config.view_seed, source)
    if stores and stores[0].policy.is_random and not config.own_views:
        return StoredViews(stores[0], order)
    # Without an online teacher mixup is of the batch (``losses.mixup``), and not of the views.
    return OwnViews(dataclasses.replace(policy, mix=None) if policy.mix else policy, config.seed)


def open_stores(config: TrainConfig) -> list[Store]:
    """The stores of a training, each cut to the views that it uses.

    A run that was started while a store was growing continues with the views and the records that it began with.
    """
    begun = find_trained(config.out)
    parts = (begun and begun.store_parts) or []
    opened = [
        partial(Store, path, trust=config.trust, num_parts=parts[index] if index < len(parts) else None)
        for index, path in enumerate(config.store)
    ]
    stores = [open_store() for open_store in opened]
    for number, store in enumerate(stores):
        same = next((other for other in stores[:number] if other.fingerprint == store.fingerprint), None)
        if same is not None:
            raise ConfigError(f"--store {store.path}: is the same store as {same.path}; give each teacher once")
    whole = min((store.num_views for store in stores), default=0)
    # More than there are: another store, which check_run refuses.
    num_views = config.views or min((begun and begun.store_views) or whole, whole)
    return [open_store(num_views=num_views) for open_store in opened]


def student_preprocessing(
    student: ModelSpec, size_px: int, resize_px: int, initial: InitialRun | None = None
) -> Preprocessing:
    """How images are evaluated: at these sides, with the SPEC's or its library's mean, std and filter, or those of the
    run that the student starts from.

    The filter is that of the views too, unless it is one without antialiasing (TensorFlow 1's ``tf1_bilinear``): views
    are 8-bit pixels, which teachers share, and such a filter is the evaluation's alone.
    """
    unknown = sorted(student.options.keys() - _STUDENT_OPTIONS)
    if unknown:
        raise ConfigError(
            f"--student {student}: {unknown[0]}= is not an option of a student; use --size, --eval-size, "
            f"--eval-resize, --offset and --num-classes; its SPEC takes {', '.join(sorted(_STUDENT_OPTIONS))}"
        )
    if initial is not None:
        return initial_preprocessing(initial, size_px, resize_px, student)
    mean, std = library_mean_std(student)
    return override_preprocessing(Preprocessing(size_px=size_px, resize_px=resize_px, mean=mean, std=std), student)


def check_validation(config: TrainConfig, data: TrainingData, world_size: int) -> None:
    """Raise ConfigError where a device would have no record to evaluate on: before there is a run, not at its end."""
    if data.validation is not None and len(data.validation) < world_size:
        held_out = f", held out by --val-fraction {config.val_fraction:g}" if config.val_fraction else ""
        raise ConfigError(
            f"--validation-split {config.validation_split}: has {plural(len(data.validation), 'record')}{held_out}, "
            f"expected at least one for each of {plural(world_size, 'device')}; use fewer devices, a larger split, or "
            "--validation-split none"
        )


def check_replayed_views(config: TrainConfig, dataset: KDDataset) -> None:
    """Raise ConfigError for an option of the student's own views where the store's are replayed."""
    if not dataset.views.is_replay:
        return
    given = config.given_options()
    for name in ("policy", *(field.name for field in dataclasses.fields(ViewOptions))):
        if name in given:
            raise ConfigError(
                f"{' '.join(option_arguments(name, given[name]))}: applies only to views that the student draws, "
                f"but the views of --store {config.store[0]} are replayed; omit it"
            )


def warn_without_effect(config: TrainConfig, dataset: KDDataset) -> None:
    """Warn, once, of what ``--kd-temp 0`` leaves unread, of partners that an online teacher's views would be mixed with
    in vain, and of what breaks the agreement of stored views."""
    given = config.given_options()
    if config.temperature == 0 and config.has_teacher:
        views = ("views", "view_order", "missing", "trust", "store_weights", "teacher_offset")
        mixes = ("cutmix_alpha", "mix_prob", "cutmix_prob", "view_seed")
        unread = ("store", "logits", "teacher", "kd_weight", *views, *mixes)
        for name in unread:
            if name in given:
                given_option = " ".join(option_arguments(name, given[name]))
                others = (
                    describe_other_views(config.store[0], config) if name == "store" and not config.own_views else ""
                )
                if name == "missing":
                    others = "the records that the store lacks are trained on too"
                note = f": {others}" if others else ""
                warnings.warn(f"{given_option} has no effect with --kd-temp 0{note}", stacklevel=3)
    if isinstance(dataset.views, DrawnViews):
        warn_of_own_class_partners(dataset.views.policy, dataset.records, config.data)
    stores = [] if dataset.logits is None else dataset.logits.stores
    whole = {str(store.path): visible_views(store.path) for store in stores}
    if config.views is None and len(set(whole.values())) > 1:
        counts = ", ".join(f"{path} has {count}" for path, count in whole.items())
        warnings.warn(
            f"the stores differ in views ({counts}): the first {min(whole.values())} of each are used; extract "
            "the missing ones, or set --views",
            stacklevel=3,
        )
    if stores and stores[0].policy.is_random:
        broken = [
            "--own-views: the student does not see what the teacher saw" if config.own_views else "",
            "--mixup-alpha: the teacher never saw the mixed images (extract --mixup-alpha shows them to it)"
            if config.mixup_alpha > 0
            else "",
        ]
        for why in filter(None, broken):
            warnings.warn(
                f"{why}; so teacher and student do not see the same images, which is the purpose of stored views",
                stacklevel=3,
            )


def describe_other_views(path: Path, config: TrainingOptions) -> str:
    """How the views that a student of labels alone draws differ from those of a store; empty where they do not.

    The store's logits are not read, so one that cannot be opened is no error.
    """
    try:
        stored, _ = read_plan(path).read_policy()
    except TeachonceError:
        return ""
    drawn = build_policy(config.policy, config)
    if isinstance(stored, CenterPolicy) or isinstance(drawn, CenterPolicy):
        return ""
    wanted = _option_words(stored)
    if wanted == _option_words(drawn):
        is_mixed = stored.mix is not None and not config.mixes_batches
        return f"the views of {path} are mixed, and those that are drawn instead are not" if is_mixed else ""
    return (
        f"the student draws views by {_option_words(drawn)}, and those of {path} are by {wanted}: "
        "for a baseline on views like the store's, give these options"
    )


def _option_words(policy: CropPolicy) -> str:
    return " ".join(word for item in view_options(policy).items() for word in option_arguments(*item))


def _open_validation(config: TrainConfig, source: RecordSource) -> RecordSource | None:
    if not config.has_validation:
        return None
    folder = config.validation_data or config.data
    try:
        validation = open_records(folder, str(config.validation_split), config)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; this is the evaluation split (--validation-split, --validation-data; 'none' for no evaluation)"
        ) from error
    require_labels(validation, "the evaluation", "give --validation-split none")
    if source.classes and validation.classes and source.classes.names != validation.classes.names:
        raise ConfigError(
            f"{folder}: split {config.validation_split} has "
            f"{describe_other_names(validation.classes.names, source.classes.names)} as in the training data; give "
            "the validation split of this data, or --labels, by whose names both are numbered"
        )
    return validation
