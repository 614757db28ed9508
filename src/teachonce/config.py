"""The configuration of every command: frozen dataclasses, each field with the sentence that ``--help`` shows.

Nothing heavy is imported here, so that the command line answers at once. Values are checked in ``__post_init__``;
what needs the data to be judged (class counts, sizes) is checked by the program itself. The resolved configuration is
saved with every store and run by ``to_json``.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from teachonce.errors import ConfigError

CodecName = Literal["float32", "float16", "int8", "topk"]
PolicyName = Literal["center", "crop", "crop+randaugment", "crop+autoaugment"]
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
    """Processes that write shards; 0 means one a core, fewer where there is little to do."""

    def __post_init__(self) -> None:
        require(self.shards >= 1, "--shards", self.shards, "at least 1")
        require(self.shards <= 99_999, "--shards", self.shards, "at most 99999 (the names have five digits)")
        require(self.num_workers >= 0, "--num-workers", self.num_workers, "0 (one a core) or more")


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The parameters of the policies that draw views."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: area as a fraction of the image, least and most (1 1: the whole image)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: aspect ratio (width / height), least and most."""
    object_covered: float = 0.0
    """A crop must show at least this part of an object; crops are then drawn by TensorFlow's rule, and after 100
    attempts the whole image is taken (the walkthrough: 0.1 with --crop-scale 0.05 1). 0 is off."""
    object_boxes: Literal["records", "image"] = "records"
    """--object-covered: what the objects are: the bounding boxes of the records (the whole image for a record without),
    or always the whole image, as in the walkthrough's own training."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip."""
    randaugment_ops: int = 2
    """Policy crop+randaugment: operations a view."""
    randaugment_magnitude: float = 9.0
    """Policy crop+randaugment: mean level of the operations, 0 to 10."""
    randaugment_magnitude_std: float = 0.5
    """Policy crop+randaugment: standard deviation of the level."""
    erase_prob: float = 0.0
    """Probability that a box of a view is filled with a random colour; 0 is off."""
    erase_scale: tuple[float, float] = (0.02, 1 / 3)
    """Erased box: area as a fraction of the view, least and most."""
    erase_ratio: tuple[float, float] = (0.3, 10 / 3)
    """Erased box: height / width, least and most."""

    def __post_init__(self) -> None:
        _check_ranges("--crop-scale", self.crop_scale, "--crop-ratio", self.crop_ratio)
        _check_ranges("--erase-scale", self.erase_scale, "--erase-ratio", self.erase_ratio)
        for name in ("flip_prob", "erase_prob", "object_covered"):
            require(0 <= getattr(self, name) <= 1, flag(name), getattr(self, name), "a probability from 0 to 1")
        require(1 <= self.randaugment_ops <= 255, "--randaugment-ops", self.randaugment_ops, "1 to 255")
        level, std = self.randaugment_magnitude, self.randaugment_magnitude_std
        require(0 <= level <= 10, "--randaugment-magnitude", level, "0 to 10")
        require(std >= 0, "--randaugment-magnitude-std", std, "0 or more")


