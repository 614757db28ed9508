"""The configuration of every command: frozen dataclasses, each field with the sentence that ``--help`` shows.

Nothing heavy is imported here, so that the command line answers at once. Values are checked in ``__post_init__``;
what needs the data to be judged (class counts, sizes) is checked by the program itself. The resolved configuration is
saved with every store and run by ``to_json``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from teachonce.errors import ConfigError

CodecName = Literal["float32", "float16", "int8"]
PolicyName = Literal["center", "crop"]
Precision = Literal["float32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """Convert raw images to TFRecord shards, with logits inserted if wanted."""

    images: Path
    """Folder that holds SPLIT/CLASS/*.jpg (ILSVRC: train/n01440764/*.JPEG), or SPLIT/*.JPEG with --image-labels."""
    out: Path
    """Folder for the TFRecord shards; created if missing."""
    split: str = "train"
    """Which split to convert; also the prefix of the shard names."""
    shards: int = 1
    """Number of shards (ImageNet: 1024 for train, 128 for validation)."""
    labels: Path | None = None
    """Class names (synsets), one a line; line N is label N, 0 is background. Default: the sorted class folders."""
    image_labels: Path | None = None
    """For a flat split: one class name a line, line N for the N-th image in sorted order."""
    metadata: Path | None = None
    """Human text of the classes, 'synset<TAB>text' a line. Default: timm's tables where the classes are synsets."""
    boxes: Path | None = None
    """Bounding boxes: a CSV (name,xmin,ymin,xmax,ymax, relative to the image) or a folder of ILSVRC XML files."""
    logits: Path | None = None
    """A store, or a folder of the walkthrough's CSV files: each record gets its teacher logits as image/logit."""
    background_logit: float = float("-inf")
    """Logit for classes that the teacher does not know; 0 reproduces the walkthrough's files (and takes real mass)."""
    seed: int = 0
    """Seed of the shuffle."""
    num_workers: int = 0
    """Processes that write shards; 0 means one a core."""

    def __post_init__(self) -> None:
        _require(self.shards >= 1, "--shards", self.shards, "at least 1")
        _require(self.shards <= 99_999, "--shards", self.shards, "at most 99999 (the names have five digits)")
        _require(self.num_workers >= 0, "--num-workers", self.num_workers, "0 (one a core) or more")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Run the teacher once over sharded data and keep its logits in a store."""

    data: Path
    """Folder of TFRecord shards, or of SPLIT/CLASS/*.jpg."""
    teacher: str
    """Model SPEC: timm:NAME, torchvision:NAME, onnx:FILE, savedmodel:DIR, run:DIR, amoebanet, efficientnet; options
    follow after commas, as in torchvision:resnet50,weights=FILE,size=224,resize=256,mean=0.5/0.5/0.5."""
    out: Path
    """Folder of the store. An unfinished store with the same plan is finished; another plan is refused."""
    split: str = "train"
    """Which split to extract."""
    policy: PolicyName = "center"
    """What the teacher looks at: its own evaluation crop (center), or random resized crops and flips (crop)."""
    views: int = 1
    """Views a record (policy crop). More can be added later by the same command with a larger number."""
    views_per_file: int = 10
    """Views in one file of the store: the unit of work is one shard x this many views."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Policy crop: area of the crop as a fraction of the image, least and most."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Policy crop: aspect ratio (width / height) of the crop, least and most."""
    flip_prob: float = 0.5
    """Policy crop: probability of a horizontal flip."""
    codec: CodecName = "int8"
    """How logits become bytes: float32 (exact), float16, int8 (about 1 byte a class, total variation below 0.01)."""
    offset: int | None = None
    """Data label of the teacher's class 0. Default: 0, or 1 where only the data has a background class."""
    num_classes: int | None = None
    """Classes of the data, background included. Default: from the data, else the teacher's classes + offset."""
    expect_top1: float | None = None
    """Refuse to start where the teacher's top-1 on --gate-samples labelled records is below this (0..1)."""
    gate_samples: int = 256
    """Records on which the teacher is scored before the work starts; 0 skips the gate."""
    num_workers: int = 1
    """Teacher processes on this machine: one a GPU, or N on the CPU."""
    worker: str = "0/1"
    """i/n: this call takes the i-th of n parts of the shards (for a scheduler's job array or several machines)."""
    batch_size: int = 64
    """Images a teacher batch."""
    decode_threads: int = 0
    """Threads that decode ahead of the teacher; 0 means one a core of this worker's share."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "float32"
    """Autocast of the teacher: float32 (none), bf16 or fp16."""
    compile: bool = False
    """torch.compile the teacher."""
    seed: int = 0
    """Seed of the views (policy crop)."""

    def __post_init__(self) -> None:
        _require(self.views >= 1, "--views", self.views, "at least 1")
        _require(self.policy == "crop" or self.views == 1, "--views", self.views, "1 with --policy center")
        _require(self.views_per_file >= 1, "--views-per-file", self.views_per_file, "at least 1")
        _require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")
        _require(self.num_workers >= 1, "--num-workers", self.num_workers, "at least 1")
        _require(self.gate_samples >= 0, "--gate-samples", self.gate_samples, "0 or more")
        _require(self.num_classes is None or self.num_classes >= 2, "--num-classes", self.num_classes, "at least 2")
        if self.expect_top1 is not None:
            _require(0 <= self.expect_top1 <= 1, "--expect-top1", self.expect_top1, "a fraction from 0 to 1")
            _require(self.gate_samples > 0, "--gate-samples", 0, "more than 0 with --expect-top1")
        _check_crop(self.crop_scale, self.crop_ratio, self.flip_prob)
        self.worker_part()

    def worker_part(self) -> tuple[int, int]:
        """(i, n) of ``--worker i/n``."""
        index, slash, count = self.worker.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigError(f"--worker {self.worker}: expected i/n with 0 <= i < n, such as 3/8")
        return int(index), int(count)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check a store against its data and, if given, its teacher; exit 0 if sound, 1 if not."""

    store: Positional[Path]
    """Folder of the store."""
    data: Path
    """The data that the store was extracted from."""
    teacher: str | None = None
    """Model SPEC for fresh logits. Default: the teacher of the store's plan; 'none' checks the bytes alone."""
    samples: int = 256
    """Records whose logits are recomputed; 0 checks keys and files alone."""
    batch_size: int = 64
    """Images a teacher batch."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Seed of the sample."""
    json: bool = False
    """Print the verdict as JSON."""

    def __post_init__(self) -> None:
        _require(self.samples >= 0, "--samples", self.samples, "0 or more")
        _require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what is in a folder of records, a store or a run."""

    path: Positional[Path]
    """Folder of records, a store or a run."""
    split: str | None = None
    """Records: only this split. Default: all that are there."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Copy TFRecords with a store's logits inserted as image/logit, streaming in constant memory."""

    store: Positional[Path]
    """Folder of the store (policy center, or the view to take with --view)."""
    data: Path
    """Folder of the TFRecords that the store was extracted from."""
    out: Path
    """Folder for the merged shards; finished shards are kept, missing ones are made."""
    view: int = 0
    """Which view's logits to insert."""
    background_logit: float = float("-inf")
    """Logit for classes that the teacher does not know; 0 reproduces the walkthrough's files (and takes real mass)."""
    num_workers: int = 0
    """Processes that write shards; 0 means one a core."""

    def __post_init__(self) -> None:
        _require(self.view >= 0, "--view", self.view, "0 or more")
        _require(self.num_workers >= 0, "--num-workers", self.num_workers, "0 (one a core) or more")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Read the walkthrough's CSV logits into a store."""

    csv: Positional[Path]
    """Folder of SPLIT-*.csv: basename, then one number a class, no header."""
    data: Path
    """The TFRecords (or folders) that the logits belong to, matched by basename."""
    out: Path
    """Folder of the store."""
    split: str = "train"
    """Which split."""
    codec: CodecName = "float32"
    """How logits become bytes."""
    drop: int = 0
    """Numbers to leave out at the start of each line: 1 for the original's EfficientNet files (a made-up class)."""
    offset: int | None = None
    """Data label of the first number that is kept. Default: 0, or 1 where only the data has a background class."""
    num_classes: int | None = None
    """Classes of the data, background included. Default: from the data, else the CSV's classes + offset."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a student on labels and, if given, the teacher's stored logits."""

    data: Path
    """Folder of TFRecord shards, or of SPLIT/CLASS/*.jpg."""
    student: str
    """Model SPEC: timm:NAME or torchvision:NAME; ',pretrained=1' or ',weights=FILE' starts from weights."""
    out: Path
    """Folder of the run. The same command again resumes an interrupted run; another configuration is refused."""
    split: str = "train"
    """Split to train on."""
    validation_split: str | None = "validation"
    """Split to evaluate on after each epoch; 'none' for no evaluation."""
    validation_data: Path | None = None
    """Folder of the validation split, where it is not in --data."""
    store: Path | None = None
    """Store with the teacher's logits. Policy crop: the student sees exactly the stored views."""
    logits: Literal["records"] | None = None
    """'records': teacher logits from image/logit of the records (the walkthrough)."""
    kd_temp: float | None = None
    """Temperature of the KD loss; 0 is no KD. Default: 1 where teacher logits are given."""
    kd_weight: float = 1.0
    """Weight of the KD loss."""
    label_weight: float = 1.0
    """Weight of the label cross-entropy."""
    label_smoothing: float = 0.0
    """Label smoothing of the label cross-entropy."""
    mixup_alpha: float = 0.0
    """Beta(alpha, alpha) for mixup of images, labels and teacher probabilities together; 0 is off."""
    epochs: int = 100
    """Epochs to train."""
    batch_size: int = 256
    """Images a step and device; an epoch's incomplete last batch is left out (other images each epoch)."""
    size: int = 224
    """Side of the student's input in pixels."""
    eval_size: int | None = None
    """Side of the input at evaluation. Default: --size."""
    eval_crop_frac: float = 0.875
    """Evaluation: the shorter side is resized to size / this, then the centre is cropped (1: no margin)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: area as a fraction of the image, least and most (1 1: the whole image)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: aspect ratio (width / height), least and most."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd (classical momentum) or adamw; weight decay is not applied to norms and biases."""
    lr: float = 0.1
    """Learning rate at its peak, for the whole batch over all devices."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    step_epochs: int = 30
    """Schedule step: epochs between two decays."""
    step_rate: float = 0.1
    """Schedule step: factor of each decay."""
    clip_norm: float | None = None
    """Clip the gradient's norm to this."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, which is then evaluated and kept; it is ramped up over
    the first steps; 0 is off."""
    precision: Precision = "float32"
    """Mixed precision: float32 (none), bf16 or fp16."""
    compile: bool = False
    """torch.compile the student."""
    channels_last: bool = False
    """Keep the student's tensors channels-last."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    devices: int = 1
    """Devices a node; DDP where more than one."""
    num_nodes: int = 1
    """Nodes (start the same command on each, or use torchrun)."""
    num_workers: int = 0
    """Loader processes a device; 0 loads in the training process."""
    offset: int = 0
    """Data label of the student's class 0; 1 leaves the background class of TFRecords out."""
    num_classes: int | None = None
    """Classes of the data, background included. Default: from the data, the store or the logits."""
    seed: int = 0
    """Seed of everything random."""
    checkpoint_epochs: int = 1
    """Epochs between two checkpoints."""

    def __post_init__(self) -> None:
        _require(self.store is None or self.logits is None, "--logits", self.logits, "not given together with --store")
        has_logits = self.store is not None or self.logits is not None
        if self.kd_temp is not None:
            _require(self.kd_temp >= 0, "--kd-temp", self.kd_temp, "0 (no KD) or more")
            _require(
                self.kd_temp == 0 or has_logits, "--kd-temp", self.kd_temp, "0 without --store or --logits records"
            )
        for name in ("kd_weight", "label_weight", "mixup_alpha", "warmup_epochs", "weight_decay", "min_lr", "momentum"):
            _require(getattr(self, name) >= 0, _flag(name), getattr(self, name), "0 or more")
        for name in ("epochs", "batch_size", "size", "devices", "num_nodes", "checkpoint_epochs", "step_epochs"):
            _require(getattr(self, name) >= 1, _flag(name), getattr(self, name), "at least 1")
        _require(self.lr > 0, "--lr", self.lr, "more than 0")
        _require(0 <= self.label_smoothing < 1, "--label-smoothing", self.label_smoothing, "in [0, 1)")
        _require(0 <= self.ema_decay < 1, "--ema-decay", self.ema_decay, "in [0, 1)")
        _require(0 < self.eval_crop_frac <= 1, "--eval-crop-frac", self.eval_crop_frac, "in (0, 1]")
        _require(
            self.label_weight > 0 or (has_logits and self.kd_weight > 0 and self.kd_temp != 0),
            "--label-weight",
            self.label_weight,
            "more than 0 where there is no KD loss",
        )
        _check_crop(self.crop_scale, self.crop_ratio, self.flip_prob)

    @property
    def temperature(self) -> float:
        """The KD temperature in force: 0 without teacher logits or with ``--kd-temp 0``."""
        if self.store is None and self.logits is None:
            return 0.0
        return 1.0 if self.kd_temp is None else self.kd_temp


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Top-1, top-5 and expected calibration error of a model on labelled records."""

    data: Path
    """Folder of TFRecord shards, or of SPLIT/CLASS/*.jpg."""
    model: str
    """Model SPEC, such as run:RUN or torchvision:resnet50,weights=FILE."""
    split: str = "validation"
    """Which split."""
    offset: int | None = None
    """Data label of the model's class 0. Default: 0, or 1 where only the data has a background class."""
    batch_size: int = 64
    """Images a batch."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "float32"
    """Autocast of the model."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a run as ONNX or safetensors (checked against PyTorch), or a store as the walkthrough's CSV."""

    source: Positional[Path]
    """Folder of a run (onnx, safetensors) or of a store (csv)."""
    format: Literal["onnx", "safetensors", "csv"]
    """What to write."""
    out: Path
    """File to write (onnx, safetensors) or folder (csv)."""
    csv_files: int = 1
    """csv: number of files SPLIT-0.csv, SPLIT-1.csv, ... (the walkthrough has one a worker)."""
    view: int = 0
    """csv: which view's logits."""
    background_logit: float | None = None
    """csv: one number a class of the data, this one for classes that the teacher lacks (the original's files: 0).
    Default: one number a class of the teacher."""

    def __post_init__(self) -> None:
        _require(self.csv_files >= 1, "--csv-files", self.csv_files, "at least 1")
        _require(self.view >= 0, "--view", self.view, "0 or more")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """All of it on handwritten digits that ship with scikit-learn: records, extract, verify, merge, train, compare."""

    out: Path = Path("demo")
    """Folder for everything that the demo makes."""
    seeds: int = 3
    """Students a row of the table, each with another seed."""


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON values: paths as strings, tuples as lists, infinities as strings."""
    return {field.name: _json_value(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require(holds: bool, flag: str, found: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{flag} {found}: expected {expected}")


def _check_crop(scale: tuple[float, float], ratio: tuple[float, float], flip_prob: float) -> None:
    _require(0 < scale[0] <= scale[1] <= 1, "--crop-scale", f"{scale[0]} {scale[1]}", "0 < least <= most <= 1")
    _require(0 < ratio[0] <= ratio[1], "--crop-ratio", f"{ratio[0]} {ratio[1]}", "0 < least <= most")
    _require(0 <= flip_prob <= 1, "--flip-prob", flip_prob, "a probability from 0 to 1")
