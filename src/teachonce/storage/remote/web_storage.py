"""A plain web server as a storage: for reading, and without listings.

Files are requested by name; what a folder has is read from its files.json (``file_index``), or from that of a folder
above it. A server that does not serve ranges of a file sends the complete file, which is acceptable for small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, NoReturn

import obstore

from teachonce.storage.address import Address, read_only_error
from teachonce.storage.remote.failures import Failure
from teachonce.storage.remote.file_index import INDEX_NAME, ListedFile, read_file_index
from teachonce.storage.remote.file_tree import list_folders
from teachonce.storage.remote.object_storage import ObjectStorage
from teachonce.storage.remote.reader import Opened
from teachonce.storage.remote.retry import RequestFailedError
from teachonce.storage.storage import FileStatus, Listing

MAX_UNRANGED_BYTES = 64 << 20
"""Of a file that is read completely from a server without ranges."""


class _Tree:
    """The files of a list, by their folder."""

    def __init__(self, files: dict[str, ListedFile], version: str) -> None:
        self.files = files
        self.version = version
        """What the server says of the list's bytes; empty where it says nothing."""
        self.folders = list_folders(files)


_trees: dict[str, _Tree] = {}
"""Lists that this process has read, by the address of their folder: a folder of images has a thousand below it."""


_served: set[str] = set()
"""Folders of which a server has shown this process a file."""


@dataclass(frozen=True)
class WebStorage(ObjectStorage):
    """The files below an address of a web server."""

    can_list: ClassVar[bool] = False

    def list_folder(self, folder: str = "") -> Listing:
        """What files.json has of a folder."""
        tree, place = self._find(folder)
        if place not in tree.folders:
            raise self._error(folder, "listed", Failure("missing", "No such file or directory"))
        found = tree.folders[place]
        return Listing(list(found.files), list(found.folders))

    def walk(self, folder: str = "") -> Iterator[str]:
        """What files.json has below a folder."""
        tree, place = self._find(folder)
        if place not in tree.folders:
            raise self._error(folder, "listed", Failure("missing", "No such file or directory"))
        prefix = place and f"{place}/"
        yield from (name[len(prefix) :] for name in tree.files if name.startswith(prefix))

    def statuses(self, folder: str = "") -> dict[str, FileStatus]:
        """What files.json says of the files directly in a folder: their size, and their hash as the version."""
        tree, place = self._find(folder)
        found: dict[str, FileStatus] = {}
        for base in tree.folders.get(place, Listing([], [])).files:
            entry = tree.files[f"{place}/{base}" if place else base]
            found[base] = FileStatus(entry.num_bytes, 0, entry.xxh3)
        return found

    def has(self, name: str = "") -> bool:
        """Whether the server has a file of this name.

        A bucket that may be read but not listed denies what it does not have: so of a folder of which something, such
        as its list, is there, what is denied is not.
        """
        failure = self._probe(name)
        if failure is None:
            return not self._is_listed_folder(name)
        if failure.kind == "missing" or (failure.may_be_missing and self._is_served(name)):
            return False
        raise self._error(name, "read", failure)

    def _probe(self, name: str) -> Failure | None:
        """Why the server does not show a file; None where it does."""
        try:
            self._ask(lambda client: obstore.head(client, self._key(name)), name)
        except RequestFailedError as error:
            return error.failure
        _served.add(self._folder_of(name))
        return None

    def _is_served(self, name: str) -> bool:
        """Whether something in the folder of a file was there, or its list is, or that of all folders here."""
        folder = name.rpartition("/")[0]
        lists = dict.fromkeys((f"{folder}/{INDEX_NAME}" if folder else INDEX_NAME, INDEX_NAME))
        return self._folder_of(name) in _served or any(self._probe(file) is None for file in lists if file != name)

    def _folder_of(self, name: str) -> str:
        return str((self.address / name).parent)

    def _is_listed_folder(self, name: str) -> bool:
        """Whether the list has files below this name: of a folder many servers send a page."""
        if (self.address / name).suffix:
            return False
        try:
            tree, place = self._find(name)
        except self.raises:
            return False
        return place in tree.folders

    def is_folder(self, name: str = "") -> bool:
        """Whether files.json has anything below this name; raises where there is no such list."""
        if (self.address / name).suffix and self.has(name):
            return False
        tree, place = self._find(name)
        return place in tree.folders

    def is_writable(self) -> bool:
        """It is not."""
        return False

    def put(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Raises ConfigError."""
        self._refuse(name)

    def put_if_absent(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Raises ConfigError."""
        self._refuse(name)

    def delete(self, name: str) -> None:
        """Raises ConfigError."""
        self._refuse(name)

    def lock(self, name: str, doing: str) -> AbstractContextManager[None]:
        """Raises ConfigError."""
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise read_only_error(self.address / name)

    def _open(self, name: str) -> tuple[Opened, Callable[[int, int], memoryview]]:
        try:
            return self._open_ranges(name)
        except RequestFailedError as error:
            if error.failure.kind != "no ranges":
                raise self._error(name, "read", error.failure) from error
            num_bytes = self.status(name).num_bytes
            if num_bytes > MAX_UNRANGED_BYTES:
                reason = f"{error.failure.reason} (of its {num_bytes:,} bytes, up to {MAX_UNRANGED_BYTES:,} are read)"
                raise self._error(name, "read", Failure("refused", reason)) from error
        key = self._key(name)
        content = self._request(lambda client: bytes(obstore.get(client, key).bytes()), name, "read")
        return Opened(len(content), "", content), lambda start, end: memoryview(content)[start:end]

    def _find(self, folder: str) -> tuple[_Tree, str]:
        """The list of the nearest folder that has one, and what this one is called in it; raises where none has."""
        place = self.address / folder
        parents = [parent for parent in place.parents if isinstance(parent, Address) and parent.bucket]
        # Of a folder that a list was read for before, the folders below need no further check of it.
        known = next((parent for parent in parents if str(parent) in _trees), None)
        denied = None
        for parent in [place, *parents] if known is None else [known]:
            tree = _trees[str(parent)] if parent is known else self._read_tree(parent)
            if isinstance(tree, _Tree):
                return tree, "/".join(place.parts[len(parent.parts) :])
            denied = denied or tree
        if denied is not None and str(place) not in _served:
            raise self._error(folder, "listed", denied)
        raise self._error(
            folder,
            "listed",
            Failure(
                "refused",
                f"a web server has no listings, and there is no {INDEX_NAME} here or above that lists the files; "
                "'records', 'merge' and 'copy' write it: publish the folder with it",
            ),
        )

    def _read_tree(self, parent: Address) -> _Tree | Failure | None:
        """The list in a folder, as it is now; None where there is none, or what denied it, which can mean the same."""
        storage = WebStorage(parent, self.raises)
        failure = storage._probe(INDEX_NAME)
        if failure is not None:
            if failure.kind != "missing" and not failure.may_be_missing:
                raise storage._error(INDEX_NAME, "read", failure)
            return failure if failure.may_be_missing else None
        status = storage.status(INDEX_NAME)
        version = status.version or (str(status.modified_ns) if status.modified_ns else "")
        tree = _trees.get(str(parent))
        if tree is None or not version or tree.version != version:
            files = read_file_index(storage)
            if files is None:
                return None
            tree = _trees[str(parent)] = _Tree(files, version)
        return tree
