"""Data sets of the Hugging Face hub as a storage: listed by the hub, and each file downloaded when it is first read.

``hf://datasets/OWNER/NAME[@REVISION][/FOLDER]``, as huggingface_hub's own file system writes it. What is downloaded
stays in that library's cache (``HF_HOME``), whose settings hold here too: ``HF_TOKEN``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``. What a commit has is kept in our own cache folder, so that without a network a data set is complete
or refused, and never what happens to be there of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import xxhash
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from teachonce.errors import ConfigError, TeachonceError
from teachonce.storage.address import Address, read_only_error
from teachonce.storage.cache_folder import cache_folder
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote.file_tree import list_folders
from teachonce.storage.storage import FileStatus, Listing, Mapped, Reader, Storage

_NAME = re.compile(r"(?P<name>[^@/]+/[^@/]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<folder>.+))?")
_CACHE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class HubData(NamedTuple):
    """A data set on the hub, or a folder of it."""

    name: str
    """OWNER/NAME."""
    revision: str | None
    """Branch, tag or commit; None is the main branch."""
    folder: str
    """"" is all of it."""


def parse_hub_address(address: Address) -> HubData:
    """What an address names; raises ConfigError where it is none of a data set."""
    kind, _, rest = f"{address.bucket}/{address.key}".partition("/")
    match = _NAME.fullmatch(rest)
    if kind != "datasets" or match is None:
        raise ConfigError(
            f"{address}: expected hf://datasets/OWNER/NAME, then @REVISION and /FOLDER if need be; only data sets are "
            "read from the hub"
        )
    revision = match["revision"]
    return HubData(match["name"], revision and revision.replace("%2F", "/"), match["folder"] or "")


class _Commit:
    """What a data set has at one commit."""

    def __init__(self, sha: str, files: dict[str, tuple[int, str]]) -> None:
        self.sha = sha
        self.files = files
        """(size in bytes, hash of the bytes) by name."""
        self.folders = list_folders(files)


_commits: dict[tuple[str, str | None], _Commit] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class HubStorage(Storage):
    """The files of a data set, or of a folder of it; nothing is written there.

    A process, and the workers that it starts, see one commit from beginning to end.
    """

    address: Address
    raises: type[TeachonceError] = TeachonceError
    _data: HubData = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_data", parse_hub_address(self.address))

    def describe(self, name: str = "") -> str:
        """The address, as it was given."""
        return str(self.address / name)

    def list_folder(self, folder: str = "") -> Listing:
        """What the commit has in a folder."""
        found = self._commit().folders.get(self._full(folder))
        if found is None:
            raise self._missing(folder, "listed")
        return Listing(list(found.files), list(found.folders))

    def walk(self, folder: str = "") -> Iterator[str]:
        """What the commit has below a folder."""
        commit, place = self._commit(), self._full(folder)
        if place not in commit.folders:
            raise self._missing(folder, "listed")
        prefix = place and f"{place}/"
        yield from (name[len(prefix) :] for name in commit.files if name.startswith(prefix))

    def statuses(self, folder: str = "") -> dict[str, FileStatus]:
        """What the hub says of the files in a folder."""
        commit, place = self._commit(), self._full(folder)
        names = commit.folders.get(place, Listing([], [])).files
        return {base: _status(*commit.files[f"{place}/{base}" if place else base]) for base in names}

    def status(self, name: str) -> FileStatus:
        """What the hub says of a file."""
        found = self._commit().files.get(self._full(name))
        if found is None:
            raise self._missing(name, "read")
        return _status(*found)

    def has(self, name: str = "") -> bool:
        """Whether the commit has a file of this name."""
        return self._full(name) in self._commit().files

    def is_folder(self, name: str = "") -> bool:
        """Whether the commit has files below this name."""
        return self._full(name) in self._commit().folders

    def is_writable(self) -> bool:
        """It is not."""
        return False

    def read(self, name: str) -> bytes:
        """A file, downloaded if it is not there yet."""
        return self._downloaded(name).read(name)

    def stream(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file, downloaded if it is not there yet."""
        return self._downloaded(name).stream(name)

    def open_reader(self, name: str, *, in_order: bool = False) -> Reader:
        """A file, downloaded if it is not there yet."""
        return self._downloaded(name).open_reader(name, in_order=in_order)

    def map(self, name: str) -> Mapped:
        """A file, downloaded if it is not there yet."""
        return self._downloaded(name).map(name)

    def local_path(self, name: str = "") -> Path:
        """A file, or a folder with all its files, downloaded if it is not there yet."""
        if self.has(name):
            return self._downloaded(name).local_path(name)
        for below in self.walk(name):
            local = self._downloaded(f"{name}/{below}" if name else below)
        return local.local_path(name)

    def put(self, name: str) -> NoReturn:
        """Raises ConfigError."""
        raise read_only_error(self.address / name)

    def put_if_absent(self, name: str) -> NoReturn:
        """Raises ConfigError."""
        self.put(name)

    def delete(self, name: str) -> NoReturn:
        """Raises ConfigError."""
        self.put(name)

    def remove_temporaries(self, folder: str = "") -> None:
        """There are none."""

    def lock(self, name: str, doing: str) -> NoReturn:
        """Raises ConfigError: it would be a file."""
        self.put(name)

    def _full(self, name: str) -> str:
        return "/".join(filter(None, (self._data.folder, name))).strip("/")

    def _missing(self, name: str, verb: str) -> TeachonceError:
        return self.raises(f"{self.describe(name)}: cannot be {verb}: No such file or directory")

    def _commit(self) -> _Commit:
        wanted = self._data[:2]
        with _lock:
            if wanted not in _commits:
                _commits[wanted] = self._look_up(*wanted)
            return _commits[wanted]

    def _look_up(self, name: str, revision: str | None) -> _Commit:
        """What the hub, or without a network the list kept here, says that a data set has.

        The commit is passed on to processes that this one starts, in the environment.
        """
        variable = f"TEACHONCE_HUB_{xxhash.xxh3_64_hexdigest(f'{name}@{revision}'.encode())}".upper()
        kept = _kept_list(name, os.environ.get(variable) or revision)
        found = None if kept is None or variable not in os.environ else _read_list(kept)
        if found is None:
            found = self._ask(name, os.environ.get(variable) or revision, kept)
            for under in {revision, found.sha}:
                _write_list(_kept_list(name, under), found)
        os.environ[variable] = found.sha
        return found

    def _ask(self, name: str, revision: str | None, kept: Path | None) -> _Commit:
        try:
            info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
        except Exception as error:
            # Of any class: what the library's HTTP client raises is no part of its interface. An answer is final.
            found = None if isinstance(error, HfHubHTTPError) or kept is None else _read_list(kept)
            if found is None:
                raise self._failed(self.address, error) from error
            return found
        return _Commit(
            str(info.sha), {item.rfilename: (item.size or 0, item.blob_id or "") for item in info.siblings or ()}
        )

    def _downloaded(self, name: str) -> LocalStorage:
        """The local storage of what is downloaded, which has this file now; its names are the same."""
        full, commit = self._full(name), self._commit()
        if full not in commit.files:
            raise self._missing(name, "read")
        was_quiet = are_progress_bars_disabled()
        try:
            if not sys.stderr.isatty():
                disable_progress_bars()
            path = hf_hub_download(self._data.name, full, repo_type="dataset", revision=commit.sha)
        except Exception as error:
            raise self._failed(self.address / name, error) from error
        finally:
            if not was_quiet:
                enable_progress_bars()
        root = path.removesuffix(full)
        return _Downloaded(Path(root, self._data.folder), self.raises, address=self.address)

    def _failed(self, address: Path, error: Exception) -> TeachonceError:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.errno in _CACHE_ERRORS:
            return self.raises(f"{address}: cannot be kept in HF_HOME: {reason}; set it to a folder with room")
        advice = "check the name, the network and, for a private or gated data set, HF_TOKEN"
        return self.raises(f"{address}: cannot be downloaded: {reason}; {advice}")


