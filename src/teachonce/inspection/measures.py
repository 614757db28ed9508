"""What a store's logits say in numbers: accuracy, entropy, calibration, agreement over views, suspects.

One pass over the shards, in blocks of records with all their views, so memory does not grow with the store. Of a large
store a sample can be measured, spread evenly over records and views by a fixed seed.

A mixed view (mixup, cutmix) has no one label. Entropy and confidence count it; accuracy, calibration, agreement and
suspects leave it out. A record without a label is left out of accuracy, calibration and suspects.

Suspects are records whose label the teacher contradicts. Of confident learning (Northcutt et al. 2021,
arXiv:1911.00068, section 3.2) this takes the ranking, by how far another class is above the given label, here as mean
log-probabilities over a record's views, and counts those above a stated ratio (``CONTRADICTED_RATIO``). It estimates
no noise rates, so the list says where to look first and not how many labels are wrong; and where the teacher was
trained on these very records, the paper's condition of predictions from outside the training set does not hold:
mistakes that it has learned are missing.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import log

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.softmax import log_softmax
from teachonce.records.source import NO_LABEL
from teachonce.rng import generator
from teachonce.store.store import Store

NUM_BINS = 15
"""Bins of the calibration error."""
NUM_HISTOGRAM_BINS = 40
NUM_SUSPECTS = 24
CONTRADICTED_RATIO = 10
"""How many times as likely as the label another class must be, in the mean over a record's views, for the teacher to
contradict it: of a calibrated teacher at most one such label in eleven is right."""

_BLOCK_VALUES = 1 << 20
"""Logits of a block's view: 8 MiB in float64, and half a dozen arrays of that size are in use at once."""
_SAMPLED_VIEWS = 10
"""Views of a record that a sample has at most, if it need not have more: other records are more informative than
further views."""


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


def _no_counts() -> NDArray[np.int64]:
    return np.zeros((2, NUM_HISTOGRAM_BINS), np.int64)


