"""Moving files from one storage to another: several at once, in constant memory, each checked as its bytes pass.

A file is put when its last byte has passed and its check holds: what is damaged at its source is named, and nothing of
it appears at the target. What is there already is compared and kept, so the same command again moves what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import xxhash

from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import Advance
from teachonce.errors import TeachonceError
from teachonce.interop.config import Span
from teachonce.storage.block_file import BlockCheck, BlockFile, FileEntry, check_was_read
from teachonce.storage.remote.file_index import ListedFile
from teachonce.storage.storage import Storage
from teachonce.terminal import print_line

PIECE_BYTES = 4 << 20
"""Read and written at once, by each transfer."""


class Check(Protocol):
    """Takes the bytes of a file as they pass; raises TeachonceError where they are not what they must be."""

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""

    def finish(self) -> ListedFile | None:
        """Behind the last byte; what a list of files says of these bytes, where they were hashed for that."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file to move, known by its hash where its source says one."""

    name: str
    """At its source."""
    target: str = ""
    """At its target; default: the same."""
    num_bytes: int
    listed: ListedFile | None = None
    """Size and hash of the bytes, where they are known beforehand."""
    may_replace: bool = False
    """Whether another file of this name at the target is a damaged or an older one of this very file."""

    def may_be_replaced(self, target: Storage) -> bool:
        """As ``may_replace``, where it may depend on what is at the target."""
        return self.may_replace

    @property
    def put_name(self) -> str:
        """Its name at the target."""
        return self.target or self.name

    @property
    def is_known(self) -> bool:
        """Whether ``new_check`` tells this file from every other one, without reading its source."""
        return self.listed is not None

    def new_check(self, where: str) -> Check:
        """A check of bytes that must be this file's; ``where`` is what its errors name."""
        return HashCheck(where, self.num_bytes, self.listed)


@dataclass(frozen=True, kw_only=True)
class ArrowItem(Item):
    """An Arrow file of a store, known by its entry of the manifest."""

    entry: FileEntry

    def may_be_replaced(self, target: Storage) -> bool:
        """Where no manifest has the file, as the store is still being made, one whose own hashes hold stays."""
        if self.may_replace:
            return True
        try:
            file = BlockFile(target, self.put_name)
            file.check_tail()
            return bool(file.find_damage())
        except TeachonceError as error:
            check_was_read(target, self.put_name, error, "nothing of it was replaced: repeat the copy")
            return True

    @property
    def is_known(self) -> bool:
        """It is."""
        return True

    def new_check(self, where: str) -> Check:
        """Head, blocks and tail."""
        return _EntryCheck(where, self.entry)


class Copied(NamedTuple):
    """What a copy has done, for its last line."""

    what: str
    num_files: int
    num_bytes: int
    num_new: int
    """Files that were moved; the others were there."""


class Moved(NamedTuple):
    """What became of an item."""

    item: Item
    listed: ListedFile | None
    check: Any
    """The one that the bytes have passed, moved or kept; None where nothing was read, and once ``then`` was called."""
    is_new: bool


class HashCheck:
    """Size and xxh3 (128 bits) of a file's bytes."""

    def __init__(self, where: str, num_bytes: int, listed: ListedFile | None) -> None:
        self._where = where
        self._num_bytes = num_bytes if listed is None else listed.num_bytes
        self._listed = listed
        self._found = 0
        self._hasher = xxhash.xxh3_128()

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._hasher.update(data)
        self._found += len(data)

    def finish(self) -> ListedFile:
        """Raises TeachonceError for other bytes than those that are listed."""
        if self._found != self._num_bytes:
            raise TeachonceError(
                f"{self._where}: {self._found:,} bytes, expected {self._num_bytes:,}: damaged, or changed meanwhile"
            )
        found = ListedFile(self._found, self._hasher.hexdigest(), self._listed and self._listed.num_records)
        if self._listed is not None and found.xxh3 != self._listed.xxh3:
            raise TeachonceError(
                f"{self._where}: hash {found.xxh3}, {self._listed.xxh3} is listed: damaged or replaced; restore "
                "it, or remove the list (files.json) if it was changed on purpose"
            )
        return found


