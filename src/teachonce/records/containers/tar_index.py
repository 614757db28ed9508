"""Where the images of a WebDataset tar lie: NAME.tar.index.json beside it, so that a tar is read by row, not unpacked.

    {"format_version": 4, "num_bytes": 30720, "version": "1760000000000000000", "check": "...",
     "samples": [["n01/0001", "jpg", 1536, 20480, "7", null], ...], "left_out": []}

A sample is the members of one name up to the first dot of its last part: its image (jpg, png, webp, ...), with offset
and size, and the texts of its cls and its json. WebDataset wants them side by side; labels that lie elsewhere in the
tar, as after ``tar cf x.tar *.jpg *.cls``, are taken too, where the sample has none beside it.

The index is made by reading the tar once, or only its headers where it is local, and kept beside it, or in the cache
folder where the tar's is read-only. ``version`` is the tar's time of modification, or what an object store calls its
version, and ``check`` a hash of the first and the last image's header: the index of a tar that was replaced or copied
is made again, as its labels may be others at the same size.
"""

from __future__ import annotations

import json
import os
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import xxhash

from teachonce.errors import RecordError, TeachonceError
from teachonce.records.image_listing import IMAGE_SUFFIXES
from teachonce.storage.cache_folder import cache_folder
from teachonce.storage.files import atomic_write, locate
from teachonce.storage.storage import FileStatus, Reader, Storage
from teachonce.terminal import plural

INDEX_SUFFIX = ".index.json"
FORMAT_VERSION = 4
HEADER_BYTES = 512
MAX_TEXT_BYTES = 1 << 20
"""Of a label's file: more is no label."""


class TarSample(NamedTuple):
    """One image of a tar: its name without the ending, and where its bytes are."""

    name: str
    suffix: str
    offset: int
    num_bytes: int
    cls: str | None
    json: str | None


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    format_version: int
    num_bytes: int
    version: str
    check: str
    samples: list[TarSample]
    left_out: list[str]
    """Images that are no sample's."""


def load_tar_index(path: Path, status: FileStatus) -> list[TarSample]:
    """The samples of a tar in order; raises RecordError where it is none, was cut short or holds no image."""
    storage, name = locate(path, RecordError)
    cached = _cached_path(path, status)
    for place in (path.with_name(name + INDEX_SUFFIX), cached):
        found = None if place is None else _read_index(place, storage, name, status)
        if found is not None:
            _warn_of_left_out(storage.describe(name), found.left_out)
            return found.samples
    samples, left_out = _scan(storage, name, status)
    _warn_of_left_out(storage.describe(name), left_out)
    check = _check(storage, name, samples)
    index = _Index(FORMAT_VERSION, status.num_bytes, _version(status), check, samples, left_out)
    content = msgspec.json.encode(index)
    if storage.is_writable():
        with suppress(TeachonceError), storage.put(name + INDEX_SUFFIX) as file:
            file.write(content)
            return samples
    if cached is not None:
        # Where the cache cannot be written either, the index is only made again.
        with suppress(TeachonceError), atomic_write(cached) as file:
            file.write(content)
    return samples


def _version(status: FileStatus) -> str:
    return f"{status.modified_ns}{status.version}"


def _cached_path(path: Path, status: FileStatus) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    identity = f"{path}\0{status.num_bytes}\0{_version(status)}"
    return folder / f"{xxhash.xxh3_128_hexdigest(os.fsencode(identity))}{INDEX_SUFFIX}"


def _read_index(place: Path, storage: Storage, name: str, status: FileStatus) -> _Index | None:
    """The index in a file, if it is this tar's."""
    there, file = locate(place)
    try:
        if not there.has(file):
            return None
        index = msgspec.json.decode(there.read(file), type=_Index)
    except (TeachonceError, msgspec.DecodeError):
        return None
    found = index.format_version, index.num_bytes, index.version
    is_right = found == (FORMAT_VERSION, status.num_bytes, _version(status))
    return index if is_right and index.samples and index.check == _check(storage, name, index.samples) else None


def _check(storage: Storage, name: str, samples: list[TarSample]) -> str:
    reader = storage.open_reader(name)
    hasher = xxhash.xxh3_128()
    for sample in (samples[0], samples[-1]):
        hasher.update(reader.read(max(sample.offset - HEADER_BYTES, 0), HEADER_BYTES))
    return hasher.hexdigest()


def _warn_of_left_out(where: str, names: list[str]) -> None:
    """Whenever the tar is opened, not only when its index is made: by others, or long ago."""
    if names:
        warnings.warn(
            f"{where}: {plural(len(names), 'image')} left out, such as {names[0]}: what has the same name up to "
            "the first dot is one sample, of which the first image is taken; rename them if they are several",
            stacklevel=3,
        )


