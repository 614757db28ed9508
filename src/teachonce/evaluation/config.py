"""The options of ``export`` and ``evaluate``: frozen dataclasses, checked in ``__post_init__``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teachonce.models.options import Precision
from teachonce.options import (
    Condition,
    Count,
    CountOrNone,
    Label,
    Logit,
    Positional,
    check_applicable,
    check_ranges,
    only_with,
    require,
)

_INT8 = Condition("--int8", lambda options: options.int8)
_CSV = Condition("--format csv", lambda options: options.format == "csv")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a run as ONNX or safetensors (checked against PyTorch), or a store as the walkthrough's CSV."""

    source: Positional[Path]
    """Folder of a run (onnx, safetensors) or of a store (csv)."""
    format: Literal["onnx", "safetensors", "csv"]
    """What to write."""
    out: Path
    """File to write (onnx, safetensors) or folder (csv)."""
    int8: bool = False
    """onnx: write it in 8-bit integers too, as NAME.int8.onnx beside NAME.onnx, and print a table of both: accuracy,
    agreement with the teacher, size and latency on this CPU. Needs --data."""
    data: Path | None = only_with(None, _INT8)
    """int8: folder of TFRecord shards, or of SPLIT/CLASS/*.jpg."""
    split: str = only_with("train", _INT8)
    """int8: split whose images calibrate the integers' ranges, and whose image/logit --logits compares with."""
    validation_split: str = only_with("validation", _INT8)
    """int8: split that both files are evaluated on."""
    validation_data: Path | None = only_with(None, _INT8)
    """int8: folder of the validation split, where it is not in --data."""
    calibration_images: Count = only_with(256, _INT8)
    """int8: images that calibrate, evenly spaced over the split."""
    calibration: Literal["minmax", "percentile"] = only_with("minmax", _INT8)
    """int8: ranges of activations: all that was seen, or without the outermost 0.001 % on each side (which keeps every
    activation of the calibration images in memory)."""
    weight_bits: Literal[7, 8] = only_with(7, _INT8)
    """int8: 7: no processor's sums overflow, so what is measured here holds on the phone. 8: finer, but x86 processors
    without VNNI overflow, so measure it elsewhere."""
    store: Path | None = only_with(None, _INT8)
    """int8: the teacher's store, to say how often both files agree with it: on its own views, or on whole images."""
    logits: Literal["records"] | None = only_with(None, _INT8)
    """int8: 'records': agreement with the teacher logits in image/logit of --split."""
    agreement_images: Count = only_with(2048, _INT8)
    """int8: at most so many images for the agreement with the teacher, evenly spaced."""
    json: bool = only_with(False, _INT8)
    """int8: print JSON."""
    trust: bool = only_with(False, _CSV)
    """csv: do not compare the store's blocks with their hashes as they are first read."""
    csv_files: Count = only_with(1, _CSV)
    """csv: number of files SPLIT-0.csv, SPLIT-1.csv, ... (the walkthrough has one a worker)."""
    view: CountOrNone = only_with(0, _CSV)
    """csv: which view's logits."""
    background_logit: Logit | None = only_with(None, _CSV)
    """csv: one number a class of the data, this one for classes that the teacher lacks (the original's files: 0).
    Default: one number a class of the teacher."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.int8:
            require(self.format == "onnx", "--int8", f"with --format {self.format}", "--format onnx")
            require(self.data is not None, "--int8", "without --data", "--data, whose images calibrate it")
            require(self.store is None or self.logits is None, "--logits", self.logits, "not given with --store")
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Top-1, top-5 and expected calibration error of a model on labelled records."""

    data: Path
    """Folder of TFRecord shards, or of SPLIT/CLASS/*.jpg."""
    model: str
    """Model SPEC, such as run:RUN or torchvision:resnet50,weights=FILE."""
    split: str = "validation"
    """Which split."""
    offset: Label | None = None
    """Data label of the model's class 0. Default: by the names of the classes where both have them (a run, an exported
    ONNX file); else 0, or 1 where only the data has a background class."""
    batch_size: Count = 64
    """Images a batch."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "float32"
    """Autocast of the model."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_ranges(self)
