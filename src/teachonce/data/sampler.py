"""Which records make which batch of an epoch: a function of (seed, epoch, rank), known before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from teachonce.data.class_balance import BalancedDraws
from teachonce.data.shard_window import windowed_order
from teachonce.errors import ConfigError
from teachonce.rng import generator
from teachonce.terminal import plural

_Order = Callable[[slice], list[tuple[int, int]]]
"""The items of a part of an epoch's order."""
_Orders = list[_Order]
"""Of the records of an epoch, and of their partners where they have any."""


class EpochBatches(Sequence[list[tuple[int, int]]]):
    """Batches of (record index, epoch): a permutation by (seed, epoch), split exactly over ranks.

    Every record occurs once an epoch over all ranks together, and every rank makes the same number of steps. The
    batches of an epoch have one size, give or take one record, and at most ``batch_size`` a rank (more only where a
    rank would have no record): no small last batch, whose statistics would do harm, and nothing left out.
    ``drop_last`` makes batches of ``batch_size`` exactly, without the records of an incomplete last one (others each
    epoch), unless there is no other batch.

    ``paired`` (mixup of type 1) puts as many partners behind the records of a batch, row i and row B + i a pair: a
    second permutation, so that every record occurs twice an epoch, in as many steps. An epoch e then counts as the two
    epochs 2 e (the records) and 2 e + 1 (their partners), so that a record's two views differ.

    ``accumulate`` N makes N batches, one after another, of what one update is made of: the records of each update are
    those of batches N times as large, and every update has N batches. ``loss_weight`` weighs their losses so that the
    mean over N batches, and over ranks, is the mean over the update's records.

    It is one epoch until ``set_epoch`` says which: iterated again without it, it has the same order and views again.

    ``first_step`` resumes in the middle of an epoch: the batches before it are skipped without reading their records.

    ``shuffle_shards`` N permutes the shards, whose numbers of records are ``shard_sizes``, and shuffles records in a
    window of N of them (``shard_window``) instead of all at once, for data that is read well only shard by shard. What
    is said above holds all the same; a batch over all ranks touches N shards, and one more for each shard's worth of
    records that it holds or begins. N of all shards or more is the order without a window. Every rank reads from the
    same shards.

    ``classes`` [num_records] draws every class equally often instead of every record once (``class_balance``); what is
    said above of records is said of draws then. A record that is drawn again counts as of another epoch, so that its
    views differ.

    A sequence too: ``batches[step]`` are the records of one batch, for what asks for batches by number.

    Raises ConfigError for fewer records than the batches of one update, for a number that cannot be meant (a rank
    outside the world, a batch of no records), and for an invalid window.
    """

    def __init__(
        self,
        num_records: int,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        paired: bool = False,
        accumulate: int = 1,
        first_step: int = 0,
        shuffle_shards: int | None = None,
        shard_sizes: Sequence[int] = (),
        classes: NDArray[np.integer] | None = None,
    ) -> None:
        _check_counts(batch_size=batch_size, world_size=world_size, accumulate=accumulate)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank}: expected 0 to {world_size - 1}, of world_size {world_size}")
        if first_step < 0 or epoch < 0:
            name, value = ("first_step", first_step) if first_step < 0 else ("epoch", epoch)
            raise ConfigError(f"{name} {value}: expected 0 or more")
        if num_records < world_size * accumulate:
            times = f", {accumulate} batches an update" if accumulate > 1 else ""
            found = f"{plural(num_records, 'record')} for {plural(world_size, 'device')}{times}"
            raise ConfigError(f"{found}: each needs at least one record")
        if shuffle_shards is not None:
            _check_window(shuffle_shards, shard_sizes, num_records, shuffle=shuffle)
        if classes is not None:
            _check_classes(classes, num_records, shuffle=shuffle, shuffle_shards=shuffle_shards)
        self._balanced = None if classes is None else BalancedDraws(classes)
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.paired = paired
        self.accumulate = accumulate
        self.first_step = first_step
        self.shuffle_shards = shuffle_shards
        self._shard_sizes = np.array([size for size in shard_sizes if size], np.int64)
        self._orders: tuple[int, _Orders] | None = None
        """Of the epoch that ``batches[step]`` was last asked of."""

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on, from its beginning."""
        self.epoch = epoch
        self.first_step = 0

    def __getstate__(self) -> dict[str, object]:
        # The order is functions, which do not pickle, and is drawn again where it is asked for.
        return {**vars(self), "_orders": None}

    def __len__(self) -> int:
        return max(self.num_steps - self.first_step, 0)

    @property
    def num_steps(self) -> int:
        """Batches of a full epoch."""
        return self.num_updates * self.accumulate

    @property
    def num_updates(self) -> int:
        """Updates of a full epoch: its batches, unless several are accumulated."""
        parts = self.world_size * self.accumulate
        update_records = self.batch_size * parts
        if self.drop_last:
            return max(1, self.num_records // update_records)
        return min(-(-self.num_records // update_records), self.num_records // parts)

    def loss_weight(self, step: int) -> float:
        """What the mean loss of this rank's batch counts, so that the mean over batches and ranks is the update's."""
        first, last = self._bounds(step)
        mine = len(range(last)[self._part(step)])
        return mine * self.world_size * self.accumulate / (last - first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders = self._draw_orders()
        for step in range(self.first_step, self.num_steps):
            yield self._items(step, orders)

    @overload
    def __getitem__(self, index: int) -> list[tuple[int, int]]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[tuple[int, int]]]: ...

    def __getitem__(self, index: int | slice) -> list[tuple[int, int]] | list[list[tuple[int, int]]]:
        steps = range(self.first_step, self.num_steps)[index]
        drawn = self._orders
        if drawn is None or drawn[0] != self.epoch:
            # Threads that do so at the same time draw the same.
            drawn = self._orders = (self.epoch, self._draw_orders())
        if isinstance(steps, int):
            return self._items(steps, drawn[1])
        return [self._items(step, drawn[1]) for step in steps]

    def _items(self, step: int, orders: _Orders) -> list[tuple[int, int]]:
        mine = self._part(step)
        return [item for items in orders for item in items(mine)]

    def _draw_orders(self) -> _Orders:
        if not self.paired:
            return [self._order("order")]
        # Records and partners count as of two epochs, so that a record's two views differ.
        return [self._order("order", 2, 0), self._order("partners", 2, 1)]

    def _order(self, purpose: str, step: int = 1, offset: int = 0) -> _Order:
        """The items of a part of an order of this epoch, whose views count as those of ``step`` epoch + ``offset``."""
        if self._balanced is not None:
            records, rounds = self._balanced.draw(self.seed, purpose, self.epoch)
            epochs = step * rounds + offset
            return lambda part: list(zip(records[part].tolist(), epochs[part].tolist(), strict=True))
        permuted = self._permute(purpose) if self.shuffle else np.arange(self.num_records)
        epoch = step * self.epoch + offset
        return lambda part: [(index, epoch) for index in permuted[part].tolist()]

    def _bounds(self, step: int) -> tuple[int, int]:
        """The places of the epoch's order that the update of a batch begins and ends at."""
        update, num_updates, end = step // self.accumulate, self.num_updates, self.num_records
        if self.drop_last:
            end = min(end, num_updates * self.batch_size * self.world_size * self.accumulate)
        return update * end // num_updates, (update + 1) * end // num_updates

    def _part(self, step: int) -> slice:
        """This rank's places in the epoch's order: batches of one update are as further ranks."""
        first, last = self._bounds(step)
        part = step % self.accumulate * self.world_size + self.rank
        return slice(first + part, last, self.world_size * self.accumulate)

    def _permute(self, purpose: str) -> NDArray[np.integer]:
        """The records in the order of this epoch; of its two orders the same shards are open at the same time."""
        draws = generator(self.seed, purpose, self.epoch)
        if self.shuffle_shards is None or self.shuffle_shards >= len(self._shard_sizes):
            return draws.permutation(self.num_records)
        layout = generator(self.seed, "shards", self.epoch)
        return windowed_order(self._shard_sizes, self.shuffle_shards, layout=layout, draws=draws)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} {value}: expected at least 1")


def _check_classes(
    classes: NDArray[np.integer], num_records: int, *, shuffle: bool, shuffle_shards: int | None
) -> None:
    if not shuffle:
        raise ConfigError("classes: apply only with shuffle=True")
    if shuffle_shards is not None:
        raise ConfigError(
            f"shuffle_shards {shuffle_shards}: not given together with classes, whose draws are of all shards"
        )
    if len(classes) != num_records:
        raise ConfigError(f"classes: of {len(classes)} records, expected those of the {num_records} records")


def _check_window(shuffle_shards: int, shard_sizes: Sequence[int], num_records: int, *, shuffle: bool) -> None:
    if not shuffle:
        raise ConfigError(f"shuffle_shards {shuffle_shards}: applies only with shuffle=True")
    if shuffle_shards < 1:
        raise ConfigError(f"shuffle_shards {shuffle_shards}: expected at least 1")
    if sum(shard_sizes) != num_records:
        raise ConfigError(
            f"shuffle_shards {shuffle_shards}: shard_sizes of {sum(shard_sizes)} records in {len(shard_sizes)} shards, "
            f"expected those of the {num_records} records"
        )