class _EntryCheck:
    def __init__(self, where: str, entry: FileEntry) -> None:
        self._blocks = BlockCheck(where, entry)
        self.update = self._blocks.update

    def finish(self) -> None:
        self._blocks.finish()


@dataclass(frozen=True, kw_only=True)
class Mover:
    """Moves items from ``source`` to ``target``."""

    source: Storage
    target: Storage
    threads: int
    """Files transferred at the same time."""
    trust: bool
    """Keep what is there in the right size, without reading it."""
    advance: Advance

    def move_all(
        self, items: Iterable[Item], present: Mapping[str, int], then: Callable[[Moved], None] = lambda moved: None
    ) -> list[Moved]:
        """Move items, in no order; ``present`` has the sizes of the files at the target.

        ``then`` is called behind each item, by the thread that moved it. Of the checks nothing is kept.
        """

        def move(item: Item) -> Moved:
            moved = self.move(item, present.get(item.put_name))
            then(moved)
            return moved._replace(check=None)

        return list(prefetch(items, move, threads=self.threads, ahead=2 * self.threads))

    def move(self, item: Item, present_bytes: int | None) -> Moved:
        """Move one item, or keep what is there; raises where the source is damaged, or the target has another file."""
        is_there = present_bytes is not None
        if present_bytes == item.num_bytes:
            if self.trust:
                self.advance(item.num_bytes)
                return Moved(item, item.listed, None, False)
            kept = self._compare(item)
            if kept is not None:
                self.advance(item.num_bytes)
                return kept
        if is_there and not item.may_be_replaced(self.target):
            raise TeachonceError(
                f"{self.target.describe(item.put_name)}: exists and differs from "
                f"{self.source.describe(item.name)}, or damaged; remove it, or choose another target"
            )
        if is_there:
            print_line(f"{self.target.describe(item.put_name)}: is damaged or outdated: copied again")
        check = item.new_check(self.source.describe(item.name))
        put = self.target.put if is_there else self.target.put_if_absent
        with self.source.stream(item.name) as source, put(item.put_name) as target:
            while piece := source.read(PIECE_BYTES):
                check.update(piece)
                target.write(piece)
                self.advance(len(piece))
            listed = check.finish()
        return Moved(item, listed, check, True)

    def _compare(self, item: Item) -> Moved | None:
        """What is at the target, where it is this very file."""
        if not item.is_known:
            # The source says nothing of its bytes: both are read.
            listed = _pass_through(self.source, item.name, item.new_check(self.source.describe(item.name)))
            item = replace(item, listed=listed)
        check = item.new_check(self.target.describe(item.put_name))
        try:
            listed = _pass_through(self.target, item.put_name, check)
        except TeachonceError:
            return None
        return Moved(item, listed, check, False)


@dataclass(frozen=True, kw_only=True)
class CopyJob:
    """What every kind of copy needs."""

    source: Path
    target: Path
    views: Span | None = None
    shards: Span | None = None
    split: str | None = None
    transfers: int
    trust: bool

    def mover(self, source: Storage, target: Storage, advance: Advance) -> Mover:
        """What moves the files."""
        return Mover(source=source, target=target, threads=self.transfers, trust=self.trust, advance=advance)


def sum_up(what: str, moved: Sequence[Moved]) -> Copied:
    """What was done, of these items."""
    return Copied(what, len(moved), sum(item.item.num_bytes for item in moved), sum(item.is_new for item in moved))


def _pass_through(storage: Storage, name: str, check: Check) -> ListedFile | None:
    with storage.stream(name) as file:
        while piece := file.read(PIECE_BYTES):
            check.update(piece)
    return check.finish()


def sizes_of(storage: Storage, names: Sequence[str]) -> dict[str, int]:
    """The sizes of those of some files that are there: a listing for each of their folders."""
    folders = dict.fromkeys(name.rpartition("/")[0] for name in names)
    found: dict[str, int] = {}
    for folder, statuses in zip(
        folders,
        prefetch(folders, storage.statuses, threads=storage.requests_at_once - 1, ahead=storage.requests_at_once),
        strict=True,
    ):
        found |= {f"{folder}/{name}" if folder else name: status.num_bytes for name, status in statuses.items()}
    return {name: found[name] for name in names if name in found}
