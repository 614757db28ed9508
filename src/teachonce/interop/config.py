"""The options of ``records``, ``merge``, ``import``, ``export-logits`` and ``upgrade``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from teachonce.codecs.options import KEPT_CLASSES, CodecName
from teachonce.engine.options import EngineOptions
from teachonce.errors import ConfigError
from teachonce.options import (
    Condition,
    Count,
    CountOrNone,
    InData,
    InOutput,
    InRunning,
    InStore,
    InTeacher,
    Label,
    Logit,
    NumClasses,
    Open,
    Positional,
    Range,
    Seed,
    check_applicable,
    check_values,
    only_with,
)
from teachonce.records.options import RecordOptions, given_record_options

MarkerName = Literal["auto", "row"]
"""Where restart markers go: several per row of blocks where the row divides evenly, or one per row."""

_CSV = Condition("--format csv", lambda options: options.format == "csv")
_PARQUET = Condition("--format parquet", lambda options: options.format == "parquet")
_LOGITS = Condition("--logits", lambda options: options.logits is not None)
_NumShards = Annotated[int, Range(1, 99_999, "at least 1, at most 99999 (the names have five digits)")]
_Transfers = Annotated[int, Range(1, 256, "1 to 256")]


class Span(NamedTuple):
    """Shards or views from ``first`` up to but not including ``end``, counted from 0."""

    first: int
    end: int

    def __str__(self) -> str:
        return f"{self.first}:{self.end}"


def parse_span(option: str, text: str | None) -> Span | None:
    """Parse a span such as "0:10"; raises ConfigError for other texts."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(
            f"{option} {text or repr(text)}: expected FIRST:END, the first and one past the last, such as 0:10"
        )
    return Span(int(match[1]), int(match[2]))


