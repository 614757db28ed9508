"""A bucket, or a folder in one, as a storage.

An object appears by one put, whole, or not at all. Put-if-absent is a conditional put (If-None-Match: *), which of
several writers one wins. Its answer may be lost, and "exists" is also what is said of two puts at once: then the object
itself is asked, and where there is none the put is repeated. Whoever won, a complete object of this name is there.

Nothing that is written is read back, and nothing is renamed. Folders are what names have in common.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import obstore

from teachonce.errors import TeachonceError
from teachonce.storage.address import Address
from teachonce.storage.regular import MAX_WHOLE_BYTES
from teachonce.storage.remote.body import Body
from teachonce.storage.remote.cache import FETCH_PAGES, CachedReader, cache_of_environment
from teachonce.storage.remote.clients import connect
from teachonce.storage.remote.failures import Failure
from teachonce.storage.remote.lease import hold_lease
from teachonce.storage.remote.local_copy import local_copy
from teachonce.storage.remote.reader import (
    HEAD_BYTES,
    ObjectReader,
    ObjectStream,
    Opened,
    RemoteBytes,
    SequentialReader,
)
from teachonce.storage.remote.retry import RequestFailedError, has_succeeded, request
from teachonce.storage.storage import FileStatus, Listing, Mapped, Reader, Storage

Result = TypeVar("Result")

MAX_SINGLE_PUT_BYTES = 512 << 20
"""Of a body that is put by one request, from memory or a mapped file; larger ones go in parts of ``PART_BYTES``."""
PART_BYTES = 64 << 20
REQUESTS_AT_ONCE = 16
_STREAM_BUFFER_BYTES = 1 << 20
_known: dict[tuple[str, str], FileStatus] = {}
"""What listings said, by bucket and key: an object of which the cache has the pages is opened without a request. One
that was replaced since is another version, so a page that is fetched of it is an error."""
_CREATE_ATTEMPTS = 8
"""Conflicts in a row of which each found no object afterwards."""


@dataclass(frozen=True)
class ObjectStorage(Storage):
    """The objects below an address."""

    address: Address
    raises: type[TeachonceError] = TeachonceError

    requests_at_once = REQUESTS_AT_ONCE

    @property
    def is_cached(self) -> bool:
        """Whether this process has a cache."""
        return cache_of_environment() is not None

    @property
    def _client(self) -> Any:
        return connect(self.address.scheme, self.address.bucket)

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self.address.key, name) if part)

    def describe(self, name: str = "") -> str:
        """The address."""
        return str(self.address / name)

    def list_folder(self, folder: str = "") -> Listing:
        """What lies in a folder: one request for each thousand names."""
        prefix = self._prefix(folder)
        found = self._request(lambda: obstore.list_with_delimiter(self._client, prefix or None), folder, "listed")
        files = [meta["path"].rpartition("/")[2] for meta in found["objects"] if not meta["path"].endswith("/")]
        folders = [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]
        if not files and not folders:
            raise self._error(folder, "listed", Failure("missing", "No such file or directory"))
        return Listing(files, folders)

    def walk(self, folder: str = "") -> Iterator[str]:
        """The objects below a folder."""
        names = self._list_all(folder)
        if not names:
            raise self._error(folder, "listed", Failure("missing", "No such file or directory"))
        yield from names

    def _list_all(self, folder: str) -> dict[str, FileStatus]:
        prefix = self._prefix(folder)

        def collect() -> dict[str, FileStatus]:
            return {
                meta["path"][len(prefix) :]: _status(meta)
                for chunk in obstore.list(self._client, prefix or None)
                for meta in chunk
            }

        return self._request(collect, folder, "listed")

    def statuses(self, folder: str = "") -> dict[str, FileStatus]:
        """Size and time of each file directly in a folder, by one listing; none where there is no such folder."""
        prefix = self._prefix(folder)
        found = self._request(lambda: obstore.list_with_delimiter(self._client, prefix or None), folder, "listed")
        statuses = {meta["path"].rpartition("/")[2]: _status(meta) for meta in found["objects"]}
        _known.update({(self._bucket, prefix + name): status for name, status in statuses.items()})
        return statuses

    def status(self, name: str) -> FileStatus:
        """Size and time of an object."""
        return _status(self._request(lambda: obstore.head(self._client, self._key(name)), name, "read"))

    def has(self, name: str = "") -> bool:
        """Whether there is an object of this name."""
        key = self._key(name)
        if not key:
            return False
        try:
            request(self._bucket, lambda: obstore.head(self._client, key), self.describe(name))
        except RequestFailedError as error:
            # Of a missing bucket or permission a server says no more to HEAD than of a missing object.
            if error.failure.kind == "missing" and has_succeeded(self._bucket):
                return False
            if error.failure.kind == "missing" or not error.failure.is_explained:
                return self._is_listed(name)
            raise self._error(name, "read", error.failure) from error
        return True

    def is_folder(self, name: str = "") -> bool:
        """Whether there is an object below this name."""
        return bool(self._first_below(name))

    def _is_listed(self, name: str) -> bool:
        """Whether an object is in the listing of its folder; raises for a missing bucket or wrong keys."""
        key = self._key(name)

        def look() -> bool:
            found = next(iter(obstore.list(self._client, key, chunk_size=1)), ())
            return any(meta["path"] == key for meta in found)

        # By prefix: object_store lists whole path segments, so this is the object itself or what lies below it.
        return self._request(look, name, "read")

    def _first_below(self, name: str) -> list[Any]:
        prefix = self._prefix(name)

        def look() -> list[Any]:
            return list(next(iter(obstore.list(self._client, prefix or None, chunk_size=1)), ()))

        found = self._request(look, name, "listed")
        return [meta for meta in found if meta["path"].startswith(prefix)]

    def is_writable(self) -> bool:
        """Only trying tells."""
        return True

    def read(self, name: str) -> bytes:
        """An object, by one request."""
        opened, get_range = self._open(name)
        if opened.num_bytes > MAX_WHOLE_BYTES:
            reason = f"{opened.num_bytes:,} bytes, expected at most {MAX_WHOLE_BYTES:,}"
            raise self._error(name, "read", Failure("refused", reason))
        if opened.num_bytes <= len(opened.head):
            return opened.head
        return b"".join((opened.head, get_range(len(opened.head), opened.num_bytes)))

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """An object in order, read ahead."""
        raw = ObjectStream(SequentialReader(ObjectReader(*self._open(name))))
        with _first_failure(raw):
            yield io.BufferedReader(raw, _STREAM_BUFFER_BYTES)

    def open_reader(self, name: str, *, in_order: bool = False) -> Reader:
        """Ranges of an object as it is now; one that is replaced later is an error when it is read."""
        reader = self._reader(name, FETCH_PAGES)
        return SequentialReader(reader) if in_order else reader

    def map(self, name: str) -> Mapped:
        """Slices of an object, each a request, or what the cache has of it."""
        # By single pages: of a file with ten views only one may be wanted.
        return RemoteBytes(self._reader(name, 1))

    def _reader(self, name: str, unit: int) -> ObjectReader | CachedReader:
        cache = cache_of_environment()
        if cache is None:
            return ObjectReader(*self._open(name))
        key = self._key(name)
        known = _known.get((self._bucket, key))
        if known is None:
            opened, get_range = self._open(name)
            num_bytes, version = opened.num_bytes, opened.version
            # Its first page is here already.
            get_range = ObjectReader(opened, get_range).view
        else:
            num_bytes, version = known.num_bytes, known.version
            get_range = partial(self._get_range, name, version)
        return CachedReader(cache, f"{self.describe(name)}\n{num_bytes}\n{version}", num_bytes, get_range, unit)

    def _get_range(self, name: str, version: str, start: int, end: int) -> memoryview:
        options: Any = {"range": (start, end)} | ({"if_match": version} if version else {})
        key, client = self._key(name), self._client
        return memoryview(self._request(lambda: obstore.get(client, key, options=options).bytes(), name, "read"))

    def _open(self, name: str) -> tuple[Opened, Callable[[int, int], memoryview]]:
        key, client = self._key(name), self._client

        def open_object() -> Opened:
            found = obstore.get(client, key, options={"range": (0, HEAD_BYTES)})
            return Opened(found.meta["size"], found.meta["e_tag"] or "", bytes(found.bytes()))

        try:
            opened = request(self._bucket, open_object, self.describe(name))
        except RequestFailedError as error:
            if error.failure.kind != "empty":
                raise self._error(name, "read", error.failure) from error
            opened = Opened(0, "", b"")

        return opened, partial(self._get_range, name, opened.version)

    def put(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A body that is put when the block has ended."""
        return self._put(name, self._overwrite)

    def put_if_absent(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A body that is put where there is no object of this name."""
        return self._put(name, self._create)

    @contextmanager
    def _put(self, name: str, send: Callable[[str, Body], None]) -> Iterator[BinaryIO]:
        body = Body(self.describe(name), self.raises)
        try:
            with _first_failure(body):
                yield cast(BinaryIO, body)
            send(name, body)
        finally:
            body.discard()

    def _overwrite(self, name: str, body: Body) -> None:
        content = body.content()
        if len(content) > MAX_SINGLE_PUT_BYTES:
            self._put_parts(name, body)
            return
        self._request(
            lambda: obstore.put(self._client, self._key(name), content, mode="overwrite", use_multipart=False),
            name,
            "written",
        )

    def _put_parts(self, name: str, body: Body) -> None:
        # The object appears when the last part is there; a failed put takes its parts back.
        self._request(
            lambda: obstore.put(
                self._client,
                self._key(name),
                body.as_file(),
                mode="overwrite",
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=2,
            ),
            name,
            "written",
        )

    def _create(self, name: str, body: Body) -> None:
        content = body.content()
        if len(content) > MAX_SINGLE_PUT_BYTES:
            # Parts cannot be put on a condition. Two writers of so large a file both complete it, with the same bytes.
            if not self.has(name):
                self._put_parts(name, body)
            return
        for _ in range(_CREATE_ATTEMPTS):
            try:
                request(
                    self._bucket,
                    lambda: obstore.put(self._client, self._key(name), content, mode="create", use_multipart=False),
                    self.describe(name),
                )
                return
            except RequestFailedError as error:
                # It is there: another's, or ours, where the answer to an earlier attempt was lost. Or two puts at once
                # had a conflict, and neither may be there.
                if error.failure.kind != "exists":
                    raise self._error(name, "written", error.failure) from error
                if self.has(name):
                    return
        raise self._error(name, "written", Failure("refused", "the server says that it exists, and it does not"))

    def delete(self, name: str) -> None:
        """Remove an object."""
        try:
            request(self._bucket, lambda: obstore.delete(self._client, self._key(name)), self.describe(name))
        except RequestFailedError as error:
            if error.failure.kind != "missing":
                raise self._error(name, "removed", error.failure) from error

    def remove_temporaries(self, folder: str = "") -> None:
        """There are none: an object is complete or not there."""

    def lock(self, name: str, doing: str) -> AbstractContextManager[None]:
        """An object that its holder renews."""
        return hold_lease(self, name, doing)

    def local_path(self, name: str = "") -> Path:
        """A copy in the user's cache folder."""
        return local_copy(self, name)

    @property
    def _bucket(self) -> str:
        return f"{self.address.scheme}://{self.address.bucket}"

    def _prefix(self, folder: str) -> str:
        key = self._key(folder)
        return f"{key}/" if key else ""

    def _request(self, do: Callable[[], Result], name: str, verb: str) -> Result:
        try:
            return request(self._bucket, do, self.describe(name))
        except RequestFailedError as error:
            failure = error.failure
            if not failure.is_explained:
                failure = self._ask_why(name) or failure
            raise self._error(name, verb, failure) from error

    def _ask_why(self, name: str) -> Failure | None:
        """The reason that HEAD was not given, by a request whose answer has a body."""
        try:
            request(
                self._bucket,
                lambda: obstore.get(self._client, self._key(name) or "-", options={"range": (0, 1)}),
                self.describe(name),
            )
        except RequestFailedError as error:
            return error.failure
        return None

    def _error(self, name: str, verb: str, failure: Failure) -> TeachonceError:
        return self.raises(f"{self.describe(name)}: cannot be {verb}: {failure.reason}")


def _status(meta: Any) -> FileStatus:
    # In seconds, as HEAD has them; a listing is finer.
    return FileStatus(meta["size"], int(meta["last_modified"].timestamp()) * 10**9, meta["e_tag"] or "")


@contextmanager
def _first_failure(raw: Body | ObjectStream) -> Iterator[None]:
    """Raise the first error of ``raw`` itself, whatever the block made of it: libraries turn it into their own."""
    try:
        yield
    except Exception as error:
        if raw.failure is not None and raw.failure is not error:
            raise raw.failure from error
        raise
    if raw.failure is not None:
        raise raw.failure
