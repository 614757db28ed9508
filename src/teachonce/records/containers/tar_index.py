"""Where the images of a WebDataset tar lie: NAME.tar.index.json beside it, so that a tar is read by row, not unpacked.

    {"format_version": 5, "num_bytes": 30720, "version": "1760000000000000000", "check": "...",
     "samples": [["n01/0001", "jpg", 1536, 20480, "7", null], ...], "left_out": [], "ignored": [], "links": [],
     "has_txt": false}

A sample is the members of one name up to the first dot of its last part: its image (jpg, png, webp, ...), with offset
and size, and the texts of its cls and its json. WebDataset wants them side by side; labels that lie elsewhere in the
tar, as after ``tar cf x.tar *.jpg *.cls``, are taken too, where the sample has none beside it. Of several images that
whose ending has no dot is taken: 1.jpg, wherever 1.mask.png is. A link, as tar writes it for a file that it has
already, stands for the member that it leads to. What is no sample is in the index too, as it is said at every opening.

The index is made by reading the tar once, or only its headers where it is local, and kept beside it, or in the cache
folder where the tar's is read-only. ``version`` is the tar's time of modification, or what an object store calls its
version, and ``check`` a hash of the first and the last image's header: the index of a tar that was replaced or copied
is made again, as its labels may be others at the same size.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import xxhash

from teachonce.errors import RecordError, TeachonceError
from teachonce.records.image_listing import IMAGE_SUFFIXES, check_image_name, count_endings
from teachonce.storage.cache_folder import cache_folder
from teachonce.storage.files import atomic_write, locate
from teachonce.storage.storage import FileStatus, Reader, Storage
from teachonce.terminal import plural, visible

INDEX_SUFFIX = ".index.json"
FORMAT_VERSION = 5
HEADER_BYTES = 512
MAX_TEXT_BYTES = 1 << 20
"""Of a label's file: more is no label."""
_LABEL_SUFFIXES = ("cls", "json")


class TarSample(NamedTuple):
    """One image of a tar: its name without the ending, and where its bytes are."""

    name: str
    suffix: str
    offset: int
    num_bytes: int
    cls: str | None
    json: str | None


class TarIndex(msgspec.Struct, forbid_unknown_fields=True):
    """What a tar holds, and what of it is no sample; names are those of members."""

    format_version: int
    num_bytes: int
    version: str
    check: str
    samples: list[TarSample]
    left_out: list[str]
    """Images that are no sample's."""
    ignored: list[str]
    """A file of each sample without an image: of an ending that is not read, where it has one."""
    links: list[str]
    """Images and labels that are links to what the tar does not hold before them."""
    has_txt: bool
    """Whether there are texts that are not read."""


def load_tar_index(path: Path, status: FileStatus) -> TarIndex:
    """The index of a tar; raises RecordError where it is none, was cut short or holds no image."""
    storage, name = locate(path, RecordError)
    cached = _cached_path(path, status)
    for place in (path.with_name(name + INDEX_SUFFIX), cached):
        found = None if place is None else _read_index(place, storage, name, status)
        if found is not None:
            return found
    members = _scan(storage, name, status)
    index = TarIndex(
        FORMAT_VERSION,
        status.num_bytes,
        _version(status),
        _check(storage, name, members.samples),
        members.samples,
        members.left_out,
        *members.find_no_samples(),
        members.has_txt,
    )
    content = msgspec.json.encode(index)
    if storage.is_writable():
        with suppress(TeachonceError), storage.put(name + INDEX_SUFFIX) as file:
            file.write(content)
            return index
    if cached is not None:
        # Where the cache cannot be written either, the index is only made again.
        with suppress(TeachonceError), atomic_write(cached) as file:
            file.write(content)
    return index


