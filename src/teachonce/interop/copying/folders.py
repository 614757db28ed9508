"""Copying records and runs: shards against their checksums, everything against the list of files where there is one.

What others read to know that a folder is complete comes last: ``result.json`` of a run, and files.json, which every
copy writes, so that it can be published on a plain web server.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from teachonce.engine.progress import phase, progress
from teachonce.errors import ConfigError, PlanMismatchError, RecordError, TeachonceError
from teachonce.interop.config import Span
from teachonce.interop.copying.transfer import (
    Check,
    Copied,
    CopyJob,
    HashCheck,
    Item,
    Moved,
    sizes_of,
    sum_up,
)
from teachonce.records.class_table import CLASSES_NAME
from teachonce.records.discovery import find_splits
from teachonce.records.image_listing import find_class_folders, list_tree
from teachonce.records.source import parse_shard_name, shard_name
from teachonce.records.tfrecord.frame_check import FrameCheck
from teachonce.records.tfrecord.framing import check_index, index_bytes, load_index
from teachonce.records.tfrecord.source import find_shards
from teachonce.records.written_files import INDEX_SUFFIX, WRITERS, list_written
from teachonce.runs.metrics import count_epochs
from teachonce.runs.run import CONFIG_NAME, LOCK_NAME, RESULT_NAME
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage, read_json
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote.file_index import (
    INDEX_NAME,
    ListedFile,
    check_listed_name,
    hash_bytes,
    hash_file,
    put_file_index,
    read_file_index,
)
from teachonce.storage.resume import plan_differences
from teachonce.storage.storage import FileStatus, Storage
from teachonce.terminal import plural

Listed = Mapping[str, ListedFile]


class ShardItem(Item):
    """A shard of records."""

    def new_check(self, where: str) -> Check:
        """Its frames, and its hash."""
        return _ShardCheck(where, self)


class _ShardCheck:
    def __init__(self, where: str, item: ShardItem) -> None:
        self._hash = HashCheck(where, item.num_bytes, item.listed)
        self.frames = FrameCheck(to_location(where), item.num_bytes)

    def update(self, data: bytes | memoryview) -> None:
        self.frames.update(data)
        self._hash.update(data)

    def finish(self) -> ListedFile:
        self.frames.finish()
        return self._hash.finish()._replace(num_records=len(self.frames.index))


def copy_records(job: CopyJob) -> Copied:
    """Copy the TFRecord shards of one split or of all, with the files next to them.

    Raises RecordError for a damaged shard, ConfigError for a part that is none, TeachonceError where the target has
    other files of these names.
    """
    source, target = open_storage(job.source), open_storage(job.target)
    names = set(source.list_folder().files)
    splits = sorted({shard[0] for shard in map(parse_shard_name, names) if shard and job.split in (None, shard[0])})
    if job.shards is not None and len(splits) > 1:
        raise ConfigError(f"--shards {job.shards}: {job.source} has the splits {', '.join(splits)}; give --split")
    target.remove_temporaries()
    listed = read_file_index(source) or {}
    copied: list[Moved] = []
    num_shards = 0
    for split in splits:
        items = _choose_shards(job, split, source.statuses(), listed)
        _refuse_other_shards(job.target, split, [item.put_name for item in items])
        moved, entries = _move_shards(job, source, target, items, names)
        # Of a part, not the plan of records, which says how many shards there are.
        plans = [f"{command}.{split}.json" for command in WRITERS if command != "records" or not job.shards]
        for name in (CLASSES_NAME, *plans):
            if name in names:
                entries[name] = _put_beside(source.read(name), listed.get(name), source, target, name)
        list_written(job.target, split, entries)
        copied += moved
        num_shards += len(items)
    target.remove_temporaries()
    return sum_up(f"records: {plural(num_shards, 'shard')} of {', '.join(splits)}", copied)


def _choose_shards(job: CopyJob, split: str, statuses: Mapping[str, FileStatus], listed: Listed) -> list[ShardItem]:
    paths = find_shards(job.source, split)
    span = job.shards or Span(0, len(paths))
    if not 0 <= span.first < span.end <= len(paths):
        raise ConfigError(f"--shards {span}: expected a part of 0:{len(paths)}, the {split} shards of {job.source}")
    chosen = paths[span.first : span.end]
    _refuse_unreadable(open_storage(job.source), [path.name for path in chosen], statuses)
    # A part is numbered as what it is: readers take less than all shards of a set for an unfinished copy.
    return [
        ShardItem(
            name=path.name,
            target=shard_name(split, number, len(chosen)),
            num_bytes=statuses[path.name].num_bytes,
            listed=listed.get(path.name),
        )
        for number, path in enumerate(chosen)
    ]


def _refuse_other_shards(target: Path, split: str, names: Sequence[str]) -> None:
    storage = open_storage(target)
    present = storage.list_folder().files if storage.is_folder() else []
    for name in present:
        shard = parse_shard_name(name)
        if shard and shard[0] == split and name not in names:
            raise PlanMismatchError(
                f"{target / name}: is not a shard of this copy, whose first is {names[0]}: other records, or "
                "another part of them; choose another target"
            )


def _move_shards(
    job: CopyJob, source: Storage, target: Storage, items: Sequence[ShardItem], names: Collection[str]
) -> tuple[list[Moved], dict[str, ListedFile]]:
    """Move shards, each with its index behind it; and the entries of both."""
    entries: dict[str, ListedFile] = {}

    def put_index(moved: Moved) -> None:
        name = moved.item.name + INDEX_SUFFIX
        if name in names:
            content = source.read(name)
            check_index(job.source / moved.item.name, content, moved.item.num_bytes)
        elif moved.check is not None:
            content = index_bytes(moved.check.frames.index)
        else:
            bounds = load_index(job.source / moved.item.name).tolist()
            content = index_bytes([(begin, end - begin) for begin, end in itertools.pairwise(bounds)])
        put_name = moved.item.put_name + INDEX_SUFFIX
        entries[put_name] = _put_beside(content, None, source, target, put_name)

    present = sizes_of(target, [item.put_name for item in items])
    with progress("copy", sum(item.num_bytes for item in items), unit="bytes") as advance:
        moved = job.mover(source, target, advance).move_all(items, present, put_index)
    entries |= {item.item.put_name: item.listed for item in moved if item.listed is not None}
    return moved, entries


def _put_beside(content: bytes, listed: ListedFile | None, source: Storage, target: Storage, name: str) -> ListedFile:
    """Put a small file; raises where its source is damaged, or the target has another one."""
    found = hash_bytes(content)
    if listed is not None and listed.xxh3 != found.xxh3:
        raise RecordError(
            f"{source.describe(name)}: hash {found.xxh3}, {listed.xxh3} is listed: damaged or replaced; restore it"
        )
    if not target.has(name):
        with target.put_if_absent(name) as file:
            file.write(content)
    elif target.read(name) != content:
        raise PlanMismatchError(
            f"{target.describe(name)}: differs from the file to copy: it is of other records, or damaged; remove "
            "it, or choose another target"
        )
    return found


def copy_images(job: CopyJob, splits: Sequence[str] | None = None) -> Copied:
    """Copy the class folders of some splits; default: of ``job.split``, or of all."""
    if splits is None:
        splits = [job.split] if job.split is not None else find_splits(job.source)
    if job.shards is not None:
        raise ConfigError(f"--shards {job.shards}: is for stores and TFRecords, {job.source} is a folder of images")
    _check_apart(job)
    with phase("copy", "listing the images"):
        names = [f"{split}/{name}" for split in splits for name in sorted(_walk_split(job.source / split))]
    moved = _copy_files(job, [name for name in names if not _is_hidden(name)], may_replace=False)
    return sum_up(f"images of {', '.join(splits)}", moved)


def _check_apart(job: CopyJob) -> None:
    """Raise ConfigError where one place lies in the other.

    Of runs and images all that is below is copied: a copy inside would be copied into itself the next time.
    """
    source, target = job.source.resolve(), job.target.resolve()
    if source in target.parents or target in source.parents:
        where = "lies in" if source in target.parents else "holds"
        raise ConfigError(f"{job.target}: {where} the source, {job.source}; choose a target beside it")


def _walk_split(split: Path) -> list[str]:
    """The files below a split, those behind links to folders too: readers follow them, a walk does not."""
    storage = open_storage(split, RecordError)
    names = set(storage.walk())
    if isinstance(storage, LocalStorage):  # elsewhere there are no links, and a request for each folder takes long
        for top in find_class_folders(split):
            names.update(f"{folder}/{name}" for folder, files in list_tree(storage, top) for name in files)
    return sorted(names)


def copy_run(job: CopyJob) -> Copied:
    """Copy a run; one that is there from an earlier copy is brought up to date.

    Raises PlanMismatchError where another run is at the target, or this one with more epochs than the source has.
    """
    for option, value in (("--shards", job.shards), ("--split", job.split)):
        if value is not None:
            raise ConfigError(f"{option} {value}: is for records, {job.source} is a run")
    _check_apart(job)
    source, target = open_storage(job.source), open_storage(job.target)
    is_update = target.has(CONFIG_NAME)
    if is_update:
        there, here = read_json(job.target / CONFIG_NAME), read_json(job.source / CONFIG_NAME)
        differences = plan_differences(there, here, words=("there", "here"))
        if differences:
            raise PlanMismatchError(f"{job.target}: is a different run: {'; '.join(differences)}; choose another place")
    elif target.is_folder() and any(name[0] != "." for listing in target.list_folder() for name in listing):
        raise PlanMismatchError(f"{job.target}: exists and is not a run; choose another target")
    # A training there would lose its checkpoint, or write beside the copy.
    with target.lock(LOCK_NAME, "trained or copied to") if is_update else nullcontext():
        return _copy_run(job, source, target)


def _copy_run(job: CopyJob, source: Storage, target: Storage) -> Copied:
    _refuse_further(job)
    names = [name for name in sorted(source.walk()) if name not in (LOCK_NAME, INDEX_NAME) and not _is_hidden(name)]
    is_finished = RESULT_NAME in names
    if target.has(RESULT_NAME) and not (is_finished and target.read(RESULT_NAME) == source.read(RESULT_NAME)):
        target.delete(RESULT_NAME)
    # The configuration says whose the folder is, and the result that it is complete.
    names.sort(key=lambda name: (name != CONFIG_NAME, name == RESULT_NAME))
    moved = _copy_files(job, names, may_replace=True, num_last=int(is_finished))
    return sum_up("run" if is_finished else "run that is NOT finished", moved)


def _refuse_further(job: CopyJob) -> None:
    """Raise PlanMismatchError where the run at the target is further: what it has learned since would be lost."""
    here, there = ((open_storage(path).has(RESULT_NAME), count_epochs(path)) for path in (job.source, job.target))
    if there > here:
        words = [f"{'finished, ' if is_finished else ''}epoch {epochs}" for is_finished, epochs in (there, here)]
        raise PlanMismatchError(
            f"{job.target}: is further ({words[0]}) than {job.source} ({words[1]}), expected the same run or an "
            "earlier state of it; swap SOURCE and TARGET, choose another target, or remove what is there"
        )


def _copy_files(job: CopyJob, names: Sequence[str], *, may_replace: bool, num_last: int = 0) -> list[Moved]:
    """Copy files as they are, the last ``num_last`` of them behind all others, and put the list of them."""
    source, target = open_storage(job.source), open_storage(job.target)
    # Before anything is copied: the list is put last.
    for name in names:
        check_listed_name(name, f"{source.describe()}: cannot be copied", TeachonceError)
    folders = sorted({name.rpartition("/")[0] for name in names})
    for folder in folders:
        target.remove_temporaries(folder)
    # A list made of an earlier state of the folder does not apply to files that change, as a run's do.
    listed = (read_file_index(source) or {}) if not (may_replace and source.can_list) else {}
    sizes = sizes_of(source, names)
    _refuse_unreadable(source, names, sizes)
    items = [Item(name=name, num_bytes=sizes[name], listed=listed.get(name), may_replace=may_replace) for name in names]
    present = sizes_of(target, names)
    end = len(items) - num_last
    with progress("copy", sum(item.num_bytes for item in items), unit="bytes") as advance:
        mover = job.mover(source, target, advance)
        moved = [entry for part in (items[:1], items[1:end], items[end:]) for entry in mover.move_all(part, present)]
    old = read_file_index(target) or {}
    entries = {entry.item.name: entry.listed or hash_file(target, entry.item.name) for entry in moved}
    others = [] if may_replace else [name for name in old if name not in entries]
    kept = {name: old[name] for name in sizes_of(target, others)}
    put_file_index(target, kept | entries)
    for folder in folders:
        target.remove_temporaries(folder)
    return moved


def _refuse_unreadable(source: Storage, names: Iterable[str], found: Container[str]) -> None:
    for name in names:
        if name not in found:
            raise TeachonceError(
                f"{source.describe(name)}: is a broken link, or not a regular file, or was removed meanwhile; "
                "restore it or remove it"
            )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
