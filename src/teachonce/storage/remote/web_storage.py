"""A plain web server as a storage: for reading, and without listings.

Files are asked for by name; what a folder has is read from its files.json (``file_index``), or from that of a folder
above it. A server that does not serve ranges of a file sends it whole, which is all right for small ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, NoReturn

import obstore

from teachonce.errors import ConfigError
from teachonce.storage.address import Address
from teachonce.storage.remote.failures import Failure
from teachonce.storage.remote.file_index import INDEX_NAME, ListedFile, read_file_index
from teachonce.storage.remote.object_storage import ObjectStorage
from teachonce.storage.remote.reader import Opened
from teachonce.storage.remote.retry import RequestFailedError, request
from teachonce.storage.storage import FileStatus, Listing

MAX_UNRANGED_BYTES = 64 << 20
"""Of a file that is read whole from a server without ranges."""

_indexes: dict[str, dict[str, ListedFile]] = {}
"""Lists that this process has read, by the address of their folder: a folder of images has a thousand below it."""
_lock = threading.Lock()


@dataclass(frozen=True)
class WebStorage(ObjectStorage):
    """The files below an address of a web server."""

    can_list: ClassVar[bool] = False

    def list_folder(self, folder: str = "") -> Listing:
        """What files.json has of a folder."""
        names = list(self.walk(folder))
        folders = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
        return Listing([name for name in names if "/" not in name], list(folders))

    def walk(self, folder: str = "") -> Iterator[str]:
        """What files.json has below a folder."""
        found = self._listed(folder)
        if not found:
            raise self._error(folder, "listed", Failure("missing", "No such file or directory"))
        yield from found

    def statuses(self, folder: str = "") -> dict[str, FileStatus]:
        """What files.json says of the files directly in a folder: their size, and their hash as the version."""
        return {
            name: FileStatus(entry.num_bytes, 0, entry.xxh3)
            for name, entry in self._listed(folder).items()
            if "/" not in name
        }

    def has(self, name: str = "") -> bool:
        """Whether the server has a file of this name."""
        try:
            request(self._bucket, lambda: obstore.head(self._client, self._key(name)), self.describe(name))
        except RequestFailedError as error:
            if error.failure.kind == "missing":
                return False
            raise self._error(name, "read", error.failure) from error
        return not self._is_listed_folder(name)

    def _is_listed_folder(self, name: str) -> bool:
        """Whether the list has files below this name: of a folder many servers send a page."""
        if (self.address / name).suffix:
            return False
        try:
            return bool(self._listed(name))
        except self.raises:
            return False

    def is_folder(self, name: str = "") -> bool:
        """Whether files.json has anything below this name; raises where there is no such list to look into."""
        if (self.address / name).suffix and self.has(name):
            return False
        return bool(self._listed(name))

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
        raise ConfigError(
            f"{self.describe(name)}: a web server is read only; write to a local path, s3://, gs:// or az://, and "
            "serve that"
        )

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
        key, client = self._key(name), self._client
        content = self._request(lambda: bytes(obstore.get(client, key).bytes()), name, "read")
        return Opened(len(content), "", content), lambda start, end: memoryview(content)[start:end]

    def _listed(self, folder: str) -> dict[str, ListedFile]:
        """What lies below a folder, by the list of the nearest folder that has one; raises where none has."""
        place = self.address / folder
        folders = [place, *(parent for parent in place.parents if isinstance(parent, Address) and parent.bucket)]
        known = next((parent for parent in folders[1:] if str(parent) in _indexes), None)
        for parent in folders if known is None else [known]:
            files = _indexes[str(parent)] if parent is known else read_file_index(WebStorage(parent, self.raises))
            if files is not None:
                with _lock:
                    _indexes[str(parent)] = files
                prefix = "".join(f"{part}/" for part in place.parts[len(parent.parts) :])
                return {name[len(prefix) :]: entry for name, entry in files.items() if name.startswith(prefix)}
        raise self._error(
            folder,
            "listed",
            Failure(
                "refused",
                f"a web server lists nothing, and there is no {INDEX_NAME} here or above that says what there is; "
                "'records', 'merge' and 'copy' write it: publish the folder with it",
            ),
        )
