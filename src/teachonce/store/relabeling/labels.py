"""Labels of the data beside those that a store recorded: single images are relabeled, many are a mistake.

A teacher's answers do not depend on labels, so data whose labels were cleaned is read with the store as it is: with a
warning, and with the data's labels. Where a large share differs, the classes are in another order, labels are shifted,
or they were shuffled: that is refused. Without class names in data and store any difference is; this is not for these.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teachonce.records.sample import sample_locations
from teachonce.records.source import NO_LABEL, Record, RecordSource, all_keys
from teachonce.store.store import Store
from teachonce.terminal import plural

LABEL_SAMPLE = 64
"""Records whose labels are compared before a store is used, drawn at random: data may be in the order of its classes,
or have them in turn."""
MOST_RELABELED = 0.25
"""Share of the sample up to which other labels are a relabeling.

Between both cases: of the labels of published data sets 3.3 % on average and 10 % at most are wrong (Northcutt et al.
2021, arXiv:2103.14749), which is what a relabeling mends; labels that were shuffled among C classes of equal size
differ in 1 - 1/C, at least one half, and shifted ones all. In a sample of ``LABEL_SAMPLE`` a quarter is 4.0 standard
errors from 10 % (0.0375 each) as well as from one half (0.0625 each), so that either is mistaken for the other less
than once in 5,000 times.
"""
FEW_COMPARED = 32
"""Records below which one half counts instead: of so few, chance alone takes a relabeling of 10 % past a quarter."""


@dataclass(frozen=True)
class LabelSample:
    """Sampled records of a source that a store knows, and how many of them have another label there; without images."""

    store: str
    num_compared: int
    """With a label in the data and in the store."""
    num_different: int
    example: str
    """The first that differs, as ``describe_label``; "" where none does."""

    @property
    def is_relabeling(self) -> bool:
        """Whether so few differ that single images were given other labels."""
        return self.num_different <= self._most * self.num_compared

    @property
    def _most(self) -> float:
        return MOST_RELABELED if self.num_compared >= FEW_COMPARED else 0.5

    def refuse(self, advice: str) -> str:
        """The line of an error where it is no relabeling."""
        return (
            f"{self.example}; {self.count()} have another label than in the store, expected at most "
            f"{100 * self._most:.0f} %, relabeled ones: the classes have a different order or numbering here, or "
            f"labels were shuffled; {advice}"
        )

    def count(self) -> str:
        """How many differ as a phrase: 3 of 64 sampled images (about 5 % of all)."""
        share = f"about {100 * self.num_different / self.num_compared:.0f} % of all"
        return f"{self.num_different} of {self.num_compared} sampled images ({share})"

    def describe(self) -> str:
        """A warning of those that differ, with one of them."""
        return f"{self.store}: {self.count()} have another label than in the store, such as {self.example}{_KEPT}"

    def describe_later(self, example: str) -> str:
        """A warning of a record that was read later (as ``describe_label``), where none of the sample differs."""
        # P(none of n) is 5 % where the share is 3/n.
        most = f", so probably fewer than {300 / self.num_compared:.0f} % of all" if self.num_compared > 3 else ""
        none = f"; none of {self.num_compared} sampled images differs{most}" if self.num_compared else ""
        return f"{example}{none}{_KEPT}"


_KEPT = (
    ": the data's labels are used, with the stored views and logits; if nobody relabeled such images, give the labels "
    "of the extraction"
)


def compare_labels(
    store: Store, source: RecordSource, labels: NDArray[np.int64] | None = None, *, count: int = LABEL_SAMPLE
) -> LabelSample:
    """Compare the labels of those of ``count`` records that the store knows; ``labels`` as of ``label_map``."""
    records = source.read_batch(sample_locations(source, count, seed=0)) if source.num_records else []
    known, _ = store.find(all_keys(records)) if len(records) else (np.zeros(0, bool), None)
    num_compared, different = 0, []
    for at in np.flatnonzero(known).tolist():
        record = records[at]
        # Equal images have a row each, and each may have a label of its own. A row with another key, of a damaged
        # index, is refused when it is read.
        places = store.locations_of(record.key)
        stored = [
            int(store.read_labels(shard)[row])
            for shard, row in places
            if int(store.read_keys(shard)[row]) == record.key
        ]
        if record.label == NO_LABEL or not stored or NO_LABEL in stored:
            continue
        num_compared += 1
        mapped = record.label if labels is None else int(take_labels(labels, np.array([record.label]))[0])
        if mapped not in stored:
            different.append((record, stored[0]))
    example = describe_label(store, source, *different[0]) if different else ""
    return LabelSample(str(store.path), num_compared, len(different), example)


def describe_label(store: Store, source: RecordSource, record: Record, stored: int) -> str:
    """Both labels of a record as a phrase, with the names of their classes."""
    names = () if source.classes is None else source.classes.names
    return (
        f"{record.where}: label {record.label}{_name(names, record.label)} ({record.filename}), the store {store.path} "
        f"has {stored}{_name(store.plan.class_names or (), stored)}"
    )


def _name(names: tuple[str, ...], label: int) -> str:
    return f" ({names[label]})" if 0 <= label < len(names) else ""


def take_labels(labels: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those at positions; -1 for positions that there are not."""
    is_inside = (at >= 0) & (at < len(labels))
    return np.where(is_inside, labels[np.where(is_inside, at, 0)], -1)


def warn_of_conflicts(store: Store) -> None:
    """Name the first of the store's equal images that have different labels, and count them."""
    num_conflicts, first = 0, ""
    for index in store.index:
        same = np.flatnonzero(index.keys[1:] == index.keys[:-1])
        if not len(same):
            continue
        locations = [[index.location(place + behind) for place in same.tolist()] for behind in (0, 1)]
        labels = [store.gather_keys(part)[1] for part in locations]
        different = np.flatnonzero(labels[0] != labels[1])
        if len(different) and not first:
            at = int(different[0])
            first = " and ".join(
                f"{store.read_filename(*part[at])} with label {of_part[at]}"
                for part, of_part in zip(locations, labels, strict=True)
            )
        num_conflicts += len(different)
    if num_conflicts:
        warnings.warn(
            f"{store.path}: {plural(num_conflicts, 'image')} {'occurs' if num_conflicts == 1 else 'occur'} more than "
            f"once with different labels (first: {first}); equal images share views and logits, and each keeps its own "
            "label",
            stacklevel=4,
        )
