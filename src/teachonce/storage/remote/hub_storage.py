"""Data sets of the Hugging Face hub as a storage: downloaded once by huggingface_hub, then read like a local folder.

``hf://datasets/OWNER/NAME[@REVISION][/FOLDER]``, as huggingface_hub's own file system writes it. What is
downloaded stays in that library's cache (``HF_HOME``), and its settings hold here too: ``HF_TOKEN``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars, logging

from teachonce.errors import ConfigError, TeachonceError
from teachonce.storage.address import Address
from teachonce.storage.local import LocalStorage

_NAME = re.compile(r"(?P<name>[^@/]+/[^@/]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<folder>[^@]+))?")
_PARQUET = "*.parquet"


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


@dataclass(frozen=True)
class HubStorage(LocalStorage):
    """The files of a data set as they were downloaded; nothing is written there."""

    address: Address = field(kw_only=True)

    def describe(self, name: str = "") -> str:
        """The address, as it was given."""
        return str(self.address / name)

    def is_writable(self) -> bool:
        """No."""
        return False

    def put(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Refused."""
        raise self._refused(name)

    put_if_absent = put

    def delete(self, name: str) -> None:
        """Refused."""
        raise self._refused(name)

    def lock(self, name: str, doing: str) -> NoReturn:
        """Refused: it would be a file."""
        raise self._refused(name)

    def _refused(self, name: str) -> ConfigError:
        return ConfigError(f"{self.describe(name)}: the hub is read-only; write to a local path or a bucket")


def open_hub(address: Address, raises: type[TeachonceError]) -> HubStorage:
    """The storage of a data set on the hub, which is downloaded if it is not in the cache.

    Its Parquet alone where it has any (many hold the same images twice), else all its files. A process sees one commit
    from its beginning to its end.

    Raises ConfigError for what is no address of a data set, and ``raises`` where it cannot be downloaded.
    """
    data = parse_hub_address(address)
    try:
        root = _download(data)
    except Exception as error:
        # Of any class: what its HTTP client raises is no part of the library's interface.
        reason = " ".join(str(error).split())
        raise raises(
            f"{address}: cannot be downloaded: {reason}; check the name, the network and, for a private or gated data "
            "set, HF_TOKEN"
        ) from error
    return HubStorage(root, raises, address=address)


@lru_cache
def _download(data: HubData) -> Path:
    """The folder that holds the data; of what a folder above it brought, nothing is asked for again."""
    above = data.folder.rpartition("/")[0] if data.folder else None
    while above is not None:
        if (root := _roots.get(data._replace(folder=above))) is not None:
            return root / data.folder.removeprefix(above).lstrip("/")
        above = above.rpartition("/")[0] if above else None
    logging.set_verbosity_error()  # what it says besides is in the error, or of no consequence
    if not sys.stderr.isatty():
        disable_progress_bars()
    root = _fetch(data, _PARQUET)
    if next(root.rglob(_PARQUET), None) is None:
        root = _fetch(data, "*")
    _roots[data] = root
    return root


_roots: dict[HubData, Path] = {}
_commits: dict[tuple[str, str | None], str] = {}


def _fetch(data: HubData, pattern: str) -> Path:
    """Download the files of a pattern, of the commit that this process saw first."""
    asked = (data.name, data.revision)
    snapshot = snapshot_download(
        data.name,
        repo_type="dataset",
        revision=_commits.get(asked, data.revision),
        allow_patterns=[f"{data.folder}/{pattern}" if data.folder else pattern],
    )
    _commits[asked] = Path(snapshot).name
    return Path(snapshot, data.folder)