@dataclass(frozen=True)
class _Downloaded(LocalStorage):
    """Files in the cache, which messages name as they are on the hub."""

    address: Address = field(kw_only=True)

    def describe(self, name: str = "") -> str:
        return str(self.address / name)


def _status(num_bytes: int, version: str) -> FileStatus:
    return FileStatus(num_bytes, 0, version)


def _kept_list(name: str, revision: str | None) -> Path | None:
    """Where the list of a revision's files is kept; None where there is no cache folder."""
    folder = cache_folder()
    text = f"{os.environ.get('HF_ENDPOINT', '')}\n{name}\n{revision}"
    return None if folder is None else folder / "hub" / f"{xxhash.xxh3_128_hexdigest(text.encode())}.json"


def _write_list(path: Path | None, commit: _Commit) -> None:
    # For a time without a network alone: where it cannot be kept, nothing is lost now.
    with suppress(TeachonceError):
        if path is not None:
            with LocalStorage(path.parent).put(path.name) as file:
                file.write(json.dumps({"commit": commit.sha, "files": commit.files}).encode())


def _read_list(path: Path) -> _Commit | None:
    with suppress(TeachonceError, LookupError, TypeError, ValueError):
        kept = json.loads(LocalStorage(path.parent).read(path.name))
        files = {name: (int(size), str(sha)) for name, (size, sha) in kept["files"].items()}
        return _Commit(str(kept["commit"]), files)
    return None
