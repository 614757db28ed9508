"""The shards of a store that a process has open: memory maps, of which a process may have only so many.

Linux allows a process 65,530 maps (vm.max_map_count). A shard takes one for its records and one for each of the
``KEPT_VIEWS`` files whose views were read last, all views of a file together, so at most three. The shards that were
used last stay open, ``MAX_OPEN_SHARDS`` of them in all stores of a process together; one that is read again later is
opened again, in half a millisecond. Besides the pages, which the system takes back when it needs them, an open shard
costs about 12 KB (ten views a file), so all together 200 MB at most.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray

from teachonce.store.contents import StoreFile
from teachonce.store.plan import Group
from teachonce.store.tables import ShardRecords

KEPT_VIEWS = 2
"""Views of a shard whose columns are kept, and files: as many as one batch reads."""
MAX_OPEN_SHARDS = 16_384
"""Of all stores of a process: three quarters of the maps that Linux allows."""

Columns = Mapping[str, NDArray[Any]]


class OpenShard:
    """What is mapped of a shard. Threads that read it at once may both open a file: either is good."""

    def __init__(self) -> None:
        self.records: ShardRecords | None = None
        self._files: tuple[tuple[Group, StoreFile], ...] = ()
        self._columns: tuple[tuple[int, dict[str, NDArray[Any]]], ...] = ()

    def columns(self, view: int) -> dict[str, NDArray[Any]] | None:
        """Those of a view, where they are kept."""
        return next((columns for kept, columns in self._columns if kept == view), None)

    def file(self, group: Group) -> StoreFile | None:
        """The file of a group of views, where it is open."""
        return next((file for kept, file in self._files if kept == group), None)

    def keep(self, group: Group, file: StoreFile, view: int, columns: dict[str, NDArray[Any]]) -> None:
        """Keep the columns of a view and its file, and the ones of before; older ones are closed."""
        # Columns that are kept keep their file: so both are cut by the same rule.
        others = [item for item in self._columns if item[0] != view]
        self._columns = ((view, columns), *others)[:KEPT_VIEWS]
        files = [item for item in self._files if item[0] != group]
        kept = [item for item in files if any(item[0][0] <= number <= item[0][1] for number, _ in self._columns)]
        self._files = ((group, file), *kept)[:KEPT_VIEWS]


class OpenShards:
    """The open shards of one store, those that were used last; safe to use from several threads."""

    _all: ClassVar[weakref.WeakSet[OpenShards]] = weakref.WeakSet()
    _all_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._shards: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        with self._all_lock:
            self._all.add(self)

    def __len__(self) -> int:
        return len(self._shards)

    def get(self, shard: int) -> OpenShard:
        """What is open of a shard."""
        with self._lock:
            found = self._shards.get(shard)
            if found is None:
                found = self._shards[shard] = OpenShard()
            self._shards.move_to_end(shard)
            limit = max(1, MAX_OPEN_SHARDS // max(1, len(self._all)))
            while len(self._shards) > limit:
                self._shards.popitem(last=False)
            return found
