"""The options of ``export-onnx``, ``export-weights``, ``evaluate`` and ``predict``, checked in ``__post_init__``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teachonce.errors import ConfigError
from teachonce.models.options import EpochName, Precision, Spec
from teachonce.options import (
    Condition,
    Count,
    InData,
    InInt8,
    InModel,
    InOutput,
    InRunning,
    InTeacher,
    Label,
    Positional,
    check_applicable,
    check_values,
    only_with,
    require,
)
from teachonce.records.options import RecordOptions, given_record_options

PreprocessingPlace = Literal["outside", "inside"]
"""Where an exported model's mean, std and layout are: in the program that uses it, or in its graph."""
_PAGES = Condition("--html or --csv", lambda options: options.html is not None or options.csv is not None)
_CSV = Condition("--csv", lambda options: options.csv is not None)
_INT8 = Condition("--int8", lambda options: options.int8)


@dataclass(frozen=True, kw_only=True)
class ExportOnnxConfig(RecordOptions):
    """Export a run's student to ONNX, checked against PyTorch; with --int8 also quantized to 8-bit integers, and
    compare both."""

    run: InModel[Positional[Path]]
    """Folder of a run."""
    epoch: InModel[EpochName] = "last"
    """Weights of the last epoch, or of the one with the best validation top-1 (best)."""
    out: InOutput[Path]
    """File to write; labels.txt beside it gets the names of the classes, where the data has names."""
    overwrite: InOutput[bool] = False
    """Replace existing files, labels.txt too, once the new ones are checked."""
    preprocessing: InOutput[PreprocessingPlace] = "outside"
    """Where mean, std and layout are applied: outside (input float32 [batch, 3, size, size], normalized) or inside
    the graph (input uint8 [batch, size, size, 3], pixels as decoded). Resizing and cropping are outside in both."""
    int8: InInt8[bool] = False
    """Also write a model quantized to 8-bit integers, NAME.int8.onnx next to NAME.onnx, and print a table of both:
    accuracy, agreement with the teacher, size and latency on this CPU. Needs --data."""
    data: InInt8[Path | None] = only_with(None, _INT8)
    """Folder of TFRecords, of SPLIT/CLASS or CLASS folders of images, of images alone, tars or Parquet; or a table
    of images (.csv, .jsonl, .parquet, .txt)."""
    split: InInt8[str] = only_with("train", _INT8)
    """Split whose images calibrate the integer ranges, and whose image/logit --logits compares with."""
    validation_split: InInt8[str] = only_with("validation", _INT8)
    """Split that both files are evaluated on."""
    validation_data: InInt8[Path | None] = only_with(None, _INT8)
    """Folder of the validation split, if it is not in --data."""
    calibration_images: InInt8[Count] = only_with(256, _INT8)
    """Number of calibration images, evenly spaced over the split."""
    calibration: InInt8[Literal["minmax", "percentile"]] = only_with("minmax", _INT8)
    """Activation ranges: minimum and maximum (minmax), or without the outermost 0.0005 % on each side (percentile,
    which keeps all activations of the calibration images in memory)."""
    weight_bits: InInt8[Literal[7, 8]] = only_with(7, _INT8)
    """7: sums overflow on no processor, so results measured here hold on a phone. 8: finer, but x86 processors
    without VNNI overflow, so measure it elsewhere."""
    store: InInt8[Path | None] = only_with(None, _INT8)
    """The teacher's store, to measure how often both models agree with it: on the stored views, or on center crops
    for a center store."""
    logits: InInt8[Literal["records"] | None] = only_with(None, _INT8)
    """'records': agreement with the teacher logits in image/logit of --split."""
    agreement_images: InInt8[Count] = only_with(2048, _INT8)
    """Maximum number of images for the agreement with the teacher, evenly spaced."""
    json: InOutput[bool] = only_with(False, _INT8)
    """Print the comparison as JSON."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.int8:
            require(self.data is not None, "--int8", "without --data", "--data, for calibration images")
            require(self.store is None or self.logits is None, "--logits", self.logits, "not given with --store")
        elif given := given_record_options(self):
            raise ConfigError(f"{given}: applies only with --int8, found no --int8")
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class ExportWeightsConfig:
    """Export a run's student to safetensors with its library's own tensor names; checked to give the same logits."""

    run: InModel[Positional[Path]]
    """Folder of a run."""
    epoch: InModel[EpochName] = "last"
    """Weights of the last epoch, or of the one with the best validation top-1 (best)."""
    out: InOutput[Path]
    """File to write; labels.txt beside it gets the names of the classes, where the data has names."""
    overwrite: InOutput[bool] = False
    """Replace existing files, labels.txt too, once the new ones are checked."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RecordOptions):
    """Measure a model on labeled records: accuracy in total and by class, calibration, which mistakes; beside another
    model or a stored teacher on the same images."""

    data: InData[Path]
    """Folder of TFRecords, of SPLIT/CLASS or CLASS folders of images, of images alone, tars or Parquet; or a table
    of images (.csv, .jsonl, .parquet, .txt)."""
    model: InModel[Spec]
    """Model SPEC, such as run:RUN or torchvision:resnet50,weights=FILE."""
    split: InData[str] = "validation"
    """Split to evaluate on."""
    offset: InModel[Label | None] = None
    """Data label of the model's class 0. Default: found by class names where both have them (a run, an exported ONNX
    file); otherwise 0, or 1 if only the data has a background class."""
    against: InModel[Spec | None] = None
    """A second model's SPEC, run on the same images: both accuracies, their difference with interval and test, and
    which classes gain or lose."""
    store: InTeacher[Path | None] = None
    """A store of these records: how often the model agrees with its teacher, and where it fails though the teacher is
    right."""
    batch_size: InModel[Count] = 64
    """Images per batch."""
    device: InRunning[str] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: InModel[Precision] = "float32"
    """Autocast precision of the model."""
    json: InOutput[bool] = False
    """Print JSON."""
    html: InOutput[Path | None] = None
    """File for a self-contained page: accuracy by class, confusions, calibration and the surest mistakes, with
    pictures."""
    csv: InOutput[Path | None] = None
    """File for a table of the classes: images, right answers, accuracy with its interval, most frequent wrong
    answer."""
    overwrite: InOutput[bool] = only_with(False, _PAGES)
    """Replace existing files of --html and --csv."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predict the classes of images: files, or folders of any depth. Prints a line an image, in their order."""

    model: InModel[Positional[Spec]]
    """Folder of a run, path of an .onnx file, or a model SPEC such as timm:resnet50."""
    images: InData[Positional[tuple[Path, ...]]]
    """Images and folders of images, local or at addresses."""
    top: InOutput[Count] = 5
    """Number of classes to show of each image, the most likely ones."""
    csv: InOutput[Path | None] = None
    """Write a CSV file instead, a row an image: image, label, class, probability, and the same of the further ones."""
    overwrite: InOutput[bool] = only_with(False, _CSV)
    """Replace an existing file of --csv."""
    json: InOutput[bool] = False
    """Print JSON, one object a line and image."""
    batch_size: InModel[Count] = 64
    """Images per batch."""
    device: InRunning[str] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: InModel[Precision] = "float32"
    """Autocast precision of the model."""

    def __post_init__(self) -> None:
        check_values(self)
        require(bool(self.images), "IMAGES", "none", "at least one image or folder of images")
        check_applicable(self)
