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
    Positional,
    Range,
    Seed,
    check_applicable,
    check_ranges,
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
    """What a teacher looks at and how its logits are kept: what ``extract`` does and ``plan`` foresees."""

    data: InData[Common[Path]]
    """Folder of TFRecords, of SPLIT/CLASS or CLASS folders of images, of images alone, tars or Parquet; or a table
    of images (.csv, .jsonl, .parquet, .txt)."""
    teacher: InTeacher[Common[Spec]]
    """Model SPEC: timm:NAME, torchvision:NAME, onnx:FILE, savedmodel:DIR, run:DIR, amoebanet, efficientnet; options
    follow after commas, as in torchvision:resnet50,weights=FILE,size=224,resize=256,mean=0.5/0.5/0.5."""
    split: InData[Common[str]] = "train"
    """Which split the teacher looks at."""
    policy: InViews[Common[PolicyName]] = "center"
    """What the teacher looks at: its own evaluation crop (center), random resized crops and flips (crop), or these with
    RandAugment (crop+randaugment) or AutoAugment's policy for ImageNet (crop+autoaugment); each of the latter with
    erasing, mixup and cutmix where their options say so."""
    views: InViews[Common[Count | None]] = None
    """Views a record (random policies)."""
    views_per_file: InStore[Count] = only_with(10, DRAWN_VIEWS)
    """Views in one file of the store: the unit of work is one shard x this many views."""
    codec: InStore[Common[CodecName]] = "int8"
    """How logits become bytes: float32 (exact), float16, int8 (about 1 byte a class, total variation below 0.01), topk
    (the likeliest classes and the mass of the rest)."""
    topk: InStore[Common[Count]] = only_with(10, KEPT_CLASSES)
    """Codec topk: classes that are kept."""
    offset: InTeacher[Label | None] = None
    """Data label of the teacher's class 0. Default: by the names of the classes where both have them (a run, an
    exported ONNX file); else 0, or 1 where only the data has a background class."""
    num_classes: InData[NumClasses | None] = None
    """Classes of the data, background included. Default: from the data, else the teacher's classes + offset."""
    batch_size: InTeacher[Common[Count]] = 64
    """Images a teacher batch."""
    decode_threads: InRunning[CountOrNone] = 0
    """Threads that decode ahead of the teacher; 0 means one a core of this worker's share."""
    device: InRunning[Common[str]] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: InTeacher[Common[Precision]] = "float32"
    """Autocast of the teacher: float32 (none), bf16 or fp16."""
    compile: InTeacher[bool] = False
    """torch.compile the teacher."""
    profile: InRunning[bool] = False
    """Print, for each piece of work, where its time went: read, look, wait, teacher, encode and write."""
    seed: InViews[Common[Seed]] = 0
    """Seed of the views (random policies)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws_no_views:
            require(self.views in (None, 1), "--views", self.views, "1 with --policy center")
        check_applicable(self)

    @property
    def draws_no_views(self) -> bool:
        """Whether the teacher looks through its own evaluation crop, so that there is one view and nothing random."""
        return self.policy == "center"


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ExtractionOptions, EngineOptions):
    """Run the teacher once over sharded data and keep its logits in a store."""

    out: InStore[Common[Path]]
    """Folder of the store. An unfinished store with the same plan is finished; another plan is refused."""
    views: InViews[Common[Count | None]] = None
    """Views a record (random policies). More can be added later by the same command with a larger number. Default: 1,
    or as many as --views-of has."""
    views_of: InViews[Common[Path | None]] = None
    """A store whose views this teacher shall look at: then policy, seed and views are that store's."""
    teacher_license: InTeacher[str | None] = None
    """License and terms of the teacher, for the store's card (README.md). Default: what the card says already."""
    expect_top1: InTeacher[Common[_Accuracy | None]] = None
    """Refuse to start where the teacher's top-1 on --gate-samples labeled records is below this (0..1)."""
    gate_samples: InTeacher[CountOrNone] = 256
    """Records on which the teacher is scored before the work starts; 0 skips the gate."""
    num_workers: InRunning[Common[Count]] = 1
    """Teacher processes on this machine: one a GPU, or N on the CPU. With --engine ray: workers in the cluster."""
    worker_gpus: InRunning[_Gpus | None] = only_with(None, RAY)
    """GPUs that a worker in the cluster occupies, such as 0.5 for two that share one. Default: 1 where the cluster has
    any, 0 with --device cpu."""
    repair: InStore[Common[bool]] = False
    """First compare every byte of the store's files, and make those again that are damaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expect_top1 is not None:
            require(self.gate_samples > 0, "--gate-samples", 0, "more than 0 with --expect-top1")
        if self.views_of is not None:
            self._refuse_views_of_our_own()
        if self.worker_gpus is not None and self.worker_gpus > 1:
            require(
                self.worker_gpus == int(self.worker_gpus), "--worker-gpus", self.worker_gpus, "a whole number above 1"
            )
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
        """The options as JSON, for ``--config``: what the store depends on, not where it lies and how it was made."""
        engine = {field.name for field in dataclasses.fields(EngineOptions)}
        of_this_call = {"out", "num_workers", "worker_gpus", "repair", "profile", "teacher_license", *engine}
        return {name: value for name, value in to_json(self).items() if name not in of_this_call}


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ExtractionOptions):
    """Bytes, hours, distortion and break-even of an extraction, measured on a sample before anything is spent."""

    policy: InViews[Common[PolicyName]] = "crop"
    """What the teacher is to look at, as --policy of extract (where the default is center): center, crop,
    crop+randaugment or crop+autoaugment, with erasing, mixup and cutmix where their options say so."""
    views: InViews[Common[Count | None]] = None
    """Views a record. Default: 10; 1 with --policy center."""
    epochs: InForecast[Common[Count]] = 100
    """Epochs of a student, in each of which an online teacher would look at every record again."""
    students: InForecast[Common[Count]] = 1
    """Students that are to be taught."""
    devices: InForecast[Common[Annotated[Count, Alias("num_devices")]]] = 8
    """Devices on which the extraction is to run, for hours, money and network on several."""
    price: InForecast[Common[_Price | None]] = None
    """What one device costs for an hour, in any currency, with its share of the machine."""
    network_gbps: InForecast[_Gbps | None] = None
    """Rate of a device's link to data and store in 10^9 bits a second, where the network may be what limits."""
    samples: InForecast[Common[Count]] = 256
    """Records to measure on; of fewer records all are taken."""
    out: InOutput[Common[Path | None]] = None
    """Folder for extraction-plan.txt, .json and .svg. Default: nothing is written."""
    json: InOutput[Common[bool]] = False
    """Print JSON."""

    def to_extraction(self) -> ExtractConfig:
        """The extraction that is planned; its ``out`` stands for a store that nobody makes."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(ExtractionOptions)}
        shared["views"] = self.views or (1 if self.draws_no_views else DEFAULT_PLANNED_VIEWS)
        return ExtractConfig(out=Path("store"), **shared)


DEFAULT_PLANNED_VIEWS = 10
"""Views that ``plan`` counts with where none are given and the policy draws them."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RecordOptions):
    """Check a store against its data and, if given, its teacher; exit 0 if sound, 1 if not."""

    store: InStore[Positional[Path]]
    """Folder of the store."""
    data: InData[Path]
    """The data that the store was extracted from."""
    teacher: InTeacher[Spec | None] = None
    """Model SPEC for fresh logits. Default: the teacher of the store's plan; 'none' recomputes no logits and
    checks files, keys, top-1 and pixels."""
    samples: InTeacher[CountOrNone] = 256
    """Records whose logits are recomputed, and samples of the store whose pixels are; 0 leaves both out and checks
    files, keys and top-1."""
    batch_size: InTeacher[Count] = 64
    """Images a teacher batch."""
    device: InRunning[str] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: InTeacher[Seed] = 0
    """Seed of the sample."""
    json: InOutput[bool] = False
    """Print the verdict as JSON."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_applicable(self)
