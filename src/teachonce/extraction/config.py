"""The options of ``extract``, ``verify`` and ``plan``: frozen dataclasses, checked in ``__post_init__``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from teachonce.codecs.options import KEPT_CLASSES, CodecName
from teachonce.engine.options import RAY, EngineOptions
from teachonce.errors import ConfigError
from teachonce.models.options import Precision, Spec
from teachonce.options import (
    Alias,
    Common,
    Count,
    CountOrNone,
    InData,
    InForecast,
    InOutput,
    InRunning,
    InStore,
    InTeacher,
    InViews,
    Label,
    NumClasses,
    Open,
    Positional,
    Range,
    Seed,
    check_applicable,
    check_values,
    given_options,
    only_with,
    option_arguments,
    require,
    to_json,
)
from teachonce.records.options import RecordOptions
from teachonce.views.options import DRAWN_VIEWS, MixOptions, PolicyName

_Gpus = Annotated[float, Range(0, 1024, "0 or more, at most 1024")]
_Price = Annotated[float, Range(0, 1e9, "0 or more, at most 1000000000")]
_Gbps = Annotated[float, Range(0, 1e6, "more than 0, at most 1000000", excludes_least=True)]
_Accuracy = Annotated[float, Range(0, 1, "a fraction from 0 to 1")]


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions(MixOptions, RecordOptions):
    """What a teacher sees and how its logits are stored: what ``extract`` does and ``plan`` estimates."""

    COMMON_OPTIONS = ("val_fraction", "labels")
    """Inherited options that most calls need here, as ``Common`` marks others."""

    data: InData[Common[Path]]
    """Folder of TFRecords, of SPLIT/CLASS or CLASS folders of images, of images alone, tars or Parquet; or a table
    of images (.csv, .jsonl, .parquet, .txt)."""
    teacher: InTeacher[Common[Spec]]
    """Model SPEC: timm:NAME, torchvision:NAME, onnx:FILE, savedmodel:DIR, run:DIR, amoebanet, efficientnet; options
    follow after commas, as in torchvision:resnet50,weights=FILE,size=224,resize=256,mean=0.5/0.5/0.5."""
    split: InData[Common[str]] = "train"
    """Split to run the teacher on."""
    policy: InViews[Common[PolicyName]] = "center"
    """What the teacher sees: its own evaluation crop (center), random resized crops and flips (crop), or these with
    RandAugment (crop+randaugment) or AutoAugment's ImageNet policy (crop+autoaugment). All but center can be
    combined with erasing, mixup and cutmix."""
    views: InViews[Common[Count | None]] = None
    """Views per record (random policies)."""
    views_per_file: InStore[Count] = only_with(10, DRAWN_VIEWS)
    """Views per file of the store; a unit of work is one shard x this many views."""
    codec: InStore[Common[Open[CodecName]]] = "int8"
    """How logits are stored: float32 (exact), float16, int8 (about 1 byte per class, total variation below 0.01),
    topk (the most likely classes and the total probability of the others)."""
    topk: InStore[Common[Count]] = only_with(10, KEPT_CLASSES)
    """Codec topk: number of classes to keep."""
    offset: InTeacher[Label | None] = None
    """Data label of the teacher's class 0. Default: found by class names where both have them (a run, an exported
    ONNX file); otherwise 0, or 1 if only the data has a background class."""
    num_classes: InData[NumClasses | None] = None
    """Classes of the data, background included. Default: from the data, else the teacher's classes + offset."""
    batch_size: InTeacher[Common[Count]] = 64
    """Images per teacher batch."""
    decode_threads: InRunning[CountOrNone] = 0
    """Threads that decode ahead of the teacher; 0 means one per core of this worker's share."""
    device: InRunning[Common[str]] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: InTeacher[Common[Precision]] = "float32"
    """Autocast precision of the teacher: float32 (none), bf16 or fp16."""
    compile: InTeacher[bool] = False
    """Compile the teacher with torch.compile."""
    profile: InRunning[bool] = False
    """Print how the time of each unit of work was spent: read, look (decode and transform), wait, teacher, encode
    and write."""
    seed: InViews[Common[Seed]] = 0
    """Seed of the views (random policies)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws_no_views:
            require(self.views in (None, 1), "--views", self.views, "1 with --policy center")
        check_applicable(self)

    @property
    def draws_no_views(self) -> bool:
        """Whether the teacher uses its own evaluation crop, so that there is one view and nothing is random."""
        return self.policy == "center"


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ExtractionOptions, EngineOptions):
    """Run the teacher once over the data and keep its logits in a store."""

    out: InStore[Common[Path]]
    """Folder of the store. An unfinished store with the same plan is resumed; one with a different plan is refused."""
    views: InViews[Common[Count | None]] = None
    """Views per record (random policies). More can be added later with the same command and a larger number.
    Default: 1, or as many as --views-of has."""
    views_of: InViews[Common[Path | None]] = None
    """Show the teacher the views of this store, with its policy, seed and number of views."""
    teacher_license: InTeacher[str | None] = None
    """License and terms of the teacher, for the store's card (README.md). Default: what the card already says."""
    expect_top1: InTeacher[Common[_Accuracy | None]] = None
    """Before starting, score the teacher on --gate-samples labeled records; stop if its top-1 is below this (0..1)."""
    gate_samples: InTeacher[CountOrNone] = 256
    """Labeled records on which the teacher is scored before the work starts; 0 skips this check."""
    num_workers: InRunning[Common[Count]] = 1
    """Teacher processes on this machine: one per GPU, or N on the CPU. With --engine ray: workers in the cluster."""
    worker_gpus: InRunning[_Gpus | None] = only_with(None, RAY)
    """GPUs per worker in the cluster, such as 0.5 for two workers on one GPU. Default: 1 if the cluster has any, 0
    with --device cpu."""
    repair: InStore[Common[bool]] = False
    """First compare every byte of the store's files with their hashes, and recompute the damaged ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expect_top1 is not None:
            require(self.gate_samples > 0, "--gate-samples", 0, "more than 0 with --expect-top1")
        if self.views_of is not None:
            self._refuse_views_of_our_own()
        if self.worker_gpus is not None and self.worker_gpus > 1:
            require(self.worker_gpus == int(self.worker_gpus), "--worker-gpus", self.worker_gpus, "an integer above 1")
        self.check_engine()

    @property
    def worker_gpus_wanted(self) -> float | None:
        """GPUs that a worker in the cluster occupies; None: as the cluster has them."""
        return 0 if self.worker_gpus is None and self.device == "cpu" else self.worker_gpus

    @property
    def draws_no_views(self) -> bool:
        """As without ``--views-of``, which brings views of its own."""
        return self.views_of is None and super().draws_no_views

    def _refuse_views_of_our_own(self) -> None:
        given = given_options(self)
        for name in ("policy", "seed", *(field.name for field in dataclasses.fields(MixOptions))):
            if name in given:
                raise ConfigError(
                    f"{' '.join(option_arguments(name, given[name]))}: not given together with --views-of "
                    f"{self.views_of}, whose policy and seed are used; leave it out"
                )

    def to_repeat(self) -> dict[str, Any]:
        """The options as JSON, for ``--config``: what the store depends on, not where it is and how it was made."""
        engine = {field.name for field in dataclasses.fields(EngineOptions)}
        of_this_call = {"out", "num_workers", "worker_gpus", "repair", "profile", "teacher_license", *engine}
        return {name: value for name, value in to_json(self).items() if name not in of_this_call}


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ExtractionOptions):
    """Estimate bytes, hours, codec error and break-even of an extraction from a sample, before running it."""

    policy: InViews[Common[PolicyName]] = "crop"
    """What the teacher sees, as --policy of extract (whose default is center): center, crop, crop+randaugment or
    crop+autoaugment, with erasing, mixup and cutmix if their options are given."""
    views: InViews[Common[Count | None]] = None
    """Views per record. Default: 10; 1 with --policy center."""
    epochs: InForecast[Common[Count]] = 100
    """Epochs per student; an online teacher would process every record again in each of them."""
    students: InForecast[Common[Count]] = 1
    """Number of students to train."""
    devices: InForecast[Common[Annotated[Count, Alias("num_devices")]]] = 8
    """Devices of the extraction, for the estimate of time, cost and network traffic on several of them."""
    price: InForecast[Common[_Price | None]] = None
    """Price of one device per hour, with its share of the machine, in any currency."""
    network_gbps: InForecast[_Gbps | None] = None
    """Bandwidth per device to data and store in 10^9 bits per second, if the network may be the bottleneck."""
    samples: InForecast[Common[Count]] = 256
    """Records to measure on; all of them if there are fewer."""
    out: InOutput[Common[Path | None]] = None
    """Folder for extraction-plan.txt, .json, .svg and .html. Default: write nothing."""
    json: InOutput[Common[bool]] = False
    """Print JSON."""

    def to_extraction(self) -> ExtractConfig:
        """The planned extraction; its ``out`` is a placeholder, nothing is written there."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(ExtractionOptions)}
        shared["views"] = self.views or (1 if self.draws_no_views else DEFAULT_PLANNED_VIEWS)
        return ExtractConfig(out=Path("store"), **shared)


DEFAULT_PLANNED_VIEWS = 10
"""Views that ``plan`` counts with where none are given and the policy draws them."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RecordOptions):
    """Check a store against its data and its teacher; exit code 0 if sound, 1 if not."""

    store: InStore[Positional[Path]]
    """Folder of the store."""
    data: InData[Path]
    """The data from which the store was extracted."""
    teacher: InTeacher[Spec | None] = None
    """Model SPEC to recompute logits with. Default: the teacher of the store's plan; 'none' recomputes no logits and
    checks files, keys, top-1 and pixels."""
    samples: InTeacher[CountOrNone] = 256
    """Number of records whose logits are recomputed, and of stored samples whose pixels are; 0 skips both and checks
    only files, keys and top-1."""
    batch_size: InTeacher[Count] = 64
    """Images per teacher batch."""
    device: InRunning[str] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: InTeacher[Seed] = 0
    """Seed of the sample."""
    json: InOutput[bool] = False
    """Print the verdict as JSON."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)
