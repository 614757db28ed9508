"""The walkthrough's CSV logits, written from a store and read into one.

``SPLIT-0.csv``, ``SPLIT-1.csv``, ...: a line an image, basename and then one number a class, without a header. The
numbers are the teacher's own classes (1000 or 1001); floats are written with the digits that bring back the same
float32. The original pads a teacher of 1000 classes with a background logit of 0, which takes real probability mass:
ask for it with ``--background-logit 0`` where its own code is to read the files, and leave it out with ``--drop 1``
when reading such files. About 20 kB an image, which is why a store is better. A plan beside the files, by split, lets
the same export resume and keeps files of two exports apart, which readers would take for one.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.codecs.registry import Codec, build_codec, codec_from_json, warn_of_estimates
from teachonce.engine.chunked import chunked
from teachonce.engine.jobs import partition
from teachonce.engine.machine import num_cores
from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import phase, progress
from teachonce.errors import ConfigError, LogitsError, PlanMismatchError, StoreError
from teachonce.interop.config import ImportConfig
from teachonce.interop.csv_join import LineClaims
from teachonce.interop.csv_lines import is_csv_of
from teachonce.interop.csv_table import CsvTable
from teachonce.interop.store_table import check_one_logit
from teachonce.records.class_space import ClassSpace, describe_low_top1, map_logits
from teachonce.records.discovery import open_records
from teachonce.records.source import NO_LABEL, RecordSource, choose_data_classes
from teachonce.storage.files import atomic_write, open_storage
from teachonce.storage.names import check_component
from teachonce.storage.resume import PlanFile
from teachonce.store.begin import begin_store
from teachonce.store.card import write_card
from teachonce.store.manifests import finalize_store, missing_files
from teachonce.store.plan import Plan, describe_data, records_file, views_file
from teachonce.store.plan_files import holds_store, read_plan
from teachonce.store.repair import remove_damaged, report_repaired
from teachonce.store.store import Store
from teachonce.store.tables import StoreWriter, read_records
from teachonce.terminal import print_note
from teachonce.versions import library_versions
from teachonce.views.policy import CenterPolicy, policy_to_json


def export_csv(
    source: Path,
    out: Path,
    *,
    csv_files: int = 1,
    view: int | None = None,
    background_logit: float | None = None,
    trust: bool = False,
) -> list[Path]:
    """Write the logits of the store ``source`` as ``csv_files`` files, file i holding the shards i, i + csv_files, ...

    Files that are there from the same export are kept. Raises ConfigError where other files of these names are there,
    or the logits are of no image alone, PlanMismatchError where the export was begun with other settings, LogitsError
    where two images share a basename, StoreError where the store's split is not a name of a file.
    """
    with phase("export", "opening the store"):
        store = Store(source, trust=trust)
    view = check_one_logit(store, view)
    split = check_component(store.plan.data["split"], f"{source}: the plan's split", StoreError)
    names = [f"{split}-{index}.csv" for index in range(csv_files)]
    plan_file = _plan_file(out, split)
    plan = {
        "store": store.fingerprint,
        "view": view,
        "csv_files": csv_files,
        "background_logit": None if background_logit is None else str(background_logit),
    }
    plan_file.check(plan)
    others = [name for name in _csv_files_in(out, split) if name not in names]
    if others:
        # Whoever reads the split reads every file of these names.
        raise ConfigError(
            f"{out / others[0]}: is none of this export's files, {names[0]} to {names[-1]}; choose another --out or "
            "remove it"
        )
    storage = open_storage(out)
    missing = [index for index, name in enumerate(names) if not storage.has(name)]
    if missing:
        with phase("export", "comparing the names of the images"):
            _refuse_shared_basenames(store)
    plan_file.begin(plan)
    warn_of_estimates(store.codec, f"{source} -> {out}")
    parts = [partition(range(len(store.shards)), index, csv_files) for index in range(csv_files)]
    done = store.num_records - sum(store.shards[shard][1] for index in missing for shard in parts[index])
    with progress("export", store.num_records, done=done, unit="records") as advance:
        for index in missing:
            write_csv(
                store, out / names[index], parts[index], view=view, background_logit=background_logit, advance=advance
            )
    return [out / name for name in names]


def _plan_file(out: Path, split: str) -> PlanFile:
    """Of the export of a split: a folder may hold several, and whatever else."""
    name = f"_teachonce_export.{split}.json"
    found = next(iter(_csv_files_in(out, split)), "")
    return PlanFile(
        folder=out,
        name=name,
        foreign=ConfigError(f"{out / found}: exists; choose another --out or remove it"),
        is_foreign=lambda names: any(is_csv_of(split, name) for name in names),
        advice=f"choose another --out, or the same settings, or remove {name} and {split}-*.csv there",
    )


def _csv_files_in(out: Path, split: str) -> list[str]:
    storage = open_storage(out)
    return sorted(name for name in storage.list_folder().files if is_csv_of(split, name)) if storage.is_folder() else []


def write_csv(
    store: Store,
    path: Path,
    shards: Sequence[int],
    *,
    view: int = 0,
    background_logit: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write the logits of some shards as one CSV file, atomically.

    With ``background_logit`` there is one number for each class of the data, and the classes that the teacher lacks
    get this one (the original's own EfficientNet files have 0); else one for each class of the teacher.
    """
    target = store.class_space
    if background_logit is not None:
        target = ClassSpace(num_classes=store.plan.data_classes)
    with atomic_write(path) as file:
        for shard in shards:
            logits = store.read_logits(shard, view, slice(None))
            logits = map_logits(logits, store.class_space, target, background_logit or 0.0)
            for filename, row in zip(store.read_filenames(shard), logits, strict=True):
                basename = filename.rpartition("/")[2]
                if "," in basename or "\n" in basename:
                    raise LogitsError(f"{filename}: a name with a comma or a line break cannot go into the CSV")
                # str of a float32 is its shortest form that reads back as the same float32.
                file.write(f"{basename},{','.join(map(str, row))}\n".encode())
            if advance is not None:
                advance(len(logits))