@dataclass(frozen=True, kw_only=True)
class MixOptions(ViewOptions):
    """The same, and mixing: the teacher sees the mixed image."""

    mixup_alpha: float = 0.0
    """Mixup with a share from Beta(alpha, alpha); 0 is off."""
    cutmix_alpha: float = 0.0
    """Cutmix with an area from Beta(alpha, alpha); 0 is off."""
    mix_prob: float = 1.0
    """Probability that a view is mixed, where one of the two is on."""
    cutmix_prob: float = 0.5
    """Part of the mixes that are cutmix, where both are on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mixup_alpha", "cutmix_alpha"):
            require(getattr(self, name) >= 0, flag(name), getattr(self, name), "0 or more")
        require(0 < self.mix_prob <= 1, "--mix-prob", self.mix_prob, "more than 0, up to 1")
        require(0 <= self.cutmix_prob <= 1, "--cutmix-prob", self.cutmix_prob, "a probability from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions(MixOptions):
    """What a teacher looks at and how its logits are kept: what ``extract`` does and ``plan`` foresees."""

    data: Path
    """Folder of TFRecord shards, or of SPLIT/CLASS/*.jpg."""
    teacher: str
    """Model SPEC: timm:NAME, torchvision:NAME, onnx:FILE, savedmodel:DIR, run:DIR, amoebanet, efficientnet; options
    follow after commas, as in torchvision:resnet50,weights=FILE,size=224,resize=256,mean=0.5/0.5/0.5."""
    split: str = "train"
    """Which split the teacher looks at."""
    policy: PolicyName = "center"
    """What the teacher looks at: its own evaluation crop (center), random resized crops and flips (crop), or these with
    RandAugment (crop+randaugment) or AutoAugment's policy for ImageNet (crop+autoaugment); each of the latter with
    erasing, mixup and cutmix where their options say so."""
    views: int | None = None
    """Views a record (random policies)."""
    views_per_file: int = 10
    """Views in one file of the store: the unit of work is one shard x this many views."""
    codec: CodecName = "int8"
    """How logits become bytes: float32 (exact), float16, int8 (about 1 byte a class, total variation below 0.01), topk
    (the likeliest classes and the mass of the rest)."""
    topk: int = 10
    """Codec topk: classes that are kept."""
    offset: int | None = None
    """Data label of the teacher's class 0. Default: 0, or 1 where only the data has a background class."""
    num_classes: int | None = None
    """Classes of the data, background included. Default: from the data, else the teacher's classes + offset."""
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
    profile: bool = False
    """Print, for each piece of work, where its time went: read, look, wait, teacher, encode and write."""
    seed: int = 0
    """Seed of the views (random policies)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.views is None or self.views >= 1, "--views", self.views, "at least 1")
        if self.draws_no_views:
            require(self.views in (None, 1), "--views", self.views, "1 with --policy center")
            for name in ("mixup_alpha", "cutmix_alpha", "erase_prob", "object_covered"):
                require(getattr(self, name) == 0, flag(name), getattr(self, name), "0 with --policy center")
        for name in ("topk", "views_per_file", "batch_size"):
            require(getattr(self, name) >= 1, flag(name), getattr(self, name), "at least 1")
        require(self.num_classes is None or self.num_classes >= 2, "--num-classes", self.num_classes, "at least 2")

    @property
    def draws_no_views(self) -> bool:
        """Whether the teacher looks through its own evaluation crop, so that there is one view and nothing random."""
        return self.policy == "center"


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ExtractionOptions):
    """Run the teacher once over sharded data and keep its logits in a store."""

    out: Path
    """Folder of the store. An unfinished store with the same plan is finished; another plan is refused."""
    views: int | None = None
    """Views a record (random policies). More can be added later by the same command with a larger number. Default: 1,
    or as many as --views-of has."""
    views_of: Path | None = None
    """A store whose views this teacher shall look at: then policy, seed and views are that store's."""
    expect_top1: float | None = None
    """Refuse to start where the teacher's top-1 on --gate-samples labelled records is below this (0..1)."""
    gate_samples: int = 256
    """Records on which the teacher is scored before the work starts; 0 skips the gate."""
    num_workers: int = 1
    """Teacher processes on this machine: one a GPU, or N on the CPU."""
    worker: str = "0/1"
    """i/n: this call takes the i-th of n parts of the work, shards x groups of views (for a scheduler's job array)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_workers >= 1, "--num-workers", self.num_workers, "at least 1")
        require(self.gate_samples >= 0, "--gate-samples", self.gate_samples, "0 or more")
        if self.expect_top1 is not None:
            require(0 <= self.expect_top1 <= 1, "--expect-top1", self.expect_top1, "a fraction from 0 to 1")
            require(self.gate_samples > 0, "--gate-samples", 0, "more than 0 with --expect-top1")
        self.worker_part()

    @property
    def draws_no_views(self) -> bool:
        """As without ``--views-of``, which brings views of its own."""
        return self.views_of is None and super().draws_no_views

    def worker_part(self) -> tuple[int, int]:
        """(i, n) of ``--worker i/n``."""
        index, slash, count = self.worker.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigError(f"--worker {self.worker}: expected i/n with 0 <= i < n, such as 3/8")
        return int(index), int(count)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ExtractionOptions):
    """Bytes, hours, distortion and break-even of an extraction, measured on a sample before anything is spent."""

    policy: PolicyName = "crop"
    """What the teacher is to look at, as --policy of extract (where the default is center): center, crop,
    crop+randaugment or crop+autoaugment, with erasing, mixup and cutmix where their options say so."""
    views: int | None = None
    """Views a record. Default: 10; 1 with --policy center."""
    epochs: int = 100
    """Epochs of a student, in each of which an online teacher would look at every record again."""
    students: int = 1
    """Students that are to be taught."""
    num_devices: int = 8
    """Devices on which the extraction is to run, for the hours on several."""
    samples: int = 256
    """Records to measure on; of fewer records all are taken."""
    out: Path | None = None
    """Folder for extraction-plan.txt, .json and .svg. Default: nothing is written."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "students", "num_devices", "samples"):
            require(getattr(self, name) >= 1, flag(name), getattr(self, name), "at least 1")

    def to_extraction(self) -> ExtractConfig:
        """The extraction that is planned; its ``out`` stands for a store that nobody makes."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(ExtractionOptions)}
        shared["views"] = self.views or (1 if self.draws_no_views else DEFAULT_PLANNED_VIEWS)
        return ExtractConfig(out=Path("store"), **shared)


DEFAULT_PLANNED_VIEWS = 10
"""Views that ``plan`` counts with where none are given and the policy draws them."""


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
        require(self.samples >= 0, "--samples", self.samples, "0 or more")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what is in a folder of records, a store or a run."""

    path: Positional[Path]
    """Folder of records, a store or a run."""
    split: str | None = None
    """Records: only this split. Default: all that are there."""
    json: bool = False
    """Print JSON."""
    html: bool = False
    """Store: write a page to look at in a browser, inspect.html."""
    data: Path | None = None
    """The records that the store was extracted from, for the pictures of --html."""
    out: Path | None = None
    """File for the page of --html. Default: inspect.html in the store."""

    def __post_init__(self) -> None:
        require(not (self.html and self.json), "--html", "with --json", "one of the two")
        for name in ("data", "out"):
            value = getattr(self, name)
            require(self.html or value is None, flag(name), value, "--html with it, it is for the page alone")


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
    """Processes that write shards; 0 means one a core, fewer where there is little to do."""

    def __post_init__(self) -> None:
        require(self.view >= 0, "--view", self.view, "0 or more")
        require(self.num_workers >= 0, "--num-workers", self.num_workers, "0 (one a core) or more")


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
    topk: int = 10
    """Codec topk: classes that are kept."""
    drop: int = 0
    """Numbers to leave out at the start of each line: 1 for the original's EfficientNet files (a made-up class)."""
    offset: int | None = None
    """Data label of the first number that is kept. Default: 0, or 1 where only the data has a background class."""
    num_classes: int | None = None
    """Classes of the data, background included. Default: from the data, else the CSV's classes + offset."""


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
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")


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


def command_line(config: Any) -> str:
    """The options of a configuration that differ from the defaults, as they are typed."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        if "Positional" in str(field.type):
            words.append(str(value))
        elif "UseAppendAction" in str(field.type):
            words += [word for item in value for word in option_words(field.name, item)]
        else:
            words += option_words(field.name, value)
    return shlex.join(words)


def option_words(name: str, value: Any) -> list[str]:
    """A field with its value as the words of a command line."""
    if isinstance(value, bool):
        return [flag(name if value else "no_" + name)]
    return [flag(name), *[str(item) for item in (value if isinstance(value, tuple) else (value,))]]


def flag(name: str) -> str:
    """A field's name as its option."""
    return "--" + name.replace("_", "-")


def require(holds: bool, option: str, found: object, expected: str) -> None:
    """Raise ConfigError, naming option, value and expectation, unless the condition holds."""
    if not holds:
        raise ConfigError(f"{option} {found}: expected {expected}")


def _check_ranges(scale_option: str, scale: tuple[float, float], ratio_option: str, ratio: tuple[float, float]) -> None:
    require(0 < scale[0] <= scale[1] <= 1, scale_option, f"{scale[0]} {scale[1]}", "0 < least <= most <= 1")
    require(0 < ratio[0] <= ratio[1], ratio_option, f"{ratio[0]} {ratio[1]}", "0 < least <= most")