def warn_of_left_out(data: Path, indices: Mapping[str, TarIndex]) -> None:
    """Say what of the tars of a folder is no sample: whenever they are opened, not only when an index is made."""
    left_out = {name: index.left_out for name, index in indices.items() if index.left_out}
    ignored = {name: index.ignored for name, index in indices.items() if index.ignored}
    links = {name: index.links for name, index in indices.items() if index.links}
    if left_out:
        warnings.warn(
            f"{_count(data, left_out, 'image')} left out{_example(left_out)}: what has the same name up to the first "
            "dot is one sample, of which one image is taken; rename them if they are several",
            stacklevel=3,
        )
    if ignored:
        endings = count_endings(name for names in ignored.values() for name in names)
        warnings.warn(
            f"{_count(data, ignored, 'sample')} without an image left out, most with the extension "
            f"{endings}{_example(ignored)}: images have one of {', '.join(sorted(IMAGE_SUFFIXES))}",
            stacklevel=3,
        )
    if links:
        warnings.warn(
            f"{_count(data, links, 'link')} left out{_example(links)}: {_LINK_ADVICE}",
            stacklevel=3,
        )


_LINK_ADVICE = "the tar does not hold what they lead to, or only behind them; make it with tar --dereference"


def _count(data: Path, found: Mapping[str, list[str]], thing: str) -> str:
    where = data / next(iter(found)) if len(found) == 1 else data
    return f"{where}: {plural(sum(map(len, found.values())), thing)}"


def _example(found: Mapping[str, list[str]]) -> str:
    tar, names = next(iter(found.items()))
    return f", such as {names[0]}" + (f" in {tar}" if len(found) > 1 else "")


def _version(status: FileStatus) -> str:
    return f"{status.modified_ns}{status.version}"


def _cached_path(path: Path, status: FileStatus) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    identity = f"{path}\0{status.num_bytes}\0{_version(status)}"
    return folder / f"{xxhash.xxh3_128_hexdigest(os.fsencode(identity))}{INDEX_SUFFIX}"


def _read_index(place: Path, storage: Storage, name: str, status: FileStatus) -> TarIndex | None:
    """The index in a file, if it is this tar's."""
    there, file = locate(place)
    try:
        if not there.has(file):
            return None
        index = msgspec.json.decode(there.read(file), type=TarIndex)
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


@dataclass
class _Sample:
    """What lies side by side in a tar: the members of one name."""

    key: str
    image: tuple[str, str, int, int] | None = None
    """The name of its member, its ending, and where its bytes are."""
    texts: dict[str, str] = field(default_factory=dict)
    other: str = ""
    """The first member that is neither image nor text."""
    first: str = ""
    """The first member of all."""


class _Members:
    """The members of a tar that were seen so far, and the samples that they are."""

    def __init__(self, where: str) -> None:
        self.samples: list[TarSample] = []
        self.left_out: list[str] = []
        self.has_txt = False
        self._where = where
        self._current = _Sample("")
        self._apart: dict[str, dict[str, str]] = {suffix: {} for suffix in _LABEL_SUFFIXES}
        self._without_image: dict[str, str] = {}
        self._links: list[str] = []
        self._files: dict[str, tuple[int, int, str | None]] = {}
        """What a link may lead to, by its name: offset, size, and the text where it is one of a label."""

    @property
    def last(self) -> str:
        """The name of the last sample."""
        return self._current.key

    def add(self, name: str, key: str, suffix: str, file: tuple[int, int, str | None]) -> None:
        """Add a file, or what a link leads to."""
        offset, num_bytes, text = file
        self._files[_plain_name(name)] = file
        if key != self._current.key:
            self.end_sample()
            self._current = _Sample(key, first=name)
        current = self._current
        if _is_image(suffix):
            check_image_name(self._where, name, ": ")
            before = current.image
            if before is None or ("." in before[1] and "." not in suffix):
                current.image = name, suffix, offset, num_bytes
            left = before if current.image is not before else (name,)
            if left is not None:
                self.left_out.append(left[0])
        elif suffix in _LABEL_SUFFIXES:
            assert text is not None
            current.texts[suffix] = text
        elif suffix == "txt":
            self.has_txt = True
        else:
            current.other = current.other or name

    def add_link(self, member: tarfile.TarInfo, key: str, suffix: str) -> None:
        """Add what a link leads to, where that is there and of use."""
        # A hard link has the name of a member, a symbolic one leads on from its own folder.
        folder = posixpath.dirname(member.name) if member.issym() else ""
        target = self._files.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        is_label = suffix in _LABEL_SUFFIXES
        if target is not None and not (is_label and target[2] is None):
            self.add(member.name, key, suffix, target)
        elif is_label or _is_image(suffix):
            self._links.append(member.name)

    def end_sample(self) -> None:
        """Add what lay side by side: a sample, or, by ending and name, texts whose image is elsewhere, or nowhere.

        Only the latter are looked up by name in the end: a tar that is sorted takes no more memory for them.
        """
        found = self._current
        if found.image is not None:
            _, suffix, offset, num_bytes = found.image
            self.samples.append(
                TarSample(found.key, suffix, offset, num_bytes, found.texts.get("cls"), found.texts.get("json"))
            )
        elif found.first:
            for suffix, text in found.texts.items():
                self._apart[suffix][found.key] = text
            self._without_image[found.key] = found.other or self._without_image.get(found.key) or found.first

    def join_apart(self) -> None:
        """Give samples the texts that lie elsewhere."""
        if any(self._apart.values()):
            cls, fields = self._apart["cls"], self._apart["json"]
            for row, sample in enumerate(self.samples):
                self.samples[row] = sample._replace(
                    cls=sample.cls or cls.get(sample.name), json=sample.json or fields.get(sample.name)
                )

    def find_no_samples(self) -> tuple[list[str], list[str]]:
        """A file of each sample without an image, and the links that lead nowhere; names as they can be written."""
        if self._without_image:
            known = {sample.name for sample in self.samples}
            known |= {_split_name(name)[0] for name in self._links}
            self._without_image = {key: name for key, name in self._without_image.items() if key not in known}
        return [visible(name) for name in self._without_image.values()], [visible(name) for name in self._links]


