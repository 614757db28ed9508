"""Local copies of objects, for libraries that open files themselves: weights, models, checkpoints.

They are in the user's cache folder under the hash of their address, size and time, so that processes share them and a
replaced object is copied again. A copy is a file of ``LocalStorage``: complete or absent. For a user without a home
they are in a folder of TMPDIR that nobody else can write to: weights are taken from there.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import xxhash

from teachonce.errors import TeachonceError
from teachonce.storage.cache_folder import cache_folder
from teachonce.storage.local import LocalStorage
from teachonce.storage.storage import FileStatus, Storage


def local_copy(storage: Storage, name: str) -> Path:
    """The path of a copy of a file, or of all files below a folder."""
    if storage.has(name):
        folder = _folder(storage.describe(name), [("", storage.status(name))])
        return _copy(storage, name, folder, name.rpartition("/")[2] or storage.describe().rpartition("/")[2])
    names = sorted(storage.walk(name))
    below = [f"{name}/{item}" if name else item for item in names]
    folder = _folder(storage.describe(name), [(item, storage.status(item)) for item in below])
    for item, path in zip(names, below, strict=True):
        _copy(storage, path, folder, item)
    return folder


def _folder(address: str, files: list[tuple[str, FileStatus]]) -> Path:
    identity = "\n".join(
        [address, *(f"{name} {found.num_bytes} {found.modified_ns} {found.version}" for name, found in files)]
    )
    return (cache_folder() or _private_folder()) / "copies" / xxhash.xxh3_128_hexdigest(identity.encode())


def _private_folder() -> Path:
    """A folder of TMPDIR that is this user's alone.

    Raises TeachonceError where another user has made it, or may write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"teachonce-copies-{os.getuid()}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise TeachonceError(
            f"{folder}: cannot be created: {error.strerror}; set TMPDIR or XDG_CACHE_HOME to another folder"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise TeachonceError(f"{folder}: others can write to it; remove it, or set XDG_CACHE_HOME to a folder of yours")
    return folder


def _copy(storage: Storage, name: str, folder: Path, local_name: str) -> Path:
    local = LocalStorage(folder, storage.raises)
    if not local.has(local_name):
        with storage.stream(name) as source, local.put_if_absent(local_name) as target:
            shutil.copyfileobj(source, target, 8 << 20)
    return folder / local_name
