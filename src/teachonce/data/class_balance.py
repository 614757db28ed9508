"""Classes of unequal size: weights that make up for it, and an order that draws every class equally often.

N records, C classes that have any, n_c records of class c. Both make of the mean over records, in which a class counts
by its size, the mean over classes of the mean over their records:

    weights   a record of class c counts w_c = N / (C n_c); their mean over all records is 1
    draws     an epoch is N draws, N / C of each class; a record of class c is drawn N / (C n_c) times on the average

For plain sums of losses the two have the same expectation: a weight of 10 and ten times the draws. They differ in what
a step is: weights make rare, large gradients; draws repeat the records of small classes, each time in another view, and
leave out some of large classes in an epoch. Cui et al. 2019, arXiv:1901.05555, section 2, has both; its "effective
number" between them and none at all is deliberately not here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from teachonce.rng import generator


def balanced_weights(classes: NDArray[np.integer], num_classes: int) -> NDArray[np.float32]:
    """The weight [num_classes] of each class, by the class of each record [N]; 0 where there is none.

    Numbers outside of 0..num_classes - 1 do not count: who reads such a record refuses it.
    """
    known = classes[(classes >= 0) & (classes < num_classes)]
    counts = np.bincount(known, minlength=num_classes)
    weights = np.zeros(num_classes)
    is_there = counts > 0
    weights[is_there] = len(known) / (is_there.sum() * counts[is_there])
    return weights.astype(np.float32)


class BalancedDraws:
    """The draws of an epoch, by the class of each record [N]: as many as records, of each class equally many.

    The records of a class are gone through in rounds, each in another order, which epochs continue: no record is drawn
    once more before all others of its class have been. A record's draw in round r sees its view of epoch r, so its
    draws differ, and of V stored views it goes through all, one after the other.
    """

    def __init__(self, classes: NDArray[np.integer]) -> None:
        _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        self._num_classes, self._num_records = len(counts), len(classes)
        self._members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
        # Rounds that are drawn by one generator: about as many draws as an epoch has of the class.
        self._rounds = np.maximum(1, len(classes) // len(counts) // counts).tolist()

    def draw(self, seed: int, purpose: str, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(record, round) of each draw [N] of an epoch, in their order; no pair occurs twice, in any epoch.

        A function of its arguments: an order of another ``purpose`` (of partners) is another one.
        """
        # Each epoch other classes have the draw that is left over, in turn.
        turns = generator(seed, purpose, "classes").permutation(self._num_classes)
        records, rounds = [], []
        for number, turn in enumerate(turns.tolist()):
            start, stop = (self._count_before(turn, end) for end in (epoch, epoch + 1))
            for part in self._take(number, start, stop, seed, purpose):
                records.append(part[0])
                rounds.append(part[1])
        order = generator(seed, purpose, epoch).permutation(self._num_records)
        return np.concatenate(records)[order], np.concatenate(rounds)[order]

    def _count_before(self, turn: int, epoch: int) -> int:
        """Draws of the class whose turn it is at place ``turn``, in all epochs before."""
        least, rest = divmod(self._num_records, self._num_classes)
        return epoch * least + max(0, -(-(epoch * rest - turn) // self._num_classes))

    def _take(
        self, number: int, start: int, stop: int, seed: int, purpose: str
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The draws from ``start`` to ``stop`` of all that a class has, in all epochs."""
        members, num_rounds = self._members[number], self._rounds[number]
        size = num_rounds * len(members)
        for block in range(start // size, -(-stop // size)):
            rng = generator(seed, purpose, "class", number, block)
            drawn = rng.permuted(np.tile(members, (num_rounds, 1)), axis=1).ravel()
            rounds = block * num_rounds + np.arange(size) // len(members)
            part = slice(max(0, start - block * size), stop - block * size)
            yield drawn[part], rounds[part]
