"""What a store's logits say in numbers: accuracy, entropy, calibration, agreement over views, suspects.

One pass over the shards, in blocks of records with all their views, so memory does not grow with the store. Of a large
store a sample can be measured, spread evenly over records and views by a fixed seed.

A mixed view (mixup, cutmix) has no one label. Entropy and confidence count it; accuracy, calibration, agreement and
suspects leave it out.

Suspects are records whose label the teacher contradicts. Of confident learning (Northcutt et al. 2021,
arXiv:1911.00068, section 3.2) this takes the ranking, by how far another class is above the given label, here as mean
log-probabilities over a record's views. It estimates no noise rates and has no thresholds, so the list says where to
look first and not how many labels are wrong; and where the teacher was trained on these very records, the paper's
condition of predictions from outside the training set does not hold: mistakes that it has learnt are missing.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.softmax import log_softmax
from teachonce.rng import generator
from teachonce.store.store import Store

NUM_BINS = 15
"""Bins of the calibration error."""
NUM_HISTOGRAM_BINS = 40
NUM_SUSPECTS = 24

_BLOCK_VALUES = 1 << 20
"""Logits of a block's view: 8 MiB in float64, and half a dozen arrays of that size are in use at once."""
_SAMPLED_VIEWS = 10
"""Views of a record that a sample has at most, if it need not have more: other records tell more than further views."""


@dataclass(frozen=True)
class Selection:
    """Which rows are measured: so many records, each in the same views."""

    num_records: int
    views: tuple[int, ...]
    records: NDArray[np.int64] | None
    """Their numbers in the store, rising; None for all records."""

    @property
    def num_rows(self) -> int:
        """(record, view) rows."""
        return self.num_records * len(self.views)


@dataclass(frozen=True)
class Suspect:
    """A record whose label the teacher contradicts; means are over its views without a mix. Labels are the data's."""

    shard: int
    row: int
    label: int
    choice: int
    """The class of the largest mean log-probability."""
    margin: float
    """Mean log-probability of the label minus that of ``choice``, in nats; below 0."""
    label_prob: float
    choice_prob: float
    num_views: int


@dataclass
class ShardMeasures:
    """Sums over the measured (record, view) rows of one shard; ``num_plain`` of them are not mixed."""

    name: str
    num_records: int
    num_measured: int
    """Records measured."""
    num_rows: int = 0
    num_plain: int = 0
    hits1: float = 0.0
    hits5: float = 0.0
    entropy_nats: float = 0.0

    @property
    def top1(self) -> float | None:
        """Of the plain views; None where there are none."""
        return _ratio(self.hits1, self.num_plain)

    @property
    def top5(self) -> float | None:
        """Of the plain views; None where there are none."""
        return _ratio(self.hits5, self.num_plain)

    @property
    def mean_entropy_nats(self) -> float | None:
        """Of all rows; None where none was measured."""
        return _ratio(self.entropy_nats, self.num_rows)


@dataclass
class Measures:
    """Counts over the measured rows, V views each; in a pair of rows of an array the first is of plain views, the
    second of mixed ones."""

    views: tuple[int, ...]
    """The views measured."""
    num_classes: int
    entropies: NDArray[np.int64] = field(init=False)
    """[2, bins] between 0 and log C."""
    confidences: NDArray[np.int64] = field(init=False)
    """[2, bins] of the largest probability, between 0 and 1."""
    calibration: NDArray[np.float64] = field(init=False)
    """[NUM_BINS, 3]: number, sum of confidences, hits of the plain views of each bin of confidence."""
    agreement: NDArray[np.int64] = field(init=False)
    """[V + 1, V + 1]: records by number of plain views, and by in how many of them their commonest top-1 is said."""
    suspects: list[Suspect] = field(default_factory=list)
    """The most suspicious first."""
    shards: list[ShardMeasures] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.entropies = np.zeros((2, NUM_HISTOGRAM_BINS), np.int64)
        self.confidences = np.zeros((2, NUM_HISTOGRAM_BINS), np.int64)
        self.calibration = np.zeros((NUM_BINS, 3))
        self.agreement = np.zeros((len(self.views) + 1, len(self.views) + 1), np.int64)

    @property
    def num_records(self) -> int:
        """Records measured."""
        return sum(shard.num_measured for shard in self.shards)

    @property
    def num_rows(self) -> int:
        """(record, view) rows measured."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_plain(self) -> int:
        """Those that are not mixed."""
        return sum(shard.num_plain for shard in self.shards)

    @property
    def top1(self) -> float | None:
        """Of the plain views; None where there are none."""
        return _ratio(sum(shard.hits1 for shard in self.shards), self.num_plain)

    @property
    def top5(self) -> float | None:
        """Of the plain views; None where there are none."""
        return _ratio(sum(shard.hits5 for shard in self.shards), self.num_plain)

    @property
    def entropy_nats(self) -> float:
        """Mean over all rows, at temperature 1."""
        return sum(shard.entropy_nats for shard in self.shards) / max(self.num_rows, 1)

    @property
    def ece(self) -> float | None:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): |accuracy - confidence| weighted by bin."""
        return _ratio(float(np.abs(self.calibration[:, 2] - self.calibration[:, 1]).sum()), self.num_plain)