def _scan(storage: Storage, name: str, status: FileStatus) -> _Members:
    where = storage.describe(name)
    members = _Members(where)
    try:
        with _open_tar(storage, name, status.num_bytes) as tar:
            for member in tar:
                key, suffix = _split_name(member.name)
                if not suffix or member.name.rpartition("/")[2].startswith((".", "__")):
                    continue
                if member.islnk() or member.issym():
                    members.add_link(member, key, suffix)
                if not member.isfile():
                    continue
                if member.offset_data + member.size > status.num_bytes:
                    raise RecordError(
                        f"{where}: {member.name} ends behind the file's end: it was cut short; copy it again"
                    )
                text = _read_text(tar, member, where) if suffix in _LABEL_SUFFIXES else None
                members.add(member.name, key, suffix, (member.offset_data, member.size, text))
            _check_end(storage, name, tar.offset, members.last)
    except (tarfile.TarError, EOFError) as error:
        raise RecordError(f"{where}: is not a tar, or is damaged: {error}; copy it again") from error
    members.end_sample()
    if not members.samples:
        _, links = members.find_no_samples()
        has = f" but {plural(len(links), 'link')}, such as {links[0]}: {_LINK_ADVICE}" if links else ""
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise RecordError(f"{where}: holds no image{has or f' ({known}), expected NAME.jpg and NAME.cls'}")
    members.join_apart()
    return members


def _check_end(storage: Storage, name: str, offset: int, last: str) -> None:
    """Raise RecordError where no block of zeros is behind the last member, as at the end of every tar.

    The library reads up to what it does not understand, and says nothing.
    """
    block = storage.open_reader(name).read(offset, HEADER_BYTES)
    if len(block) < HEADER_BYTES or any(block):
        where = storage.describe(name)
        found = "the file ends" if not block else f"byte {offset} is no header of a member, and not the end of a tar"
        raise RecordError(f"{where}: behind {last} {found}: it was cut short, or is damaged; copy it again")


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES


def _plain_name(path: str) -> str:
    return path.removeprefix("./")


def _split_name(path: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and the rest in lower case: WebDataset's key and ending."""
    folder, slash, base = _plain_name(path).rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _read_text(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise RecordError(f"{where}: {member.name} has {member.size:,} bytes, expected a label of at most 1 MiB")
    file = tar.extractfile(member)
    assert file is not None
    try:
        text = file.read().decode("utf-8-sig")  # a byte order mark, as some editors write it, is no part of a label
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
