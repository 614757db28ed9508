"""The weights of the best epoch, in a file that is always of the curve: what a kill takes back, it takes back here too.

A better epoch's weights are written before the checkpoint that counts the epoch. A training that is killed in between
goes on from the checkpoint before, repeats the epoch, and may come to another result: on a GPU sums are not taken in
one order. So the weights that the last checkpoint knows are kept until the next one. A file that a user has removed is
no error: there is none then until an epoch is better.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import xxhash

from teachonce.runs.run import BEST_WEIGHTS, KEPT_BEST_WEIGHTS
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from teachonce.terminal import print_note

_BLOCK_BYTES = 1 << 20


class BestWeights:
    """The file in a run; only the first process of a training writes it."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._hash: str | None = None
        """Of the file, where this process wrote it or a checkpoint says so."""
        self._checkpointed: str | None = None
        """Of the file that the last checkpoint knows."""

    def put(self, content: bytes) -> None:
        """The weights of an epoch that is better than those before."""
        storage = open_storage(self._run)
        if self._hash is not None and self._hash == self._checkpointed and storage.has(BEST_WEIGHTS):
            _copy(storage, BEST_WEIGHTS, KEPT_BEST_WEIGHTS)
        with storage.put(BEST_WEIGHTS) as file:
            file.write(content)
        self._hash = xxhash.xxh3_128_hexdigest(content)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, which is about to be written."""
        self._checkpointed = self._hash
        return {"hash": self._hash}

    def resume(self, state: dict[str, Any], *, is_first: bool) -> None:
        """Go on from a checkpoint: the file is made what it was then, or removed where that is not there any more."""
        self._hash = self._checkpointed = state["hash"]
        if not is_first:
            return
        storage = open_storage(self._run)
        if _hash(storage, BEST_WEIGHTS) != self._hash:
            if self._hash is not None and _hash(storage, KEPT_BEST_WEIGHTS) == self._hash:
                _copy(storage, KEPT_BEST_WEIGHTS, BEST_WEIGHTS)
            else:
                self._forget(storage)
        self.finish()

    def finish(self) -> None:
        """No checkpoint that is older than the file is left."""
        storage = open_storage(self._run)
        if storage.has(KEPT_BEST_WEIGHTS):
            storage.delete(KEPT_BEST_WEIGHTS)

    def _forget(self, storage: Storage) -> None:
        """Have no file, as there is none that is of the curve."""
        if self._hash is not None:
            what = "missing; the next better epoch's are kept"
            if storage.has(BEST_WEIGHTS):
                what = "of an epoch that is repeated now; removed"
            print_note(f"{self._run / BEST_WEIGHTS}: {what}")
        storage.delete(BEST_WEIGHTS)
        self._hash = self._checkpointed = None


def _hash(storage: Storage, name: str) -> str | None:
    """In blocks: weights may be larger than what is read as a whole; None where there is no such file."""
    if not storage.has(name):
        return None
    hasher = xxhash.xxh3_128()
    with storage.stream(name) as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def _copy(storage: Storage, source: str, target: str) -> None:
    with storage.stream(source) as content, storage.put(target) as file:
        shutil.copyfileobj(content, file, _BLOCK_BYTES)
