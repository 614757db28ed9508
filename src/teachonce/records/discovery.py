"""Which source the records of a place are, in which splits, and what is said where a split is not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from teachonce.errors import ConfigError, RecordError, TeachonceError
from teachonce.options import option_arguments
from teachonce.records.class_table import read_labels
from teachonce.records.containers.huggingface import (
    PARQUET_SUFFIX,
    ArrowSource,
    find_saved_splits,
    holds_image_columns,
)
from teachonce.records.containers.shard_files import check_shard_set
from teachonce.records.containers.table import TABLE_SUFFIXES, read_table
from teachonce.records.containers.webdataset import TAR_SUFFIX, TarSource, expand_braces, has_braces
from teachonce.records.folder_layout import find_image_splits, open_image_split
from teachonce.records.hold_out import Part, hold_out
from teachonce.records.image_listing import SPLIT_NAMES, TRAIN_NAMES, VALIDATION_NAMES, check_split_names
from teachonce.records.options import RecordOptions
from teachonce.records.source import RecordSource, parse_shard_name
from teachonce.records.tfrecord.foreign import (
    TFDS_FEATURES,
    has_foreign_options,
    is_foreign_name,
    is_tfrecord_name,
    open_foreign_shards,
)
from teachonce.records.tfrecord.source import TFRecordSource, find_shards
from teachonce.storage.address import to_location
from teachonce.storage.files import locate, open_storage
from teachonce.storage.names import check_component
from teachonce.storage.storage import Listing, Storage

_DEFAULTS = RecordOptions()
OWN_SHARDS = "TFRecord shards SPLIT-NNNNN-of-NNNNN"
IMAGE_FOLDERS = "folders of images"
_FOREIGN, _SHARDS_BELOW, _TARS, _ARROW, _TABLE = (
    "TFRecords of others",
    "TFRecords in folders",
    "WebDataset tars",
    "a Hugging Face data set",
    "a table of images",
)

_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class OpenSplit(Protocol):
    """Opens what was found of a split."""

    def __call__(self, *, with_boxes: bool = False, keeps_unreadable: bool = False) -> RecordSource:
        """The split; ``with_boxes`` and ``keeps_unreadable`` as in ``RecordSource``."""
        ...


@dataclass(frozen=True)
class Container:
    """The records of a place: the names of their ``splits``, () where they are in none, and how one is opened.

    ``open_split(name, split)`` opens the split of this name ("": all records) as the one that was asked for; ``check``
    raises what can be seen to be wrong with it without opening it.
    """

    kind: str
    """What it is, as a phrase."""
    splits: tuple[str, ...]
    open_split: Callable[..., RecordSource]
    check: Callable[[str], object] = lambda name: None


def find_splits(data: Path, options: RecordOptions = _DEFAULTS) -> list[str]:
    """The splits that ``data`` holds; [] where there are no records, or they are in no splits."""
    found = _find_container(data, options)
    return [] if found is None else sorted(found.splits)


def named_splits(data: Path, options: RecordOptions = _DEFAULTS) -> list[str]:
    """The splits that ``open_records`` opens; [] where there are no records."""
    found = _find_container(data, options)
    if found is None:
        return []
    if not options.val_fraction:
        return sorted(found.splits) or ["train"]
    others = (name for name in found.splits if name.lower() not in TRAIN_NAMES)
    return sorted({*others, "train", "validation"})


def find_kind(data: Path) -> str | None:
    """What holds the records of ``data``, as a phrase; None where there are none. Raises ConfigError for no folder."""
    found = _find_container(data, _DEFAULTS)
    return None if found is None else found.kind


def check_own_shards(data: Path, command: str, instead_of_folders: str) -> None:
    """Raise ConfigError where ``data`` is not what ``command`` copies shard by shard, and say what to do."""
    kind = find_kind(data)
    if kind in (None, OWN_SHARDS):
        return
    advice = instead_of_folders if kind == IMAGE_FOLDERS else "train and evaluate read them as they are"
    raise ConfigError(f"{data}: {command} copies {OWN_SHARDS}, found {kind}; {advice}")


def open_records(
    data: Path | str,
    split: str,
    options: RecordOptions = _DEFAULTS,
    *,
    with_boxes: bool = False,
    keeps_unreadable: bool = False,
) -> RecordSource:
    """The records of a split, whatever holds them; ``with_boxes`` and ``keeps_unreadable`` as in ``RecordSource``.

    ``data`` is a path or an address, as a text too.

    Raises what ``find_split`` does, and RecordError where what is there is incomplete.
    """
    return find_split(to_location(data), split, options)(with_boxes=with_boxes, keeps_unreadable=keeps_unreadable)


def find_split(data: Path, split: str, options: RecordOptions = _DEFAULTS) -> OpenSplit:
    """What opens a split; no record is read.

    Data without splits is "train". Raises ConfigError where there is no such split, and for one that is no name of a
    folder; RecordError where shards are missing.
    """
    check_component(split, f"{data}: split", ConfigError)
    found = _find_container(data, options)
    if found is None:
        raise _no_records(data, split)
    if options.val_fraction and split.lower() in (*TRAIN_NAMES, *VALIDATION_NAMES):
        there = match_split(found.splits, VALIDATION_NAMES[0])
        if there is not None:
            raise ConfigError(
                f"--val-fraction {options.val_fraction}: {data} has a validation split, {there}; leave the option out"
            )
        name = _name_of(data, found, TRAIN_NAMES[0])
        found.check(name)
        part: Part = "train" if split.lower() in TRAIN_NAMES else "validation"
        return partial(_open_part, found, name, split, part, options)
    name = _name_of(data, found, split)
    found.check(name)
    return partial(_open_whole, found, name, split)


def _no_records(data: Path, split: str) -> ConfigError:
    storage = open_storage(data)
    listing = _list_visible(storage)
    names = sorted((*listing.files, *_files_below(storage, "", listing)))
    packed = next((name for name in names if name.lower().endswith(_PACKED_TARS)), None)
    if packed is not None:
        return ConfigError(
            f"{data}: no records at all, but a compressed tar, {packed}; tars are read by row as they are: unpack "
            f"it to NAME{TAR_SUFFIX}, as gunzip does"
        )
    return ConfigError(
        f"{data}: no records at all, expected {split}-NNNNN-of-NNNNN shards, {split}/CLASS or CLASS folders of "
        "images, images, TFRecords, tars or Parquet; give another folder (docs/guide/data.md says what is read)"
    )


def _open_whole(
    found: Container, name: str, split: str, *, with_boxes: bool = False, keeps_unreadable: bool = False
) -> RecordSource:
    source = found.open_split(name, split, with_boxes=with_boxes)
    source.keeps_unreadable = keeps_unreadable
    if source.unreadable and not keeps_unreadable:
        raise RecordError(source.unreadable)
    return source


def _open_part(
    found: Container, name: str, split: str, part: Part, options: RecordOptions, **how: bool
) -> RecordSource:
    return hold_out(_open_whole(found, name, split, **how), part, options.val_fraction, options.val_seed)


def _name_of(data: Path, found: Container, split: str) -> str:
    """The name of a split in what was found; "" where that is all records. Raises ConfigError."""
    if not found.splits and split.lower() in TRAIN_NAMES:
        return ""
    name = match_split(found.splits, split)
    if name is not None:
        return name
    is_validation = split.lower() in VALIDATION_NAMES
    held_out = f"--val-fraction 0.1 to hold a tenth of {'train' if found.splits else 'it'} out as validation"
    if open_storage(data).is_folder(split):
        raise RecordError(f"{data / split}: no class folders and no images, expected {split}/CLASS/NAME.jpg")
    if not found.splits:
        raise ConfigError(
            f"{data}: has no splits, found no {split}; its records are --split train: give "
            + (
                f"{held_out}; `train` can do without, with --validation-split none"
                if is_validation
                else "--split train"
            )
        )
    also = f", or {held_out}" if is_validation and match_split(found.splits, "train") else ""
    raise ConfigError(
        f"{data}: only {', '.join(sorted(found.splits))}, expected {split}-NNNNN-of-NNNNN shards or {split}/CLASS "
        f"folders of images; give another --split or folder{also}"
    )


def match_split(splits: Sequence[str], split: str) -> str | None:
    """The split of this name, or of another one for the same: val for validation; None where there is none."""
    if split in splits:
        return split
    known = split.lower()
    same = next((names for names in (TRAIN_NAMES, VALIDATION_NAMES) if known in names), (known,))
    found = {name.lower(): name for name in splits if name.lower() in SPLIT_NAMES}
    return next((found[name] for name in (known, *same) if name in found), None)


def _find_container(data: Path, options: RecordOptions) -> Container | None:
    storage = open_storage(data)
    if not storage.is_folder():
        return _find_file(data, options)
    listing = _list_visible(storage)
    finders = (_find_tfrecords, _find_saved, _find_tars, _find_parquet, _find_images, _find_below, _find_only_parquet)
    return next((found for find in finders if (found := find(data, options, listing)) is not None), None)


def _list_visible(storage: Storage, folder: str = "") -> Listing:
    """What is in a folder but for hidden files and folders: copying from a Mac, or Spark, leaves some beside shards."""
    return Listing(*([name for name in names if name[0] != "."] for names in storage.list_folder(folder)))


def _find_file(data: Path, options: RecordOptions) -> Container:
    """A table of images; raises ConfigError for what is none, and where there is no file."""
    parent, name = locate(data)
    if has_braces(name):
        names = expand_braces(name)
        if not all(map(_is_tar, names)):
            raise ConfigError(f"{data}: stands for names such as {names[0]}; expected tars, NAME.tar")
        return _open_tars(data.parent, names, options, is_part=True)
    if not parent.has(name):
        raise ConfigError(
            f"{data}: no such folder; expected TFRecord shards, SPLIT/CLASS folders of images, or a table of images"
        )
    if _is_tar(name):
        return Container(_TARS, (), lambda _, split, **boxes: TarSource(data.parent, split, [name], options, **boxes))
    if is_tfrecord_name(name):
        files = [name]
        return Container(
            _FOREIGN, (), lambda _, split, **boxes: open_foreign_shards(data.parent, split, files, options, **boxes)
        )
    if data.suffix.lower() not in TABLE_SUFFIXES:
        raise ConfigError(
            f"{data}: is a file of no known kind; expected a folder of records, a table of images "
            f"({', '.join(TABLE_SUFFIXES)}), Parquet with images in it, a tar ({TAR_SUFFIX}, not compressed) or a "
            "TFRecord shard"
        )
    if name.lower().endswith(PARQUET_SUFFIX) and holds_image_columns(data, options):
        return Container(
            _ARROW, (), lambda _, split, **boxes: ArrowSource(data.parent, split, [name], options, **boxes)
        )
    table = read_table(data, options)
    return Container(_TABLE, table.splits, table.open_split)


def _find_tfrecords(data: Path, options: RecordOptions, listing: Listing) -> Container | None:
    """Shards of some splits; others may be folders beside them."""
    names = [name for name in listing.files if is_tfrecord_name(name)]
    if not names:
        return None
    is_foreign = has_foreign_options(options) or TFDS_FEATURES in listing.files
    if is_foreign or any(map(is_foreign_name, names)):
        _check_alone(data, next(filter(is_foreign_name, names), names[0]), listing)
        sets = _by_split(data, names)
        return Container(
            _FOREIGN,
            tuple(sorted(filter(None, sets))),
            lambda name, split, **boxes: open_foreign_shards(data, split, sets[name], options, **boxes),
            lambda name: check_shard_set(data, sets[name]),
        )
    shards = {shard[0] for shard in map(parse_shard_name, names) if shard}
    images = (listing.folders and find_image_splits(data, listing)) or []

    def open_split(name: str, split: str, *, with_boxes: bool = False) -> RecordSource:
        if name in shards:
            return TFRecordSource(data, split, find_shards(data, name, listing.files), with_boxes=with_boxes)
        return _open_images(data, options, name, split, with_boxes=with_boxes)

    def check(name: str) -> None:
        if name in shards:
            find_shards(data, name, listing.files)

    return Container(OWN_SHARDS, tuple(sorted({*shards, *images})), open_split, check)


def _is_tar(name: str) -> bool:
    return name.endswith(TAR_SUFFIX) and name[0] != "."


def _find_tars(data: Path, options: RecordOptions, listing: Listing) -> Container | None:
    names = sorted(filter(_is_tar, listing.files))
    if names:
        _check_alone(data, names[0], listing)
    return _open_tars(data, names, options) if names else None


def _check_alone(data: Path, name: str, listing: Listing) -> None:
    """Raise ConfigError where a container lies beside folders of images, and so either may be the data."""
    below = sorted(listing.folders)
    splits = find_image_splits(data, listing) if below else None
    folders = splits or (below if splits is not None and len(below) > 1 else [])
    if folders:
        raise ConfigError(
            f"{data}: holds {name} and folders of images ({', '.join(folders[:3])}), expected one of the two; give the "
            f"file's own path, {data / name}, or move it elsewhere"
        )


def _find_saved(data: Path, options: RecordOptions, listing: Listing) -> Container | None:
    """What ``datasets`` saved to disk."""
    if not {"dataset_dict.json", "state.json"} & set(listing.files):
        return None
    sets = find_saved_splits(data)
    return None if sets is None else _open_arrow(data, sets, options)


def _find_parquet(data: Path, options: RecordOptions, listing: Listing) -> Container | None:
    """Parquet files in the folder itself, in data/ or in folders of splits."""
    names = _parquet_names(open_storage(data), "", listing)
    if any("/" not in name for name in names):
        _check_alone(data, names[0], listing)
    return _open_arrow(data, _by_split(data, names), options) if names else None


def _find_only_parquet(data: Path, options: RecordOptions, listing: Listing) -> Container | None:
    """The same in one folder of any name: how the hub keeps a data set that has a name of its own, or several."""
    storage, found = open_storage(data), {}
    for folder in sorted(listing.folders):
        with suppress(TeachonceError):  # one that cannot be listed holds nothing
            found[folder] = _parquet_names(storage, folder, _list_visible(storage, folder))
    folders = [folder for folder, names in found.items() if names]
    if len(folders) > 1:
        raise ConfigError(
            f"{data}: Parquet of several data sets, in {', '.join(folders)}; give one of them, such as "
            f"{data / folders[0]}"
        )
    return _find_parquet(data / folders[0], options, _list_visible(storage, folders[0])) if folders else None


def _parquet_names(storage: Storage, folder: str, listing: Listing) -> list[str]:
    """Parquet in a folder, or where it has none itself in its data/ and its folders of splits; names within it."""
    names = list(filter(_is_parquet, listing.files))
    return names or list(filter(_is_parquet, _files_below(storage, folder, listing)))


def _files_below(storage: Storage, folder: str, listing: Listing) -> list[str]:
    """The files in data/ and in the folders of splits of a folder, which has this listing; names within it."""
    names = []
    for below in sorted(name for name in listing.folders if name.lower() in {"data", *SPLIT_NAMES}):
        files = _list_visible(storage, f"{folder}/{below}" if folder else below).files
        names += [f"{below}/{name}" for name in files]
    return names


def _is_parquet(name: str) -> bool:
    return name.endswith(PARQUET_SUFFIX)


def _find_below(data: Path, options: RecordOptions, listing: Listing) -> Container | None:
    """TFRecords or tars in data/ or in folders of splits; where there are images, tars beside them are left over."""
    names = _files_below(open_storage(data), "", listing)
    if any(is_tfrecord_name(_base(name)) for name in names):
        return _open_shards_below(data, names, options)
    tars = sorted(filter(_is_tar, names))
    return _open_tars(data, tars, options) if tars else None


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _open_shards_below(data: Path, names: Sequence[str], options: RecordOptions) -> Container:
    sets = _by_split(data, [name for name in names if is_tfrecord_name(_base(name))])

    def open_split(name: str, split: str, *, with_boxes: bool = False) -> RecordSource:
        folders = sorted({shard.rpartition("/")[0] for shard in sets[name]})
        if len(folders) > 1:
            raise ConfigError(f"{data}: {split} shards in {' and '.join(folders)}, expected one folder; move them")
        # A split is read as if its folder were the data: classes and features lie beside shards.
        root, shards = data / folders[0], sorted(map(_base, sets[name]))
        if (
            has_foreign_options(options)
            or f"{folders[0]}/{TFDS_FEATURES}" in names
            or any(map(is_foreign_name, shards))
        ):
            return open_foreign_shards(root, split, shards, options, with_boxes=with_boxes)
        return TFRecordSource(root, split, [root / shard for shard in shards], with_boxes=with_boxes)

    splits = tuple(sorted(filter(None, sets)))
    return Container(_SHARDS_BELOW, splits, open_split, lambda name: check_shard_set(data, sets[name]))


def _open_arrow(data: Path, sets: dict[str, list[str]], options: RecordOptions) -> Container:
    names = [name for files in sets.values() for name in files]
    return Container(
        _ARROW,
        tuple(sorted(filter(None, sets))),
        lambda name, split, **boxes: ArrowSource(data, split, sets[name], options, all_names=names, **boxes),
        lambda name: check_shard_set(data, sets[name], may_lack=True),
    )


def _open_tars(data: Path, names: Sequence[str], options: RecordOptions, *, is_part: bool = False) -> Container:
    """``is_part``: others of their set may have been left out on purpose."""
    if options.image_feature is not None:
        raise ConfigError(
            f"--image-feature {options.image_feature}: a tar's images are found by their endings; leave it out"
        )
    sets = _by_split(data, list(dict.fromkeys(names)))
    return Container(
        _TARS,
        tuple(sorted(filter(None, sets))),
        lambda name, split, **boxes: TarSource(data, split, sets[name], options, all_names=names, **boxes),
        lambda name: check_shard_set(data, [] if is_part else sets[name], may_lack=True),
    )


def _by_split(data: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Files by the split that is a word of their names ("": of none); raises ConfigError where only some have one."""
    sets: dict[str, list[str]] = {}
    for name in names:
        shard = parse_shard_name(_base(name).removesuffix(".gz"))
        words = re.split("[^a-z]+", name.lower())
        found = next((word for word in words if word in SPLIT_NAMES), "")
        sets.setdefault(found or (shard[0] if shard and "." not in shard[0] else ""), []).append(name)
    if "" in sets and len(sets) > 1:
        raise ConfigError(
            f"{data}: {sets[''][0]} has no split in its name (train, validation, ...), others have; rename it, or put "
            "the files into folders of their own"
        )
    check_split_names(list(sets), str(data))
    return sets


def _find_images(data: Path, options: RecordOptions, listing: Listing) -> Container | None:
    splits = find_image_splits(data, listing)
    for name in ("image_feature", "label_feature", "label_offset"):
        if splits is not None and getattr(options, name):
            given = " ".join(option_arguments(name, getattr(options, name)))
            raise ConfigError(f"{given}: {data} is a folder of images, which has no features; leave it out")
    return None if splits is None else Container(IMAGE_FOLDERS, tuple(splits), partial(_open_images, data, options))


def _open_images(
    data: Path, options: RecordOptions, name: str, split: str, *, with_boxes: bool = False
) -> RecordSource:
    labels = None if options.labels is None else read_labels(options.labels)
    return open_image_split(data, name, split, labels=labels, labels_from=options.labels, with_boxes=with_boxes)
