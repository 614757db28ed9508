"""The options of ``train``: frozen dataclasses, checked in ``__post_init__``.

``TrainingOptions`` is what they have in common with those of ``ablate``: how a student is trained, with any teacher.

``--kd-temp 0`` switches KD off and leaves the rest of the command as it is: a store, ``--logits`` or a teacher given
beside it are not read, which is a warning (``training/data.py``). Views are then the student's own, so a baseline of a
store with views needs the options that these were drawn by, which the warning names. Any other option that cannot apply
is an error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from teachonce.errors import ConfigError
from teachonce.extras import require as require_modules
from teachonce.losses.options import MixupType
from teachonce.models.options import Precision, Spec
from teachonce.options import (
    Common,
    Condition,
    Count,
    CountOrNone,
    FractionBelowOne,
    InData,
    InEvaluation,
    InLoss,
    InOptimization,
    InOutput,
    InRunning,
    InSchedule,
    InStudent,
    InTeacher,
    InViews,
    Label,
    NumClasses,
    PositiveFraction,
    Range,
    Repeated,
    Seed,
    Weight,
    check_applicable,
    given_options,
    only_with,
    parse_bytes,
    parse_number,
    require,
    to_json,
)
from teachonce.records.options import RecordOptions
from teachonce.storage.address import is_remote, to_location
from teachonce.terminal import plural
from teachonce.training.recipes import build_recipe, recipe_options
from teachonce.views.options import MixOptions, ViewOrderName

_Temperature = Annotated[float, Range(0.01, 1000, "0 (no KD), or from 0.01 to 1000", also=(0,))]
_Rate = Annotated[float, Range(0, 1e4, "more than 0, at most 10000", excludes_least=True)]
_MinRate = Annotated[float, Range(0, 1e4, "0 or more, at most 10000")]
_Decay = Annotated[float, Range(0, 1000, "0 or more, at most 1000")]
_Norm = Annotated[float, Range(0, 1e30, "more than 0 and finite (omit it for no clipping)", excludes_least=True)]
_Epochs = Annotated[float, Range(0, 1e6, "more than 0, at most 1000000", excludes_least=True)]
_Minutes = Annotated[float, Range(0, 1e6, "0 (off), or minutes up to 1000000")]
_Seconds = Annotated[float, Range(0, 86_400, "seconds, from 0 to 86400")]
RUN_ENTRIES = frozenset(
    {
        *("data_classes", "classes_hash", "class_names", "class_texts", "preprocessing"),
        *("init_weights_sha256", "online_weights_sha256"),
        *("train_records", "validation_records", "record_logits", "store_fingerprint", "store_views", "store_parts"),
        *("world_size", "versions"),
    }
)
"""What config.json of a run has beside the options: what they came to (``data.resolve_run``)."""
LoggerName = Literal["tensorboard", "csv", "wandb"]
ScheduleName = Literal["cosine", "step", "exponential", "polynomial", "piecewise", "fixed"]


def _schedules(*names: ScheduleName) -> Condition:
    return Condition(f"--schedule {' or '.join(names)}", lambda options: options.schedule in names)


_BATCH_MIXUP = Condition("--mixup-alpha above 0 and no online --teacher", lambda options: options.mixes_batches)
_KD_LOSS = Condition("--kd-weight above 0", lambda options: options.kd_weight > 0 or options.kd_temp == 0)
_LABEL_LOSS = Condition("--label-weight above 0", lambda options: options.uses_labels)
_TEACHER = Condition("--store, --logits records or --teacher", lambda options: options.has_teacher)
_STORE = Condition("--store", lambda options: bool(options.store))
_ONLINE_TEACHER = Condition("--teacher", lambda options: options.teacher is not None)
_REMOTE = Condition(
    "--data, --validation-data or --store at an address", lambda options: any(map(is_remote, options.read_locations()))
)
_VALIDATION = Condition("--validation-split", lambda options: options.has_validation)
_NO_RESIZE = Condition("no --eval-resize", lambda options: options.eval_resize is None)
_SGD = Condition("--optimizer sgd", lambda options: options.optimizer == "sgd")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(MixOptions, RecordOptions):
    """How a student is trained, with any teacher."""

    GROUP_TITLES = (("teacher", "teacher's signal"), ("views", "augmentation"))
    """What ``--help`` calls groups here."""
    COMMON_OPTIONS = ("val_fraction", "labels")
    """Inherited options that most calls need here, as ``Common`` marks others."""

    data: InData[Common[Path]]
    """Folder of TFRecords, of SPLIT/CLASS or CLASS folders of images, of images alone, tars or Parquet; or a table
    of images (.csv, .jsonl, .parquet, .txt)."""
    student: InStudent[Common[Spec]]
    """Model SPEC: timm:NAME or torchvision:NAME; ',pretrained=1' or ',weights=FILE' starts from weights."""
    init: InStudent[Common[Path | None]] = None
    """Fine-tuning: start from the weights and preprocessing of this finished run of the same architecture; the last
    layer is new if the classes differ."""
    out: InOutput[Common[Path]]
    """Output folder. The same command resumes it; different settings are refused."""
    split: InData[str] = "train"
    """Split to train on."""
    validation_split: InEvaluation[Common[str | None]] = "validation"
    """Split to evaluate on after each epoch (validation: val or valid too); 'none' for no evaluation."""
    validation_data: InEvaluation[Path | None] = only_with(None, _VALIDATION)
    """Folder of the validation split, if it is not in --data."""
    validation_epochs: InEvaluation[Count] = only_with(1, _VALIDATION)
    """Epochs between two evaluations; the last epoch is always evaluated, so it must divide --epochs."""
    policy: InViews[Common[Literal["crop", "crop+randaugment", "crop+autoaugment"]]] = "crop"
    """Augmentation policy of the student's own views, when no stored views are replayed."""
    mixup_type: InViews[MixupType] = only_with("batch", _BATCH_MIXUP)
    """--mixup-alpha without an online teacher: batch (one mixing ratio per batch), or the walkthrough's types with
    one ratio per image: 1 (twice as many records are read and mixed in pairs, so each is drawn twice per epoch), 2
    (the two halves of the batch are mixed)."""
    kd_temp: InLoss[Common[_Temperature | None]] = only_with(None, _KD_LOSS)
    """Temperature of the KD loss; 0 turns KD off. Default: 1 if teacher logits are given."""
    kd_weight: InLoss[Common[Weight]] = only_with(1.0, _TEACHER)
    """Weight of the KD loss."""
    label_weight: InLoss[Weight] = 1.0
    """Weight of the label cross-entropy."""
    label_smoothing: InLoss[FractionBelowOne] = only_with(0.0, _LABEL_LOSS)
    """Label smoothing of the label cross-entropy."""
    class_weights: InLoss[Literal["none", "balanced"]] = "none"
    """For classes of unequal size: weight the losses of each record, of label and KD alike, by its class: balanced is
    N / (C n), N records in C classes, n of them in this one; the mean over all records is 1."""
    epochs: InOptimization[Common[Count]] = 100
    """Number of epochs."""
    batch_size: InOptimization[Common[Count]] = 256
    """Maximum images per step and device: an epoch's images are split evenly over its steps, and none is dropped."""
    accumulate: InOptimization[Count] = 1
    """Batches per optimizer update: gradients are accumulated, as if --batch-size were this many times larger, for
    batches that do not fit into the device's memory. Batch norm and mixup still use --batch-size images."""
    shuffle_shards: InData[Count | None] = None
    """For slow disks and remote data: permute the shards each epoch and shuffle records within a window of this many
    shards, so that few are read at a time. Default: shuffle all records together."""
    sampler: InData[Literal["uniform", "balanced"]] = "uniform"
    """uniform: every record once per epoch; balanced: as many draws per epoch, equally many of every class, for
    classes of unequal size: records of small classes repeat, each time in another view."""
    size: InStudent[Common[Count]] = 224
    """Side of the student's input in pixels."""
    eval_size: InEvaluation[Count | None] = None
    """Side of the input at evaluation. Default: --size."""
    eval_crop_frac: InEvaluation[PositiveFraction] = only_with(0.875, _NO_RESIZE)
    """Evaluation: the shorter side is resized to size / this, then the center is cropped (1: no margin)."""
    eval_resize: InEvaluation[Count | None] = None
    """Evaluation: resize the shorter side to this many pixels, instead of --eval-crop-frac (the walkthrough's second
    crop is size + 1: --eval-size 256 --eval-resize 257)."""
    bn_momentum: InStudent[PositiveFraction | None] = None
    """Momentum of all batch norm layers: the weight of a new batch in the running statistics, in PyTorch's
    convention (TensorFlow's 0.997 is 0.003 here). Default: the architecture's."""
    optimizer: InOptimization[Literal["sgd", "adamw"]] = "sgd"
    """sgd (classical momentum) or adamw; weight decay is not applied to norms and biases."""
    lr: InOptimization[Common[_Rate]] = 0.1
    """Peak learning rate, for the global batch over all devices."""
    momentum: InOptimization[FractionBelowOne] = only_with(0.9, _SGD)
    """Momentum of SGD."""
    weight_decay: InOptimization[_Decay] = 1e-4
    """Weight decay."""
    schedule: InSchedule[Common[ScheduleName]] = "cosine"
    """Learning rate schedule: cosine and step (timm's: the warm-up replaces their beginning), exponential and
    polynomial (they begin after the warm-up), piecewise, fixed."""
    warmup_epochs: InSchedule[Weight] = 0.0
    """Epochs of linear warm-up from 0."""
    warmup_prefix: InSchedule[bool] = only_with(False, _schedules("cosine"))
    """Schedule cosine: start it after the warm-up, over the remaining epochs, as the walkthrough does."""
    lr_batch: InOptimization[Count | None] = None
    """Global batch size for which --lr is given; it is scaled linearly to the actual one. Default: no scaling."""
    min_lr: InSchedule[_MinRate] = only_with(0.0, _schedules("cosine", "polynomial"))
    """Schedules cosine, polynomial: final learning rate."""
    step_epochs: InSchedule[Count] = only_with(30, _schedules("step"))
    """Schedule step: epochs between decays."""
    step_rate: InSchedule[PositiveFraction] = only_with(0.1, _schedules("step"))
    """Schedule step: factor of each decay."""
    decay_epochs: InSchedule[_Epochs | None] = only_with(None, _schedules("exponential", "polynomial"))
    """Schedule exponential: epochs between decays (default: 2); polynomial: epochs of the complete decay (default:
    all after the warm-up)."""
    decay_rate: InSchedule[PositiveFraction] = only_with(0.94, _schedules("exponential"))
    """Schedule exponential: factor of each decay."""
    boundary_epochs: InSchedule[tuple[Count, ...]] = only_with((30, 60, 80, 90), _schedules("piecewise"))
    """Schedule piecewise: epochs after which the learning rate changes."""
    boundary_rates: InSchedule[tuple[Weight, ...]] = only_with((1.0, 0.1, 0.01, 0.001, 1e-4), _schedules("piecewise"))
    """Schedule piecewise: factors of --lr, one before each boundary and one after the last."""
    clip_norm: InOptimization[_Norm | None] = None
    """Clip the gradient norm to this value."""
    ema_decay: InEvaluation[FractionBelowOne] = 0.0
    """Decay of the exponential moving average (EMA) of the weights, which is then evaluated and saved; ramped up
    over the first steps; 0 is off."""
    precision: InStudent[Common[Precision]] = "float32"
    """Mixed precision: float32 (none), bf16 or fp16."""
    compile: InStudent[bool] = False
    """Compile the student with torch.compile."""
    channels_last: InStudent[bool] = False
    """Use the channels-last memory format."""
    device: InRunning[Common[str]] = "auto"
    """auto, cpu, cuda, mps."""
    num_workers: InRunning[Common[CountOrNone | None]] = None
    """Threads per device that prepare batches ahead; 0 prepares them when they are needed. Default: 0 on a CPU, which
    the network itself uses; beside a GPU one per core that the device's process has, at most 8."""
    in_memory: InData[bool] = False
    """Decode every image once and cache the pixels in RAM (3 kB per CIFAR image; refused if they do not fit)."""
    offset: InData[CountOrNone] = 0
    """Data label of the student's class 0; 1 leaves out the background class of TFRecords."""
    num_classes: InData[NumClasses | None] = None
    """Classes of the data, background included. Default: from the data, the store or the logits."""
    checkpoint_epochs: InOutput[Count] = 1
    """Epochs between checkpoints."""
    logger: InOutput[Literal[LoggerName, "none"]] = "tensorboard"
    """Where loss, learning rate and each epoch's results are logged beside metrics.csv: event files in the run
    (tensorboard), a table with a row per logged step in the run (csv), Weights & Biases (wandb; 'pip install wandb'),
    or nowhere (none)."""
    checkpoint_minutes: InRunning[_Minutes] = 15.0
    """Minutes between checkpoints within an epoch, from which the same command resumes; 0 is off."""
    grace_seconds: InRunning[_Seconds] = 25.0
    """After SIGTERM, seconds within which a checkpoint is saved and the process exits; schedulers usually kill it
    after about 30."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.init is None or self.init != self.out, "--init", self.init, "another folder than --out")
        self._check_schedule()
        if self.sampler == "balanced":
            require(
                self.shuffle_shards is None,
                "--sampler",
                self.sampler,
                f"uniform with --shuffle-shards {self.shuffle_shards}, whose window holds few classes at a time",
            )
            require(
                self.class_weights == "none",
                "--class-weights",
                self.class_weights,
                "none with --sampler balanced: each alone makes all classes count the same",
            )
        if self.eval_resize is not None:
            size_px, _ = self.eval_sides_px
            expected = f"at least the {size_px} px of the evaluation's input"
            require(self.eval_resize >= size_px, "--eval-resize", self.eval_resize, expected)
        require(
            self.epochs % self.validation_epochs == 0 or not self.has_validation,
            "--validation-epochs",
            self.validation_epochs,
            f"a divisor of --epochs {self.epochs}",
        )

    @property
    def has_teacher(self) -> bool:
        """Whether there are teacher logits, from any source."""
        raise NotImplementedError

    @property
    def uses_labels(self) -> bool:
        """Whether the loss has a part of the labels."""
        return self.label_weight > 0

    @property
    def mixes_batches(self) -> bool:
        """Whether images are mixed within a batch."""
        return self.mixup_alpha > 0

    @property
    def has_validation(self) -> bool:
        """Whether the student is evaluated while it is trained."""
        return self.validation_split not in (None, "none")

    @property
    def eval_sides_px(self) -> tuple[int, int]:
        """Evaluation: the side of the input, and the shorter side of an image before the input is cropped from it."""
        size_px = self.eval_size or self.size
        return size_px, self.eval_resize or math.floor(size_px / self.eval_crop_frac + 1e-9)

    @property
    def begins_after_warmup(self) -> bool:
        """Whether the schedule counts its updates from the end of the warm-up."""
        return self.schedule in ("exponential", "polynomial") or (self.schedule == "cosine" and self.warmup_prefix)

    def _check_schedule(self) -> None:
        # With --lr-batch the peak is known when the number of devices is (``schedules.scale_lr``).
        is_below = self.lr_batch is not None or self.min_lr <= self.lr
        require(is_below, "--min-lr", self.min_lr, f"at most --lr {self.lr}")
        boundaries, rates = self.boundary_epochs, self.boundary_rates
        is_rising = bool(boundaries) and all(a < b for a, b in pairwise((0, *boundaries)))
        found = " ".join(map(str, boundaries))
        require(is_rising, "--boundary-epochs", found, "epochs from 1 on, each larger than the previous one")
        is_right = len(rates) == len(boundaries) + 1 and min(rates) >= 0
        found = " ".join(map(str, rates))
        require(
            is_right, "--boundary-rates", found, f"{len(boundaries) + 1} factors of 0 or more, one more than epochs"
        )
        if self.begins_after_warmup:
            expected = f"less than --epochs {self.epochs}: --schedule {self.schedule} starts after it"
            require(self.warmup_epochs < self.epochs, "--warmup-epochs", self.warmup_epochs, expected)
        require(
            self.warmup_epochs <= self.epochs, "--warmup-epochs", self.warmup_epochs, f"at most --epochs {self.epochs}"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingOptions):
    """Train a student on labels and, if given, the teacher's stored logits."""

    recipe: InStudent[Common[str | None]] = None
    """Start from the options of a recipe; options on the command line override them ('train --list-recipes' lists
    the recipes). From Python: TrainConfig.from_recipe(NAME, ...)."""
    store: InTeacher[Common[Repeated[tuple[Path, ...]]]] = ()
    """Store with the teacher's logits; if it has random views, the student sees exactly these. Several stores over
    the same views (--store A --store B): the teachers' probabilities are averaged."""
    store_weights: InTeacher[str] = only_with("", _STORE)
    """Several stores: weights of the average, such as 0.7,0.3. Default: equal."""
    views: InTeacher[Count | None] = only_with(None, _STORE)
    """Use only the first N views of the store. Default: all complete views (when resuming: those the run started
    with)."""
    view_order: InTeacher[ViewOrderName] = only_with("sequential", _STORE)
    """Which of the V views an epoch uses: view epoch mod V (sequential), or a new permutation drawn from --seed every
    V epochs (permuted)."""
    missing: InTeacher[Literal["refuse", "skip"]] = only_with("refuse", _STORE)
    """Records that a store does not have (by the hash of their image): refuse to start (refuse), or leave them out
    and report how many at each start and in result.json (skip)."""
    trust: InTeacher[bool] = only_with(False, _STORE)
    """Skip the comparison of the store's blocks with their hashes on first read."""
    cache: InData[Path | None] = only_with(None, _REMOTE)
    """Folder on a local disk that caches what is read from remote records and stores, shared by all processes of
    this machine. Default: in the user's cache folder."""
    cache_size: InData[str] = only_with("", _REMOTE)
    """Maximum size of --cache, such as 200GB; the least recently used data is evicted first. Default: 50GB, or half
    of the free disk if that is less."""
    own_views: InTeacher[bool] = only_with(False, _STORE)
    """Draw the student's own views instead of replaying the stored ones; teacher and student then no longer see the
    same pixels."""
    logits: InTeacher[Literal["records"] | None] = None
    """'records': teacher logits from image/logit of the records (the walkthrough)."""
    teacher: InTeacher[Spec | None] = None
    """Model SPEC of an online teacher, run at every step: the expensive reference for comparison with stores. It
    sees the student's views, mixed if --mixup-alpha or --cutmix-alpha is set."""
    teacher_offset: InTeacher[Label | None] = only_with(None, _ONLINE_TEACHER)
    """Data label of the online teacher's class 0. Default: found by class names where both have them (a run, an
    exported ONNX file); otherwise 0, or 1 if only the data has a background class."""
    view_seed: InTeacher[Seed | None] = only_with(None, _ONLINE_TEACHER)
    """Online teacher: seed of the views, as --seed of extract. Default: --seed."""
    seed: InRunning[Common[Seed]] = 0
    """Seed of all random numbers."""
    devices: InRunning[Common[Count]] = 1
    """Devices per node; more than one uses DDP."""
    num_nodes: InRunning[Count] = 1
    """Nodes (start the same command on each, or use torchrun)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        store = cast(object, self.store)
        if isinstance(store, Path | str):
            # In Python one store may be given as it is.
            object.__setattr__(self, "store", (to_location(store),))
        require(not self.store or self.logits is None, "--logits", self.logits, "not given together with --store")
        is_online_alone = self.teacher is None or not (self.store or self.logits)
        require(is_online_alone, "--teacher", self.teacher, "not given together with --store or --logits")
        if self.kd_temp is not None:
            require(
                self.kd_temp == 0 or self.has_teacher,
                "--kd-temp",
                self.kd_temp,
                "0 without --store, --logits records or --teacher",
            )
        require(
            self.cutmix_alpha == 0 or self.teacher is not None,
            "--cutmix-alpha",
            self.cutmix_alpha,
            "0 without --teacher: stored views have their own mix (extract --cutmix-alpha)",
        )
        require(
            self.label_weight > 0 or (self.has_teacher and self.kd_weight > 0 and self.kd_temp != 0),
            "--label-weight",
            self.label_weight,
            "more than 0 without a KD loss",
        )
        self.teacher_weights()
        self.cache_bytes()
        is_here = self.cache is None or not is_remote(self.cache)
        require(is_here, "--cache", self.cache, "a folder on a local disk")
        stores = [os.path.normpath(str(path)) for path in self.store]
        doubled = next((path for path in self.store if stores.count(os.path.normpath(str(path))) > 1), None)
        require(doubled is None, "--store", doubled, "each store once; weight teachers with --store-weights")
        check_applicable(self, self.given_options())

    @classmethod
    def from_recipe(cls, name: str, **options: Any) -> Self:
        """What ``train --recipe NAME`` means with these options beside it, which override the recipe's."""
        return cls(**build_recipe(name).complete(recipe_options(name) | options))

    @staticmethod
    def from_run_config(content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options in a run's config.json, without what ``train`` adds to them; other objects as they are."""
        if "data_classes" not in content:
            return content
        options = {name: value for name, value in content.items() if name not in RUN_ENTRIES}
        # There num_classes are the student's, and a store of a run of 0.1 is not a list.
        stores = [options["store"]] if isinstance(options.get("store"), str) else options.get("store") or []
        return options | {"num_classes": content["data_classes"], "store": stores}

    def given_options(self) -> dict[str, Any]:
        """The options that were chosen beside the recipe; raises ConfigError for a recipe that does not exist."""
        return given_options(self, None if self.recipe is None else recipe_options(self.recipe))

    @property
    def pairs_records(self) -> bool:
        """Whether a batch holds twice as many records as the student sees images: mixup of type 1."""
        return self.mixup_type == 1 and self.mixes_batches

    @property
    def mixes_batches(self) -> bool:
        """As without a teacher, except that an online teacher's views are already mixed."""
        return super().mixes_batches and (self.teacher is None or self.temperature == 0)

    @property
    def has_teacher(self) -> bool:
        """Whether there are teacher logits: of a store, of the records or of an online teacher."""
        return bool(self.store) or self.logits is not None or self.teacher is not None

    @property
    def temperature(self) -> float:
        """The KD temperature in force: 0 without teacher logits or with ``--kd-temp 0``."""
        if not self.has_teacher:
            return 0.0
        return 1.0 if self.kd_temp is None else self.kd_temp

    def read_locations(self) -> list[Path]:
        """Where records and teacher logits are read from."""
        # Of a draft (``drop_idle``) required options may be missing.
        return [path for path in (self.data, self.validation_data, *self.store) if path is not None]

    def cache_bytes(self) -> int | None:
        """``--cache-size`` in bytes; None where it is not given. Raises ConfigError for other texts."""
        if not self.cache_size:
            return None
        try:
            return parse_bytes(self.cache_size)
        except ValueError as error:
            raise ConfigError(f"--cache-size {self.cache_size}: expected {error}") from error

    def teacher_weights(self) -> tuple[float, ...]:
        """The weight of each store's probabilities; they sum to 1. Raises ConfigError for other than one a store."""
        if not self.store_weights:
            return (1 / len(self.store),) * len(self.store) if self.store else ()
        try:
            weights = [parse_number(word.strip()) for word in self.store_weights.split(",")]
        except ValueError:
            weights = []
        is_right = (
            len(weights) == len(self.store) and all(0 <= weight <= 1e6 for weight in weights) and sum(weights) > 0
        )
        require(
            is_right,
            "--store-weights",
            self.store_weights,
            f"{len(self.store)} finite weights of 0 or more, one per store",
        )
        return tuple(weight / sum(weights) for weight in weights)


def check_num_records(config: TrainingOptions, num_records: int, world_size: int) -> None:
    """Raise ConfigError where a split has fewer records than one update takes on ``world_size`` devices."""
    update_images = config.batch_size * config.accumulate * world_size
    if num_records < update_images:
        times = f" --accumulate {config.accumulate}" if config.accumulate > 1 else ""
        raise ConfigError(
            f"--batch-size {config.batch_size}{times} on {plural(world_size, 'device')}: the split has "
            f"{plural(num_records, 'record')}, expected at least one batch of {update_images}; choose a smaller one"
        )


def check_logger(name: Literal[LoggerName, "none"]) -> None:
    """Raise MissingExtraError where the library of ``--logger`` is not installed."""
    if name in ("tensorboard", "wandb"):
        require_modules(name, purpose=f"--logger {name}")


def default_options() -> dict[str, Any]:
    """The options' defaults as JSON values, for runs of versions that did not have all of them."""
    return to_json(TrainConfig(data=Path(), student="", out=Path()))