def _refuse_shared_basenames(store: Store) -> None:
    hashes = array("Q")
    for shard in range(len(store.shards)):
        hashes.extend(xxhash.xxh3_64_intdigest(n.rpartition("/")[2].encode()) for n in store.read_filenames(shard))
    num_shared = len(hashes) - len(np.unique(np.array(hashes, np.uint64)))
    if num_shared:
        raise LogitsError(
            f"{store.path}: {num_shared} images share a basename with another, and the CSV identifies images by "
            "basename; use the store itself"
        )


CLAIMED_RECORDS = 32
"""Records whose names are looked up at once; they are held with their images."""


def import_csv(config: ImportConfig) -> None:
    """Read ``SPLIT-*.csv`` into a store over the data whose basenames they carry.

    Raises LogitsError for a missing, duplicate, short or non-finite line with the image's name, for lines of images
    that the data does not have and for images that share a basename; PlanMismatchError where the store was started from
    other CSV files.
    """
    with phase("import", "opening the data"):
        source = open_records(config.data, config.split, config)
    data_classes = choose_data_classes(config.num_classes, source)
    with phase("import", "reading the CSV files"):
        table = CsvTable(
            config.csv, split=config.split, data_classes=data_classes, offset=config.offset, drop=config.drop
        )
    claims = LineClaims(table.lines, config.data, lambda index: source.read_record(*source.locate(index)).filename)
    if len(table) != source.num_records:
        # It is wrong already; to say which image or line it is, the names are worth a pass over the records.
        _claim_all(source, claims)
        claims.check_all()
    data_classes = data_classes or table.class_space.num_classes + table.class_space.offset
    plan = Plan(
        teacher=_describe_csv(table),
        class_space=table.class_space,
        data_classes=data_classes,
        **describe_data(source, data_classes),
        policy=policy_to_json(CenterPolicy()),
        codec=build_codec(config.codec, num_classes=table.class_space.num_classes, k=config.topk).to_json(),
        view_groups=((0, 0),),
    )
    _refuse_other_csv(config, plan)
    plan = begin_store(config.out, plan, views_per_file=1)
    if config.repair:
        with phase("import", "comparing every byte of the store's files with their hashes"):
            damaged = remove_damaged(config.out)
        report_repaired(config.out, damaged)
    missing = missing_files(config.out, plan)
    writer = StoreWriter(config.out, plan, {"versions": library_versions(), "device": "imported"})
    with progress("import", source.num_records, unit="records") as advance:
        first = 0
        for shard, (name, num_records) in enumerate(plan.shards):
            if {records_file(name), views_file(name, (0, 0))} & missing:
                keys, filenames, labels, logits = _join_shard(source, shard, table)
                claims.claim(filenames, first)
                writer.write_records(name, keys, filenames, labels)
                try:
                    writer.write_views(name, (0, 0), keys, labels, logits[None], None)
                except LogitsError as error:
                    filename = _first_refused(codec_from_json(plan.codec), filenames, logits)
                    raise LogitsError(f"{config.csv}: {name}: {filename}: {error}") from error
            else:
                claims.claim(read_records(config.out, plan, shard).filenames.to_pylist(), first)
            first += num_records
            advance(num_records)
    claims.check_all()
    finalize_store(config.out)
    open_storage(config.out).remove_temporaries()
    write_card(Store(config.out), config.teacher_license)
    _report_top1(config)