def measure_store(
    store: Store, selection: Selection | None = None, count_done: Callable[[int], None] = lambda _: None
) -> Measures:
    """Measure the rows of the selection, or all of them; ``count_done`` gets the number of rows just done."""
    selection = selection or choose_rows(store.num_records, store.num_views)
    records = selection.records
    measures = Measures(selection.views, store.class_space.num_classes)
    rows_at_once = max(1, _BLOCK_VALUES // store.class_space.num_classes)
    first = 0
    for shard, (name, num_records) in enumerate(store.shards):
        if records is None:
            rows = np.arange(num_records)
        else:
            rows = records[np.searchsorted(records, first) : np.searchsorted(records, first + num_records)] - first
        first += num_records
        measures.shards.append(ShardMeasures(name, num_records, len(rows)))
        for start in range(0, len(rows), rows_at_once):
            block = rows[start : start + rows_at_once]
            _measure_block(store, shard, block, measures)
            count_done(len(block) * len(selection.views))
    return measures


def choose_rows(num_records: int, num_views: int, max_rows: int | None = None) -> Selection:
    """All (record, view) rows where there are no more than ``max_rows``, else about so many, evenly spread."""
    if max_rows is None or num_records * num_views <= max_rows:
        return Selection(num_records, tuple(range(num_views)), None)
    num_sampled = min(num_records, max(1, max_rows // min(num_views, _SAMPLED_VIEWS)))
    num_used = min(num_views, max(1, max_rows // num_sampled))
    records = spread_evenly(num_records, num_sampled, generator(0, "inspect", "records"))
    views = spread_evenly(num_views, num_used, generator(0, "inspect", "views"))
    return Selection(num_sampled, tuple(views.tolist()), records)


def spread_evenly(total: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` different numbers below ``total`` in rising order: one from each of as many equal stretches."""
    count = min(count, total)
    bounds = np.arange(count + 1, dtype=np.int64) * total // max(count, 1)
    return rng.integers(bounds[:-1], bounds[1:])


def read_is_mixed(store: Store, shard: int, view: int, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the rows [N] of a view are mixed with a partner."""
    columns = store.read_columns(shard, view)
    if "mix_share" not in columns:
        return np.zeros(len(rows), bool)
    is_mixed = columns["mix_share"][rows] != 1
    if "mix_box" in columns:
        is_mixed |= columns["mix_box"][rows].any(axis=1)
    return is_mixed


def top_classes(values: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """The ``count`` largest of each row [N, C], largest first, as class indices [N, count]."""
    count = min(count, values.shape[1])
    chosen = np.argpartition(-values, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(values, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def num_known(store: Store, count: int) -> int:
    """How many of the ``count`` likeliest classes the store tells apart: a sparse codec keeps so many and no more."""
    return min(count, store.codec.num_kept or store.class_space.num_classes)


def _measure_block(store: Store, shard: int, rows: NDArray[np.int64], measures: Measures) -> None:
    """Add some records of a shard, all their measured views, to ``measures``."""
    sums = measures.shards[-1]
    labels = store.read_labels(shard)[rows].astype(np.int64) - store.class_space.offset
    num_classes = measures.num_classes
    entropy_range, num_top = (0.0, max(log(num_classes), 1e-9)), num_known(store, 5)
    sum_log_probs, sum_probs = np.zeros((2, len(rows), num_classes))
    top1 = np.empty((len(measures.views), len(rows)), np.int64)
    is_plain = np.empty((len(measures.views), len(rows)), bool)
    for index, view in enumerate(measures.views):
        log_probs = log_softmax(store.read_logits(shard, view, rows))
        probs = np.exp(log_probs)
        plain = is_plain[index] = ~read_is_mixed(store, shard, view, rows)
        entropies = np.maximum(-(probs * log_probs).sum(axis=1), 0)
        confidences = probs.max(axis=1)
        top = top_classes(log_probs, num_top)
        top1[index] = top[:, 0]
        hits = (top == labels[:, None])[plain]
        sums.num_rows += len(rows)
        sums.num_plain += int(plain.sum())
        sums.hits1 += float(hits[:, 0].sum())
        sums.hits5 += float(hits.any(axis=1).sum())
        sums.entropy_nats += float(entropies.sum())
        for which, chosen in enumerate((plain, ~plain)):
            measures.entropies[which] += np.histogram(
                np.minimum(entropies[chosen], entropy_range[1]), NUM_HISTOGRAM_BINS, entropy_range
            )[0]
            measures.confidences[which] += np.histogram(np.minimum(confidences[chosen], 1), NUM_HISTOGRAM_BINS, (0, 1))[
                0
            ]
        bins = np.minimum((confidences[plain] * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        values = np.stack([np.ones(len(bins)), confidences[plain], hits[:, 0]], axis=1)
        np.add.at(measures.calibration, bins, values)
        sum_log_probs[plain] += log_probs[plain]
        sum_probs[plain] += probs[plain]
    num_plain = is_plain.sum(axis=0)
    np.add.at(measures.agreement, (num_plain, _count_commonest(top1, is_plain)), 1)
    judged = np.flatnonzero((num_plain > 0) & (labels >= 0) & (labels < num_classes))
    divisor = num_plain[judged, None]
    _add_suspects(
        store, shard, rows[judged], labels[judged], sum_log_probs[judged] / divisor, sum_probs[judged] / divisor,
        num_plain[judged], measures,
    )  # fmt: skip


def _count_commonest(top1: NDArray[np.int64], is_plain: NDArray[np.bool_]) -> NDArray[np.int64]:
    """In how many plain views [N] the commonest top-1 of a record is said, of ``top1`` and ``is_plain`` [V, N]."""
    commonest = np.zeros(top1.shape[1], np.int64)
    for said, plain in zip(top1, is_plain, strict=True):
        np.maximum(commonest, ((top1 == said) & is_plain & plain).sum(axis=0), out=commonest)
    return commonest


def _add_suspects(
    store: Store,
    shard: int,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    mean_log_probs: NDArray[np.float64],
    mean_probs: NDArray[np.float64],
    num_views: NDArray[np.int64],
    measures: Measures,
) -> None:
    at = np.arange(len(rows))
    choices = mean_log_probs.argmax(axis=1)
    margins = mean_log_probs[at, labels] - mean_log_probs[at, choices]
    worst = np.argsort(margins, kind="stable")[:NUM_SUSPECTS]
    offset = store.class_space.offset
    found = [
        Suspect(
            shard=shard,
            row=int(rows[i]),
            label=int(labels[i]) + offset,
            choice=int(choices[i]) + offset,
            margin=float(margins[i]),
            label_prob=float(mean_probs[i, labels[i]]),
            choice_prob=float(mean_probs[i, choices[i]]),
            num_views=int(num_views[i]),
        )
        for i in worst
        if choices[i] != labels[i]
    ]
    measures.suspects = sorted([*measures.suspects, *found], key=lambda s: (s.margin, s.shard, s.row))[:NUM_SUSPECTS]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
