"""Which records make which batch of an epoch: a function of (seed, epoch, rank), known before anything is read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from teachonce.errors import ConfigError
from teachonce.rng import generator


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (record index, epoch): a permutation by (seed, epoch), split exactly over ranks.

    Every record occurs once an epoch over all ranks together, and every rank makes the same number of steps. The
    batches of an epoch have one size, give or take one record, and at most ``batch_size`` a rank (more only where a
    rank would have no record): no small last batch, whose statistics would do harm, and nothing left out.
    ``drop_last`` makes batches of ``batch_size`` exactly, without the records of an incomplete last one (others each
    epoch), unless there is no other batch.

    ``paired`` (mixup of type 1) puts as many partners behind the records of a batch, row i and row B + i a pair: a
    second permutation, so that every record occurs twice an epoch, in as many steps. An epoch e then counts as the two
    epochs 2 e (the records) and 2 e + 1 (their partners), so that a record's two views differ.

    ``first_step`` goes on in the middle of an epoch: the batches before it are left out, and nothing is read for them.
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
        first_step: int = 0,
    ) -> None:
        if num_records < world_size:
            raise ConfigError(f"{num_records} records for {world_size} devices: each needs at least one record")
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.paired = paired
        self.first_step = first_step

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on, from its beginning."""
        self.epoch = epoch
        self.first_step = 0

    def __len__(self) -> int:
        return max(self.num_steps - self.first_step, 0)

    @property
    def num_steps(self) -> int:
        """Batches of a whole epoch."""
        step_records = self.batch_size * self.world_size
        if self.drop_last:
            return max(1, self.num_records // step_records)
        return min(-(-self.num_records // step_records), self.num_records // self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.num_records)
        if self.shuffle:
            order = generator(self.seed, "order", self.epoch).permutation(self.num_records)
        partners = generator(self.seed, "partners", self.epoch).permutation(self.num_records) if self.paired else None
        num_steps = self.num_steps
        end = self.num_records
        if self.drop_last:
            end = min(end, num_steps * self.batch_size * self.world_size)
        for step in range(self.first_step, num_steps):
            first, last = step * end // num_steps, (step + 1) * end // num_steps
            mine = slice(first + self.rank, last, self.world_size)
            if partners is None:
                yield [(index, self.epoch) for index in order[mine].tolist()]
            else:
                records = [(index, 2 * self.epoch) for index in order[mine].tolist()]
                yield records + [(index, 2 * self.epoch + 1) for index in partners[mine].tolist()]
