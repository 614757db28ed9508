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
    Positional,
    Range,
    Seed,
    check_applicable,
    check_ranges,
    only_with,
)

MarkerName = Literal["auto", "row"]
"""Where restart markers stand: several a row of an image where the row divides, or one a row."""

_CSV = Condition("--format csv", lambda options: options.format == "csv")
_PARQUET = Condition("--format parquet", lambda options: options.format == "parquet")
_LOGITS = Condition("--logits", lambda options: options.logits is not None)
_NumShards = Annotated[int, Range(1, 99_999, "at least 1, at most 99999 (the names have five digits)")]
_Transfers = Annotated[int, Range(1, 256, "1 to 256")]


class Span(NamedTuple):
    """Shards or views from ``first`` to before ``end``, counted from 0."""

    first: int
    end: int

    def __str__(self) -> str:
        return f"{self.first}:{self.end}"


def parse_span(option: str, text: str | None) -> Span | None:
    """The span that "0:10" means; raises ConfigError for what is none."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(
            f"{option} {text or repr(text)}: expected FIRST:END, the first and the one behind the last, such as 0:10"
        )
    return Span(int(match[1]), int(match[2]))


@dataclass(frozen=True, kw_only=True)
class RecordsConfig(EngineOptions):
    """Convert raw images to TFRecord shards, with logits inserted if wanted."""

    images: InData[Path]
    """Folder that holds SPLIT/CLASS/*.jpg (ILSVRC: train/n01440764/*.JPEG), or SPLIT/*.JPEG with --image-labels."""
    out: InOutput[Path]
    """Folder for the TFRecord shards; created if missing."""
    split: InData[str] = "train"
    """Which split to convert; also the prefix of the shard names."""
    shards: InOutput[_NumShards] = 1
    """Number of shards (ImageNet: 1024 for train, 128 for validation)."""
    labels: InData[Path | None] = None
    """Class names (synsets), one a line; line N is label N, 0 is background. Default: the sorted class folders."""
    image_labels: InData[Path | None] = None
    """For a flat split: one class name a line, line N for the N-th image in sorted order."""
    metadata: InData[Path | None] = None
    """Human text of the classes, 'synset<TAB>text' a line. Default: timm's tables where the classes are synsets."""
    boxes: InData[Path | None] = None
    """Bounding boxes: a CSV (name,xmin,ymin,xmax,ymax, relative to the image) or a folder of ILSVRC XML files."""
    logits: InTeacher[Path | None] = None
    """A store, or a folder of the walkthrough's CSV files: each record gets its teacher logits as image/logit."""
    background_logit: InTeacher[Logit] = only_with(float("-inf"), _LOGITS)
    """Logit for classes that the teacher does not know; 0 reproduces the walkthrough's files (and takes real mass)."""
    keep: InOutput[bool] = False
    """Keep the bytes of every image, so that a record's key is that of its file. Otherwise PNG, WebP, BMP, PPM and JPEG
    in CMYK become RGB JPEGs, as with TF-slim's builder. With it image/format says what each one is; TensorFlow's
    decode_image reads all of them but PPM (older versions: but WebP). GIF is refused either way."""
    restart: InOutput[MarkerName | Literal["off"]] = "off"
    """Restart markers in every JPEG, put in without loss: of a crop only its own part is decoded then. auto: several a
    row of the image where it can be, row: one a row. A record's key stays that of the image as it was."""
    seed: InOutput[Seed] = 0
    """Seed of the shuffle."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_applicable(self)
        self.check_engine()


@dataclass(frozen=True, kw_only=True)
class MergeConfig(EngineOptions):
    """Copy TFRecords with a store's logits inserted as image/logit, streaming in constant memory."""

    store: InStore[Positional[Path]]
    """Folder of the store (policy center, or the view to take with --view)."""
    data: InData[Path]
    """Folder of the TFRecords that the store was extracted from."""
    out: InOutput[Path]
    """Folder for the merged shards; finished shards are kept, missing ones are made."""
    view: InStore[CountOrNone] = 0
    """Which view's logits to insert."""
    background_logit: InOutput[Logit] = float("-inf")
    """Logit for classes that the teacher does not know; 0 reproduces the walkthrough's files (and takes real mass)."""
    trust: InStore[bool] = False
    """Do not compare the store's blocks with their hashes as they are first read."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_applicable(self)
        self.check_engine()


@dataclass(frozen=True, kw_only=True)
class ReindexConfig:
    """Copy TFRecords with restart markers in their JPEGs, so that crops decode faster; the pixels stay the same."""

    data: InData[Path]
    """Folder of the TFRecords."""
    out: InOutput[Path]
    """Folder for the new shards; finished shards are kept, missing ones are made."""
    split: InData[str] = "train"
    """Which split."""
    restart: InOutput[MarkerName] = "auto"
    """auto: several markers a row of the image where it can be, row: one a row. A record's key stays what it was."""
    num_workers: InRunning[CountOrNone] = 0
    """Processes that write shards; 0 means one a core, fewer where there is little to do."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Read the walkthrough's CSV logits into a store."""

    csv: InData[Positional[Path]]
    """Folder of SPLIT-*.csv: basename, then one number a class, no header."""
    data: InData[Path]
    """The TFRecords (or folders) that the logits belong to, matched by basename."""
    out: InStore[Path]
    """Folder of the store."""
    split: InData[str] = "train"
    """Which split."""
    codec: InStore[CodecName] = "float32"
    """How logits become bytes."""
    topk: InStore[Count] = only_with(10, KEPT_CLASSES)
    """Codec topk: classes that are kept."""
    drop: InData[CountOrNone] = 0
    """Numbers to leave out at the start of each line: 1 for the original's EfficientNet files (a made-up class)."""
    offset: InData[Label | None] = None
    """Data label of the first number that is kept. Default: 0, or 1 where only the data has a background class."""
    num_classes: InData[NumClasses | None] = None
    """Classes of the data, background included. Default: from the data, else the CSV's classes + offset."""
    teacher_license: InTeacher[str | None] = None
    """License and terms of the teacher, for the store's card (README.md). Default: what the card says already."""
    repair: InStore[bool] = False
    """First compare every byte of the store's files, and import those again that are damaged."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class ExportLogitsConfig:
    """Write a store's logits as Parquet files, or as the walkthrough's CSV."""

    store: InStore[Positional[Path]]
    """Folder of the store."""
    out: InOutput[Path]
    """Folder for the files: SHARD.parquet for each shard, or SPLIT-0.csv, SPLIT-1.csv, ..."""
    format: InOutput[Literal["parquet", "csv"]] = "parquet"
    """parquet: a row a view, with key, filename, label, view, crop box and flip, and the logits as lists; csv: a line
    an image, its basename and one number a class."""
    view: InStore[CountOrNone | None] = None
    """Only this view. Default: parquet: every view; csv: view 0."""
    top: InOutput[Count | None] = only_with(None, _PARQUET)
    """parquet: only so many of the likeliest classes of each row, as lists of classes and of their logits. Default:
    every class, or as many as codec topk has kept."""
    csv_files: InOutput[Count] = only_with(1, _CSV)
    """csv: number of files (the walkthrough has one a worker)."""
    background_logit: InOutput[Logit | None] = only_with(None, _CSV)
    """csv: one number a class of the data, this one for classes that the teacher lacks (the original's files: 0).
    Default: one number a class of the teacher."""
    trust: InStore[bool] = False
    """Do not compare the store's blocks with their hashes as they are first read."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_applicable(self)


@dataclass(frozen=True, kw_only=True)
class UpgradeConfig:
    """Make a store of today's format of one of format 1 or 2, without the teacher."""

    store: InStore[Positional[Path]]
    """Folder of the old store; it is left as it is."""
    out: InOutput[Path | None] = None
    """Folder of the new store. Default: beside the old one, STORE-v3."""
    data: InData[Path | None] = None
    """Its records, whose class names the new store shall know; a sample of keys and labels is compared."""


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """Copy a store, records or a run to another place, every byte checked; the same command again completes it."""

    source: InData[Positional[Path]]
    """Folder of a store, of records or of a run: a local path, s3://, gs://, az://, or http(s):// of a web server."""
    target: InOutput[Positional[Path]]
    """Where the copy goes: a local path, s3://, gs:// or az://. What is there with the right bytes is kept."""
    views: InData[str | None] = None
    """FIRST:END of a store's views, such as 0:10 for the first ten; from 0 on, in the groups that its files have."""
    shards: InData[str | None] = None
    """FIRST:END of the shards, such as 0:100 for the first hundred: a store, or records, of these alone."""
    split: InData[str | None] = None
    """Of records: copy this split alone."""
    transfers: InRunning[_Transfers] = 8
    """Files that are moved at once."""
    trust: InStore[bool] = False
    """Keep what is at the target in the right size, without reading it again."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for option, text in (("--views", self.views), ("--shards", self.shards)):
            parse_span(option, text)