@dataclass(frozen=True, kw_only=True)
class RecordsConfig(EngineOptions):
    """Convert images to TFRecord shards, optionally with teacher logits."""

    images: InData[Path]
    """Folder that holds SPLIT/CLASS/*.jpg (ILSVRC: train/n01440764/*.JPEG), or SPLIT/*.JPEG with --image-labels.
    CLASS/*.jpg in no splits are --split train."""
    out: InOutput[Path]
    """Folder for the TFRecord shards; created if missing."""
    split: InData[str] = "train"
    """Split to convert; also the prefix of the shard names."""
    shards: InOutput[_NumShards] = 1
    """Number of shards (ImageNet: 1024 for train, 128 for validation)."""
    labels: InData[Path | None] = None
    """Class names (synsets), one per line; line N is label N, 0 is background, which may come first as a line of its
    own. Default: the sorted class folders."""
    image_labels: InData[Path | None] = None
    """For a split without class folders: one class name per line, line N for the N-th image in sorted order."""
    metadata: InData[Path | None] = None
    """Human-readable class names, one 'synset<TAB>text' per line. Default: timm's tables if the classes are synsets."""
    boxes: InData[Path | None] = None
    """Bounding boxes: a CSV (name,xmin,ymin,xmax,ymax, relative to the image) or a folder of ILSVRC XML files."""
    logits: InTeacher[Path | None] = None
    """A store, or a folder of the walkthrough's CSV files: each record gets its teacher logits as image/logit."""
    background_logit: InTeacher[Logit] = only_with(float("-inf"), _LOGITS)
    """Logit for classes that the teacher does not have; 0 reproduces the walkthrough's files (and gives such classes
    real probability)."""
    keep: InOutput[bool] = False
    """Keep the bytes of every image, so that a record's key is that of its file. Without this option PNG, WebP, BMP,
    PPM and CMYK JPEG are converted to RGB JPEG, as by TF-slim's builder. With it, image/format names each format;
    TensorFlow's decode_image reads all of them except PPM (older versions: except WebP). GIF is always refused."""
    restart: InOutput[Literal[MarkerName, "off"]] = "off"
    """Insert restart markers into every JPEG, losslessly, so that a crop decodes only its own part of the image.
    auto: several per row of blocks where the width allows it, row: one per row. Record keys stay those of the
    original images."""
    seed: InOutput[Seed] = 0
    """Seed of the shuffle."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)
        self.check_engine()


@dataclass(frozen=True, kw_only=True)
class MergeConfig(EngineOptions):
    """Copy TFRecords with a store's logits inserted as image/logit, in constant memory."""

    store: InStore[Positional[Path]]
    """Folder of the store: policy center, or any without mixing and the view to take with --view."""
    data: InData[Path]
    """Folder of the TFRecords from which the store was extracted."""
    out: InOutput[Path]
    """Folder for the merged shards; finished shards are kept, missing ones are written."""
    view: InStore[CountOrNone | None] = None
    """View whose logits are inserted. Default: that of policy center; of random views, whose crop no reader of the
    records knows, one must be named."""
    background_logit: InOutput[Logit] = float("-inf")
    """Logit for classes that the teacher does not have; 0 reproduces the walkthrough's files (and gives such classes
    real probability)."""
    trust: InStore[bool] = False
    """Skip the comparison of the store's blocks with their hashes on first read."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)
        self.check_engine()


@dataclass(frozen=True, kw_only=True)
class ReindexConfig:
    """Copy TFRecords with restart markers in their JPEGs, so that crops decode faster; the pixels stay the same."""

    data: InData[Path]
    """Folder of the TFRecords."""
    out: InOutput[Path]
    """Folder for the new shards; finished shards are kept, missing ones are written."""
    split: InData[str] = "train"
    """Split to use."""
    restart: InOutput[MarkerName] = "auto"
    """auto: several markers per row of blocks where the width allows it, row: one per row. Record keys do not
    change."""
    num_workers: InRunning[CountOrNone] = 0
    """Processes that write shards; 0 means one per core, fewer for small inputs."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class ImportConfig(RecordOptions):
    """Import the walkthrough's CSV logits into a store."""

    csv: InData[Positional[Path]]
    """Folder of SPLIT-*.csv: basename, then one number per class, no header."""
    data: InData[Path]
    """The records that the logits belong to, in any container, matched by basename."""
    out: InStore[Path]
    """Folder of the store."""
    split: InData[str] = "train"
    """Split to use."""
    codec: InStore[Open[CodecName]] = "float32"
    """How logits are stored."""
    topk: InStore[Count] = only_with(10, KEPT_CLASSES)
    """Codec topk: number of classes to keep."""
    drop: InData[CountOrNone] = 0
    """Numbers to skip at the start of each line: 1 for the original EfficientNet files (which have a dummy class)."""
    offset: InData[Label | None] = None
    """Data label of the first number that is kept. Default: 0, or 1 if only the data has a background class."""
    num_classes: InData[NumClasses | None] = None
    """Classes of the data, background included. Default: from the data, else the CSV's classes + offset."""
    teacher_license: InTeacher[str | None] = None
    """License and terms of the teacher, for the store's card (README.md). Default: what the card already says."""
    repair: InStore[bool] = False
    """First compare every byte of the store's files with their hashes, and import the damaged ones again."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class ExportLogitsConfig:
    """Export a store's logits to Parquet or to the walkthrough's CSV."""

    store: InStore[Positional[Path]]
    """Folder of the store."""
    out: InOutput[Path]
    """Folder for the files: SHARD.parquet for each shard, or SPLIT-0.csv, SPLIT-1.csv, ..."""
    format: InOutput[Literal["parquet", "csv"]] = "parquet"
    """parquet: one row per view, with key, filename, label, view, crop box and flip, and the logits as lists; csv:
    one line per image, its basename and one number per class."""
    view: InStore[CountOrNone | None] = None
    """Export only this view. Default: parquet: all views; csv: that of policy center; of random views
    one must be named."""
    top: InOutput[Count | None] = only_with(None, _PARQUET)
    """parquet: only this many of the most likely classes per row, as lists of classes and of their logits. Default:
    all classes, or as many as codec topk has kept."""
    csv_files: InOutput[Count] = only_with(1, _CSV)
    """csv: number of files (the walkthrough has one per worker)."""
    background_logit: InOutput[Logit | None] = only_with(None, _CSV)
    """csv: write one number per class of the data, this one for classes that the teacher does not have (the original
    files: 0). Default: one number per class of the teacher."""
    trust: InStore[bool] = False
    """Skip the comparison of the store's blocks with their hashes on first read."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class UpgradeConfig(RecordOptions):
    """Convert a store of format 1 or 2 to the current format, without the teacher."""

    store: InStore[Positional[Path]]
    """Folder of the old store; it is not changed."""
    out: InOutput[Path | None] = None
    """Folder of the new store. Default: STORE-v3, next to the old one."""
    data: InData[Path | None] = None
    """The records of the store, to add their class names to the new store; a sample of keys and labels is compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None and (given := given_record_options(self)):
            raise ConfigError(f"{given}: applies only with --data, found no --data")


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """Copy a store, records or a run to another place and check every byte; run again to resume."""

    source: InData[Positional[Path]]
    """Folder of a store, records or a run: a local path, s3://, gs://, az://, or http(s):// of a web server."""
    target: InOutput[Positional[Path]]
    """Destination: a local path, s3://, gs:// or az://. Files that are already there with the right bytes are kept."""
    views: InData[str | None] = None
    """Store: copy the views FIRST:END, such as 0:10 for the first ten. FIRST is 0, and END falls between two view
    files."""
    shards: InData[str | None] = None
    """Copy only the shards FIRST:END, such as 0:100 for the first hundred, of a store or of records."""
    split: InData[str | None] = None
    """Records: copy only this split."""
    transfers: InRunning[_Transfers] = 8
    """Files transferred at the same time."""
    trust: InStore[bool] = False
    """Keep files that are at the target with the right size, without reading them again."""

    def __post_init__(self) -> None:
        check_values(self)
        for option, text in (("--views", self.views), ("--shards", self.shards)):
            parse_span(option, text)