def _scan(storage: Storage, name: str, status: FileStatus) -> tuple[list[TarSample], list[str]]:
    """The samples, and the images that are none."""
    where = storage.describe(name)
    samples: list[TarSample] = []
    apart: dict[str, dict[str, str]] = {"cls": {}, "json": {}}
    current: dict[str, Any] = {}
    left_out: list[str] = []
    try:
        with _open_tar(storage, name, status.num_bytes) as tar:
            for member in tar:
                key, suffix = _split_name(member.name)
                if not member.isfile() or not suffix or member.name.rpartition("/")[2].startswith((".", "__")):
                    continue
                if key != current.get("name"):
                    _add(samples, apart, current)
                    current = {"name": key}
                if member.offset_data + member.size > status.num_bytes:
                    raise RecordError(
                        f"{where}: {member.name} ends behind the file's end: it was cut short; copy it again"
                    )
                if f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES:
                    if "image" in current:
                        left_out.append(member.name)
                    current.setdefault("image", (suffix, member.offset_data, member.size))
                elif suffix in ("cls", "json"):
                    current[suffix] = _read_text(tar, member, where)
            _check_end(storage, name, tar.offset, current.get("name"))
    except (tarfile.TarError, EOFError) as error:
        raise RecordError(f"{where}: is not a tar, or is damaged: {error}; copy it again") from error
    _add(samples, apart, current)
    if not samples:
        raise RecordError(
            f"{where}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}), expected NAME.jpg and NAME.cls"
        )
    if any(apart.values()):
        for row, sample in enumerate(samples):
            cls, fields = sample.cls or apart["cls"].get(sample.name), sample.json or apart["json"].get(sample.name)
            samples[row] = sample._replace(cls=cls, json=fields)
    return samples, left_out


def _check_end(storage: Storage, name: str, offset: int, last: str | None) -> None:
    """Raise RecordError where no block of zeros is behind the last member, as at the end of every tar.

    The library reads up to what it does not understand, and says nothing.
    """
    block = storage.open_reader(name).read(offset, HEADER_BYTES)
    if len(block) < HEADER_BYTES or any(block):
        where = storage.describe(name)
        found = "the file ends" if not block else f"byte {offset} is no header of a member, and not the end of a tar"
        raise RecordError(f"{where}: behind {last} {found}: it was cut short, or is damaged; copy it again")


def _add(samples: list[TarSample], apart: dict[str, dict[str, str]], found: dict[str, Any]) -> None:
    """Add what lay side by side: a sample, or, by ending and name, texts whose image is elsewhere, or nowhere.

    Only the latter are looked up by name in the end: a tar that is sorted takes no more memory for them.
    """
    if "image" in found:
        suffix, offset, num_bytes = found["image"]
        samples.append(TarSample(found["name"], suffix, offset, num_bytes, found.get("cls"), found.get("json")))
        return
    for suffix, texts in apart.items():
        if suffix in found:
            texts[found["name"]] = found[suffix]


def _split_name(path: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and the rest in lower case: WebDataset's key and ending."""
    folder, slash, base = path.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _read_text(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise RecordError(f"{where}: {member.name} has {member.size:,} bytes, expected a label of at most 1 MiB")
    file = tar.extractfile(member)
    assert file is not None
    try:
        text = file.read().decode()
    except UnicodeDecodeError:
        raise RecordError(f"{where}: {member.name} is not UTF-8 text, expected a label") from None
    # In one line, which is a line of the index.
    return json.dumps(json.loads(text)) if member.name.endswith(".json") and _is_json(text) else text.strip()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@contextmanager
def _open_tar(storage: Storage, name: str, num_bytes: int) -> Iterator[tarfile.TarFile]:
    """Local: seeking from header to header; elsewhere in one stream, as each header would be a request."""
    if storage.requests_at_once == 1:
        with tarfile.open(fileobj=_SeekableFile(storage.open_reader(name)), mode="r:") as tar:
            yield tar
    else:
        with storage.stream(name) as file, tarfile.open(fileobj=_plain(file), mode="r|") as tar:
            yield tar


def _plain(file: BinaryIO) -> Any:
    return file


class _SeekableFile(RawIOBase):
    """A reader as the file that ``tarfile`` wants."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """So many bytes from where the file is."""
        left = self._reader.num_bytes - self._position
        content = self._reader.read(self._position, max(min(size, left) if size >= 0 else left, 0))
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """To a byte."""
        assert whence == os.SEEK_SET
        self._position = offset
        return offset

    def tell(self) -> int:
        """Where the file is."""
        return self._position