def _describe_csv(table: CsvTable) -> dict[str, Any]:
    """What the logits are, as the teacher of the plan: by the files' content, which no count of lines tells."""
    return {
        "spec": "none",
        "model": "csv",
        "lines": len(table),
        "csv_xxh3": table.digest(),
        "drop": table.drop,
    }


def _first_refused(codec: Codec, filenames: Sequence[str], logits: NDArray[np.float32]) -> str:
    """The image whose logits a codec does not take; it says the row alone."""
    for filename, row in zip(filenames, logits, strict=True):
        try:
            codec.encode_logits(row[None])
        except LogitsError:
            return filename
    return filenames[0]


def _refuse_other_csv(config: ImportConfig, plan: Plan) -> None:
    """Raise PlanMismatchError, in plain words, where ``--out`` was started from other files or another ``--drop``."""
    if not holds_store(config.out):
        return
    old = read_plan(config.out).teacher
    if old["model"] != plan.teacher["model"]:
        return  # for ``begin_store`` to say
    found = []
    if old.get("csv_xxh3") != plan.teacher["csv_xxh3"]:
        then = "" if "csv_xxh3" in old else " (recorded by an older teachonce without their hash)"
        found.append(f"started from the CSV files of another teacher, or from others than {config.csv} holds now{then}")
    if old.get("drop", plan.teacher["drop"]) != plan.teacher["drop"]:
        found.append(f"started with --drop {old['drop']}, now {plan.teacher['drop']}")
    if found:
        raise PlanMismatchError(
            f"{config.out}: {'; '.join(found)}: a store holds one teacher; choose another --out, or give the same ones"
        )


def _report_top1(config: ImportConfig) -> None:
    """Say how often the most likely class is the label: the one figure that shows a CSV whose classes are shifted."""
    store = Store(config.out)
    hits = [store.read_hits(shard, (0, 0)) or [0] for shard in range(len(store.shards))]
    labels = np.concatenate([store.read_labels(shard) for shard in range(len(store.shards))])
    labels = labels[labels != NO_LABEL]
    num_labeled = len(labels)
    if not num_labeled:
        return
    top1 = sum(map(sum, hits)) / num_labeled
    print_note(f"import: top-1 {top1:.3f} of {config.csv} on {num_labeled:,} records")
    # As an extraction's gate does.
    if low := describe_low_top1(top1, labels, store.class_space.num_classes):
        warnings.warn(
            f"top-1 {top1:.3f} of {config.csv} on {num_labeled:,} records is {low}: are "
            "--offset, --drop and the class order right?",
            stacklevel=2,
        )


def _claim_all(source: RecordSource, claims: LineClaims) -> None:
    first = 0
    for shard in range(len(source.shards)):
        for block in chunked(source.iter_shard(shard), CLAIMED_RECORDS):
            claims.claim([record.filename for record in block], first)
            first += len(block)


def _join_shard(
    source: RecordSource, shard: int, table: CsvTable
) -> tuple[NDArray[np.uint64], list[str], NDArray[np.int32], NDArray[np.float32]]:
    """Keys [N], filenames [N], labels [N] and logits [N, C] of a shard; threads read lines while records are read."""
    keys, labels = array("Q"), array("i")
    filenames: list[str] = []

    def read_blocks() -> Iterator[list[str]]:
        for block in source.scan_shard(shard):
            keys.extend(record.key for record in block)
            labels.extend(record.label for record in block)
            filenames.extend(record.filename for record in block)
            yield filenames[-len(block) :]

    threads = num_cores()
    logits = np.concatenate(list(prefetch(read_blocks(), table.find_all_logits, threads=threads, ahead=2 * threads)))
    return np.array(keys, np.uint64), filenames, np.array(labels, np.int32), logits
