"""A bucket, or a folder in one, as a storage.

An object appears by one put, complete or not at all. Put-if-absent is a conditional put (If-None-Match: *), which of
several writers one wins. Its answer may be lost, and "exists" is also what is said of two puts at once: then the object
itself is asked, and where there is none the put is repeated. Whichever writer won, a complete object of this name is
there.

Nothing that is written is read back, and nothing is renamed. Folders are what names have in common.

The first request of a process to a bucket is a small one of its own: its answer has a body, which says what a HEAD does
not (a wrong secret, a missing bucket), and it need not wait as long as one that moves a gigabyte.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Collection, Iterable, Iterator
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
from teachonce.storage.remote.clients import Patience, connect, patience
from teachonce.storage.remote.failures import Failure
from teachonce.storage.remote.lease import check_leases, hold_lease
from teachonce.storage.remote.local_copy import local_copy
from teachonce.storage.remote.reader import (
    HEAD_BYTES,
    ObjectReader,
    ObjectStream,
    Opened,
    RemoteBytes,
    SequentialReader,
)
from teachonce.storage.remote.retry import Pauses, RequestFailedError, request
from teachonce.storage.remote.settings import read_settings, retry_limit
from teachonce.storage.storage import FileStatus, Listing, Mapped, Reader, Storage

Result = TypeVar("Result")

MAX_SINGLE_PUT_BYTES = 512 << 20
"""Of a body that is put by one request, from memory or a mapped file; larger ones go in parts of ``PART_BYTES``."""
PART_BYTES = 64 << 20
REQUESTS_AT_ONCE = 16
_STREAM_BUFFER_BYTES = 1 << 20
_FIRST_ANSWER_SECONDS = 15.0
_WEAK = "W/"
"""In front of an ETag that two versions may have, by which no server compares."""
_met: dict[int, Any] = {}
"""Clients, by their identity, of buckets that exist, with credentials that are right."""
_known: dict[tuple[str, str], FileStatus] = {}
"""What listings said, by bucket and key: an object of which the cache has the pages is opened without a request. One
that was replaced since is another version, so a page that is fetched of it is an error."""


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

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self.address.key, name) if part)

    def describe(self, name: str = "") -> str:
        """The address."""
        return str(self.address / name)

    def list_folder(self, folder: str = "") -> Listing:
        """The names in a folder: one request for each thousand."""
        statuses, folders = self._list_directly(folder)
        if not statuses and not folders:
            raise self._error(folder, "listed", Failure("missing", "No such file or directory"))
        return Listing(list(statuses), folders)

    def _list_directly(self, folder: str) -> tuple[dict[str, FileStatus], list[str]]:
        """The files directly in a folder, and the names of its folders; neither where there is no such folder."""
        prefix = self._prefix(folder)
        found = self._request(lambda client: obstore.list_with_delimiter(client, prefix or None), folder, "listed")
        folders = [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]
        statuses = _without_markers(prefix, found["objects"], folders)
        return statuses, folders

    def walk(self, folder: str = "") -> Iterator[str]:
        """The objects below a folder."""
        names = self._list_all(folder)
        if not names:
            raise self._error(folder, "listed", Failure("missing", "No such file or directory"))
        yield from names

    def _list_all(self, folder: str) -> dict[str, FileStatus]:
        prefix = self._prefix(folder)

        def collect(client: Any) -> dict[str, FileStatus]:
            objects = [meta for chunk in obstore.list(client, prefix or None) for meta in chunk]
            return _without_markers(prefix, objects)

        return self._request(collect, folder, "listed")

    def statuses(self, folder: str = "") -> dict[str, FileStatus]:
        """Size and time of each file directly in a folder, by one listing; none where there is no such folder."""
        statuses, _ = self._list_directly(folder)
        prefix = self._prefix(folder)
        _known.update({(self._bucket, prefix + name): status for name, status in statuses.items()})
        return statuses

    def status(self, name: str) -> FileStatus:
        """Size and time of an object."""
        return _status(self._request(lambda client: obstore.head(client, self._key(name)), name, "read"))

    def has(self, name: str = "") -> bool:
        """Whether there is an object of this name."""
        return self._has(name, "read")

    def _has(self, name: str, verb: str) -> bool:
        """As ``has``; ``verb`` is what the object is wanted for, as an error names it."""
        key = self._key(name)
        if not key:
            return False
        try:
            self._ask(lambda client: obstore.head(client, key), name)
        except RequestFailedError as error:
            if error.failure.kind == "missing":
                return False
            if not error.failure.is_explained:
                # A server also answers "forbidden" for a missing object, to callers that may not list.
                if not self._is_listed(name, verb):
                    return False
                raise self._error(name, verb, self._ask_why(name) or error.failure) from error
            raise self._error(name, verb, error.failure) from error
        return True

    def is_folder(self, name: str = "") -> bool:
        """Whether there is an object below this name."""
        prefix = self._prefix(name)

        def look(client: Any) -> bool:
            # The first may be the marker of the folder itself.
            chunks = obstore.list(client, prefix or None, chunk_size=1)
            return any(meta["path"].startswith(prefix) for chunk in chunks for meta in chunk)

        return self._request(look, name, "listed")

    def _is_listed(self, name: str, verb: str) -> bool:
        """Whether an object is in the listing of its folder; raises where that is forbidden too."""
        key = self._key(name)
        parent = key.rpartition("/")[0]

        def look(client: Any) -> bool:
            # Not by the key as the prefix: object_store appends a slash to it.
            found = obstore.list_with_delimiter(client, f"{parent}/" if parent else None)
            return any(meta["path"] == key for meta in found["objects"])

        return self._request(look, name, verb)

    def is_writable(self) -> bool:
        """Only trying can tell."""
        return True

    def read(self, name: str) -> bytes:
        """An object, by one request."""
        return self._read_all(name, *self._open(name))

    def find(self, name: str) -> bytes | None:
        """An object, by one request; None where there is none."""
        try:
            found = self._open_ranges(name)
        except RequestFailedError as error:
            if error.failure.kind == "missing":
                return None
            # A server also answers "forbidden" for a missing object, to callers that may not list.
            return super().find(name)
        return self._read_all(name, *found)

    def _read_all(self, name: str, opened: Opened, get_range: Callable[[int, int], memoryview]) -> bytes:
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
            num_bytes, version, modified_ns = opened.num_bytes, opened.version, opened.modified_ns
            # Its first page is here already.
            reader = ObjectReader(opened, get_range)
            get_range = reader.view
            if not version and modified_ns <= 0:
                return reader  # nothing tells it from another file of its name and size
        else:
            num_bytes, modified_ns, version = known
            get_range = partial(self._get_range, name, version)
        identity = f"{self.describe(name)}\n{num_bytes}\n{version or modified_ns}"
        return CachedReader(cache, identity, num_bytes, get_range, unit)

    def _get_range(self, name: str, version: str, start: int, end: int) -> memoryview:
        parts = [self._get_part(name, version, at, min(at + PART_BYTES, end)) for at in range(start, end, PART_BYTES)]
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _get_part(self, name: str, version: str, start: int, end: int) -> memoryview:
        options: Any = {"range": (start, end)}
        if version and not version.startswith(_WEAK):
            options["if_match"] = f'"{version}"'
        key, wait = self._key(name), patience(end - start)
        found = memoryview(
            self._request(lambda client: obstore.get(client, key, options=options).bytes(), name, "read", wait)
        )
        if len(found) != end - start:
            raise self._error(name, "read", Failure("refused", f"{len(found):,} bytes of a range of {end - start:,}"))
        return found

    def _open(self, name: str) -> tuple[Opened, Callable[[int, int], memoryview]]:
        try:
            return self._open_ranges(name)
        except RequestFailedError as error:
            raise self._error(name, "read", error.failure) from error

    def _open_ranges(self, name: str) -> tuple[Opened, Callable[[int, int], memoryview]]:
        key = self._key(name)

        def open_object(client: Any) -> Opened:
            found = obstore.get(client, key, options={"range": (0, HEAD_BYTES)})
            status = _status(found.meta)
            return Opened(status.num_bytes, status.version, bytes(found.bytes()), status.modified_ns)

        try:
            opened = self._ask(open_object, name)
        except RequestFailedError as error:
            if error.failure.kind != "empty":
                raise
            opened = Opened(0, "", b"")
        if len(opened.head) != min(opened.num_bytes, HEAD_BYTES):
            reason = f"{len(opened.head):,} of the first bytes, expected {min(opened.num_bytes, HEAD_BYTES):,}"
            raise self._error(name, "read", Failure("refused", reason))

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
            check_leases(self, name)
            send(name, body)
        finally:
            body.discard()

    def _overwrite(self, name: str, body: Body) -> None:
        content = body.content()
        if len(content) > MAX_SINGLE_PUT_BYTES:
            self._put_parts(name, body)
            return
        wait = patience(len(content), is_upload=True)
        self._request(
            lambda client: obstore.put(client, self._key(name), content, mode="overwrite", use_multipart=False),
            name,
            "written",
            wait,
        )

    def _put_parts(self, name: str, body: Body) -> None:
        # The object appears when the last part is there. Where a part fails for good, or the process is killed, the
        # parts that are there stay, unseen, until the bucket's lifecycle rule removes them.
        wait = patience(PART_BYTES, is_upload=True, retry_seconds=retry_limit())
        self._request(
            lambda client: obstore.put(
                client,
                self._key(name),
                body.as_file(),
                mode="overwrite",
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=2,
            ),
            name,
            "written",
            wait,
        )

    def _create(self, name: str, body: Body) -> None:
        content = body.content()
        if len(content) > MAX_SINGLE_PUT_BYTES:
            # Parts cannot be put on a condition. Two writers of so large a file both complete it, with the same bytes.
            if not self._has(name, "written"):
                self._put_parts(name, body)
            return
        pauses = Pauses(self.describe(name), retry_limit())
        wait = patience(len(content), is_upload=True)
        while True:
            began = time.monotonic()
            try:
                self._ask(
                    lambda client: obstore.put(client, self._key(name), content, mode="create", use_multipart=False),
                    name,
                    wait,
                    may_exist=True,
                )
                return
            except RequestFailedError as error:
                # It is there: another's, or ours, where the answer to an earlier attempt was lost. Or two puts at once
                # had a conflict, and neither may be there.
                if error.failure.kind != "exists":
                    raise self._error(name, "written", error.failure) from error
            if self._has(name, "written"):
                return
            if not pauses.wait("two writers at once", began):
                reason = "the server reports that it exists, but it cannot be found; check what else writes there"
                raise self._error(name, "written", Failure("refused", reason))

    def delete(self, name: str) -> None:
        """Remove an object."""
        try:
            self._ask(lambda client: obstore.delete(client, self._key(name)), name)
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

    def _request(self, do: Callable[[Any], Result], name: str, verb: str, wait: Patience | None = None) -> Result:
        try:
            return self._ask(do, name, wait)
        except RequestFailedError as error:
            failure = error.failure
            if not failure.is_explained:
                failure = self._ask_why(name) or failure
            raise self._error(name, verb, failure) from error

    def _ask(
        self, do: Callable[[Any], Result], name: str, wait: Patience | None = None, *, may_exist: bool = False
    ) -> Result:
        self._meet(name)
        client = connect(self.address.scheme, self.address.bucket, wait or patience(0))
        return request(self._bucket, lambda: do(client), self.describe(name), may_exist=may_exist)

    def _meet(self, name: str) -> None:
        """Raise ``RequestFailedError`` where there is no such bucket, or no access to it."""
        client = connect(
            self.address.scheme,
            self.address.bucket,
            Patience(min(_FIRST_ANSWER_SECONDS, read_settings().timeout_seconds)),
        )
        if id(client) in _met:
            return
        try:
            request(self._bucket, lambda: _get_first_byte(client, self.address.key or name), self.describe(name))
        except RequestFailedError as error:
            if error.failure.is_general:
                raise
        _met[id(client)] = client

    def _ask_why(self, name: str) -> Failure | None:
        """The reason that HEAD was not given, by a request whose answer has a body."""
        try:
            self._ask(lambda client: _get_first_byte(client, self._key(name)), name)
        except RequestFailedError as error:
            return error.failure
        return None

    def _error(self, name: str, verb: str, failure: Failure) -> TeachonceError:
        return self.raises(f"{self.describe(name)}: cannot be {verb}: {failure.reason}")


def _get_first_byte(client: Any, key: str) -> None:
    obstore.get(client, key or "-", options={"range": (0, 1)}).bytes()


def _without_markers(prefix: str, objects: Iterable[Any], folders: Collection[str] = ()) -> dict[str, FileStatus]:
    """The objects below a prefix, by their names below it; ``folders`` are known to be none.

    Consoles mark a folder by an empty object "folder/". object_store removes the slash, so it is recognized by what is
    below it: an empty object of a folder's name is not a file.
    """
    found = {meta["path"][len(prefix) :]: _status(meta) for meta in objects if meta["path"].startswith(prefix)}
    empty = [name for name, status in found.items() if not status.num_bytes]
    if empty:
        parents = {name[:end] for name in found for end, letter in enumerate(name) if letter == "/"}.union(folders)
        for name in empty:
            if name in parents:
                del found[name]
    return found


def _status(meta: Any) -> FileStatus:
    # In seconds, as HEAD has them; a listing is finer.
    return FileStatus(meta["size"], int(meta["last_modified"].timestamp()) * 10**9, _version(meta))


def _version(meta: Any) -> str:
    """The ETag without its quotes, which Azure's listings leave out; a weak one as it is."""
    tag: str = meta["e_tag"] or ""
    return tag if tag.startswith(_WEAK) else tag.strip('"')


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