@dataclass(frozen=True)
class RowSums:
    """Sums over (record, view) rows, which can be added; ``num_plain`` of the rows are not mixed.

    Accuracies are of the ``num_labeled`` plain rows whose record has a label; of ``num_ranked`` of these the store
    tells which five classes are the most likely.

    In a pair of rows of an array the first is of plain views, the second of mixed ones.
    """

    num_rows: int = 0
    num_plain: int = 0
    num_labeled: int = 0
    num_ranked: int = 0
    hits1: float = 0.0
    """Labeled rows whose most likely class is the label."""
    hits5: float = 0.0
    entropy_nats: float = 0.0
    entropies: NDArray[np.int64] = field(default_factory=_no_counts)
    """[2, bins] between 0 and log C."""
    confidences: NDArray[np.int64] = field(default_factory=_no_counts)
    """[2, bins] of the largest probability, between 0 and 1."""

    def __add__(self, other: RowSums) -> RowSums:
        return RowSums(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @property
    def top1(self) -> float | None:
        """Of the labeled rows; None where there are none."""
        return _ratio(self.hits1, self.num_labeled)

    @property
    def top5(self) -> float | None:
        """Of the labeled rows; None where there are none, and where the codec keeps fewer than five classes."""
        return _ratio(self.hits5, self.num_ranked)

    @property
    def mean_entropy_nats(self) -> float | None:
        """Of all rows, at temperature 1; None where there are none."""
        return _ratio(self.entropy_nats, self.num_rows)


@dataclass(frozen=True)
class ShardMeasures:
    """The measured rows of one shard."""

    name: str
    num_records: int
    num_measured: int
    """Records measured."""
    num_labeled: int
    """Those of them that have a label."""
    sums: RowSums


@dataclass(frozen=True)
class Measures:
    """What the measured rows of a store say, V views each."""

    views: tuple[int, ...]
    """The views measured."""
    num_classes: int
    shards: list[ShardMeasures]
    calibration: NDArray[np.float64]
    """[NUM_BINS, 3]: number, sum of confidences, hits of the labeled rows of each bin of confidence."""
    agreement: NDArray[np.int64]
    """[V + 1, V + 1]: records by number of plain views, and by in how many of them their most frequent top-1 occurs."""
    suspects: list[Suspect]
    """The most suspicious first, at most NUM_SUSPECTS, however little the teacher contradicts them."""
    num_contradicted: int
    """Records whose label the teacher contradicts by CONTRADICTED_RATIO or more."""
    num_judged: int
    """Records that have a view without a mix and a label among the teacher's classes: those that could be."""

    @cached_property
    def sums(self) -> RowSums:
        """Over all shards."""
        return sum((shard.sums for shard in self.shards), RowSums())

    @property
    def num_records(self) -> int:
        """Records measured."""
        return sum(shard.num_measured for shard in self.shards)

    @property
    def num_rows(self) -> int:
        """(record, view) rows measured."""
        return self.sums.num_rows

    @property
    def num_plain(self) -> int:
        """Those that are not mixed."""
        return self.sums.num_plain

    @property
    def num_labeled(self) -> int:
        """Those that are not mixed and whose record has a label: accuracy and calibration are of these."""
        return self.sums.num_labeled

    @property
    def top1(self) -> float | None:
        """Of the labeled rows; None where there are none."""
        return self.sums.top1

    @property
    def top5(self) -> float | None:
        """Of the labeled rows; None where there are none, and where the codec keeps fewer than five classes."""
        return self.sums.top5

    @property
    def entropy_nats(self) -> float:
        """Mean over all rows, at temperature 1."""
        return self.sums.mean_entropy_nats or 0.0

    @property
    def ece(self) -> float | None:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): |accuracy - confidence| weighted by bin."""
        return _ratio(float(np.abs(self.calibration[:, 2] - self.calibration[:, 1]).sum()), self.num_labeled)


@dataclass(frozen=True)
class ViewRows:
    """What the teacher says of N records in one view, at temperature 1."""

    is_plain: NDArray[np.bool_]
    """[N], not mixed."""
    is_labeled: NDArray[np.bool_]
    """[N], not mixed, and of a record that has a label."""
    log_probs: NDArray[np.float64]
    """[N, C]."""
    probs: NDArray[np.float64]
    """[N, C]."""
    entropies: NDArray[np.float64]
    """[N], in nats."""
    confidences: NDArray[np.float64]
    """[N], the largest probability."""
    top: NDArray[np.int64]
    """[N, 5] the most likely classes, most likely first; fewer of fewer classes, or where the codec keeps fewer."""
    is_label: NDArray[np.bool_]
    """[N, 5], which of ``top`` is the label."""


@dataclass(frozen=True)
class RecordMeans:
    """What the teacher says of N records of a shard, in the mean over their views without a mix, at least one each."""

    shard: int
    rows: NDArray[np.int64]
    """[N], in the shard."""
    labels: NDArray[np.int64]
    """[N], as classes of the teacher."""
    num_views: NDArray[np.int64]
    """[N], without a mix."""
    log_probs: NDArray[np.float64]
    """[N, C]."""
    probs: NDArray[np.float64]
    """[N, C]."""


@dataclass(frozen=True)
class BlockMeasures:
    """What a block of a shard's records says in all measured views; further fields as in ``Measures``."""

    view_sums: list[RowSums]
    """Of each measured view."""
    calibration: NDArray[np.float64]
    agreement: NDArray[np.int64]
    suspects: list[Suspect]
    num_contradicted: int
    num_judged: int
    num_labeled: int
    """Records that have a label."""


