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

import numpy as np
from numpy.typing import NDArray


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

    Within a class no record is drawn once more before all others have been drawn as often. The k-th draw of a record in
    an epoch sees the view of an epoch of its own (``draw``), so that its draws differ as those of further epochs would,
    and of stored views it goes through all.
    """

    def __init__(self, classes: NDArray[np.integer]) -> None:
        found, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        self._num_classes, self._num_records = len(found), len(classes)
        self._members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
        least, rest = divmod(len(classes), len(found))
        # How often a record is drawn in an epoch at most.
        self._most = -(-(least + (rest > 0)) // counts)

    def draw(self, rng: np.random.Generator, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(record, epoch of its view) of each draw [N] of an epoch, in their order; no pair occurs twice, in any epoch.

        With m_c draws at most, the k-th draw (from 0) of a record in epoch e has the view of epoch e m_c + k.
        """
        least, rest = divmod(self._num_records, self._num_classes)
        # Each epoch other classes have the draw that is left over.
        quotas = np.full(self._num_classes, least)
        quotas[rng.permutation(self._num_classes)[:rest]] += 1
        records, epochs = [], []
        for members, quota, most in zip(self._members, quotas.tolist(), self._most.tolist(), strict=True):
            rounds, left = divmod(quota, len(members))
            records += [members] * rounds + [rng.permutation(members)[:left]]
            epochs.append(np.repeat(np.arange(rounds + 1), [*[len(members)] * rounds, left]) + epoch * most)
        order = rng.permutation(self._num_records)
        return np.concatenate(records)[order], np.concatenate(epochs)[order]
