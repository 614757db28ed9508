"""Opening a storage by its location, and what is done with one file there: written whole, read as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from teachonce.errors import ConfigError, TeachonceError
from teachonce.storage.local import LocalStorage
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import parse_json

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
"""The beginning of an address; a Path has one slash of the two. A drive's single letter is none."""


def open_storage(location: Path | str, raises: type[TeachonceError] = TeachonceError) -> Storage:
    """The storage at a location: a local folder, which need not exist. ``raises`` is the class of its errors.

    Raises ConfigError for an address such as s3://BUCKET: as a path it would be a folder called "s3:".
    """
    if match := _ADDRESS.match(str(location)):
        raise ConfigError(
            f"{match[1]}://{str(location)[match.end() :].lstrip('/')}: addresses are not supported yet, expected a "
            "local path; copy the files to a local folder, or mount the bucket"
        )
    return LocalStorage(Path(location), raises)


def locate(path: Path, raises: type[TeachonceError] = TeachonceError) -> tuple[Storage, str]:
    """The storage that a single file lies in, and its name there."""
    return open_storage(path.parent, raises), path.name


def exists(path: Path) -> bool:
    """Whether there is a file or a folder of this name."""
    storage, name = locate(path)
    return storage.has(name) or storage.is_folder(name)


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """``Storage.put`` for a single file; without ``overwrite``: ``put_if_absent``."""
    storage, name = locate(path)
    with storage.put(name) if overwrite else storage.put_if_absent(name) as file:
        yield file


def write_json(path: Path, value: Any, *, overwrite: bool = True) -> None:
    """Write ``value`` as indented JSON, atomically, with a newline at the end; ``overwrite`` as in ``atomic_write``."""
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises TeachonceError with the path and the position when it is missing or does not parse."""
    storage, name = locate(path)
    try:
        return parse_json(storage.read(name))
    except ValueError as error:
        raise TeachonceError(f"{path}: is not JSON: {error}") from error