def measure_store(
    store: Store, selection: Selection | None = None, count_done: Callable[[int], None] = lambda _: None
) -> Measures:
    """Measure the rows of the selection, or all of them; ``count_done`` gets the number of rows just done."""
    selection = selection or choose_rows(store.num_records, store.num_views)
    calibration = np.zeros((NUM_BINS, 3))
    agreement = np.zeros((len(selection.views) + 1, len(selection.views) + 1), np.int64)
    shards: list[ShardMeasures] = []
    suspects: list[Suspect] = []
    num_contradicted = num_judged = 0
    rows_at_once = max(1, _BLOCK_VALUES // store.class_space.num_classes)
    for shard, rows in enumerate(_rows_by_shard(store, selection)):
        sums, num_labeled = RowSums(), 0
        for start in range(0, len(rows), rows_at_once):
            block = _measure_block(store, shard, rows[start : start + rows_at_once], selection.views, calibration)
            sums = sum(block.view_sums, sums)
            calibration, agreement = block.calibration, agreement + block.agreement
            suspects = _rank_suspects([*suspects, *block.suspects])
            num_contradicted += block.num_contradicted
            num_judged += block.num_judged
            num_labeled += block.num_labeled
            count_done(sum(view.num_rows for view in block.view_sums))
        shards.append(ShardMeasures(*store.shards[shard], len(rows), num_labeled, sums))
    return Measures(
        selection.views,
        store.class_space.num_classes,
        shards,
        calibration,
        agreement,
        suspects,
        num_contradicted,
        num_judged,
    )


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
    """How many of the ``count`` most likely classes the store tells apart: a sparse codec keeps so many and no more."""
    return min(count, store.codec.num_kept or store.class_space.num_classes)


def _rows_by_shard(store: Store, selection: Selection) -> Iterator[NDArray[np.int64]]:
    """Of each shard the selected rows, rising."""
    records, first = selection.records, 0
    for _, num_records in store.shards:
        if records is None:
            yield np.arange(num_records)
        else:
            yield records[np.searchsorted(records, first) : np.searchsorted(records, first + num_records)] - first
        first += num_records


def _measure_block(
    store: Store, shard: int, rows: NDArray[np.int64], views: tuple[int, ...], calibration: NDArray[np.float64]
) -> BlockMeasures:
    """Some records of a shard in all measured views; ``calibration`` is that of the blocks before, and is gone on with.

    One view is in memory at a time.
    """
    num_classes, num_top = store.class_space.num_classes, num_known(store, 5)
    labels = store.read_labels(shard)[rows].astype(np.int64)
    # Asked before the offset is taken off: with one of -1 a record without label would be one of class 0.
    has_label = labels != NO_LABEL
    labels -= store.class_space.offset
    view_sums = []
    sum_log_probs, sum_probs = np.zeros((2, len(rows), num_classes))
    top1 = np.empty((len(views), len(rows)), np.int64)
    is_plain = np.empty((len(views), len(rows)), bool)
    for index, view in enumerate(views):
        is_mixed = read_is_mixed(store, shard, view, rows)
        said = judge_rows(store.read_logits(shard, view, rows), labels, has_label, ~is_mixed, num_top)
        view_sums.append(sum_rows(said))
        calibration = add_calibration(calibration, said)
        top1[index], is_plain[index] = said.top[:, 0], said.is_plain
        sum_log_probs[said.is_plain] += said.log_probs[said.is_plain]
        sum_probs[said.is_plain] += said.probs[said.is_plain]
    num_plain = is_plain.sum(axis=0)
    judged = np.flatnonzero((num_plain > 0) & has_label & (labels >= 0) & (labels < num_classes))
    means = RecordMeans(
        shard=shard,
        rows=rows[judged],
        labels=labels[judged],
        num_views=num_plain[judged],
        log_probs=sum_log_probs[judged] / num_plain[judged, None],
        probs=sum_probs[judged] / num_plain[judged, None],
    )
    margins = _margins(means)
    return BlockMeasures(
        view_sums,
        calibration,
        count_agreement(top1, is_plain),
        find_suspects(means, margins, store.class_space.offset),
        num_contradicted=int((margins <= -log(CONTRADICTED_RATIO)).sum()),
        num_judged=len(margins),
        num_labeled=int(has_label.sum()),
    )


def judge_rows(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    has_label: NDArray[np.bool_],
    is_plain: NDArray[np.bool_],
    num_top: int,
) -> ViewRows:
    """Logits [N, C] of one view beside the labels [N], which may be none of the C classes, where there are any."""
    log_probs = log_softmax(logits)
    probs = np.exp(log_probs)
    top = top_classes(log_probs, num_top)
    return ViewRows(
        is_plain=is_plain,
        is_labeled=is_plain & has_label,
        log_probs=log_probs,
        probs=probs,
        entropies=np.maximum(-(probs * log_probs).sum(axis=1), 0),
        confidences=probs.max(axis=1),
        top=top,
        is_label=(top == labels[:, None]) & has_label[:, None],
    )


def sum_rows(said: ViewRows) -> RowSums:
    """Counts and sums over the rows of one view."""
    num_classes = said.probs.shape[1]
    most = max(log(num_classes), 1e-9)
    hits = said.is_label[said.is_labeled]
    return RowSums(
        num_rows=len(said.is_plain),
        num_plain=int(said.is_plain.sum()),
        num_labeled=len(hits),
        num_ranked=len(hits) if hits.shape[1] >= min(5, num_classes) else 0,
        hits1=float(hits[:, 0].sum()),
        hits5=float(hits.any(axis=1).sum()),
        entropy_nats=float(said.entropies.sum()),
        entropies=_count_values(said.entropies, said.is_plain, most),
        confidences=_count_values(said.confidences, said.is_plain, 1.0),
    )


def _count_values(values: NDArray[np.float64], is_plain: NDArray[np.bool_], most: float) -> NDArray[np.int64]:
    """Histograms [2, bins] of values [N] from 0 to ``most``, of the plain rows and of the mixed ones."""
    values = np.minimum(values, most)
    return np.stack(
        [np.histogram(values[which], NUM_HISTOGRAM_BINS, (0.0, most))[0] for which in (is_plain, ~is_plain)]
    )


def add_calibration(calibration: NDArray[np.float64], said: ViewRows) -> NDArray[np.float64]:
    """Calibration [NUM_BINS, 3] with the labeled rows of one view added."""
    confidences, hits = said.confidences[said.is_labeled], said.is_label[said.is_labeled, 0]
    bins = np.minimum((confidences * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    found = calibration.copy()
    np.add.at(found, bins, np.stack([np.ones(len(bins)), confidences, hits], axis=1))
    return found


def count_agreement(top1: NDArray[np.int64], is_plain: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Records [V + 1, V + 1] by number of plain views, and by in how many of these their most frequent top-1 occurs.

    ``top1`` and ``is_plain`` are [V, N].
    """
    commonest = np.zeros(top1.shape[1], np.int64)
    for choices, plain in zip(top1, is_plain, strict=True):
        np.maximum(commonest, ((top1 == choices) & is_plain & plain).sum(axis=0), out=commonest)
    counts = np.zeros((len(top1) + 1, len(top1) + 1), np.int64)
    np.add.at(counts, (is_plain.sum(axis=0), commonest), 1)
    return counts


def _margins(means: RecordMeans) -> NDArray[np.float64]:
    """Mean log-probability [N] of the label minus that of the likeliest class, in nats."""
    at = np.arange(len(means.rows))
    return means.log_probs[at, means.labels] - means.log_probs.max(axis=1, initial=-np.inf)


def find_suspects(means: RecordMeans, margins: NDArray[np.float64], offset: int) -> list[Suspect]:
    """The records farthest below another class, at most NUM_SUSPECTS; ``offset`` is the label of the first class."""
    choices = means.log_probs.argmax(axis=1)
    worst = np.argsort(margins, kind="stable")[:NUM_SUSPECTS]
    return [
        Suspect(
            shard=means.shard,
            row=int(means.rows[i]),
            label=int(means.labels[i]) + offset,
            choice=int(choices[i]) + offset,
            margin=float(margins[i]),
            label_prob=float(means.probs[i, means.labels[i]]),
            choice_prob=float(means.probs[i, choices[i]]),
            num_views=int(means.num_views[i]),
        )
        for i in worst
        if choices[i] != means.labels[i]
    ]


def _rank_suspects(suspects: list[Suspect]) -> list[Suspect]:
    return sorted(suspects, key=lambda suspect: (suspect.margin, suspect.shard, suspect.row))[:NUM_SUSPECTS]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
