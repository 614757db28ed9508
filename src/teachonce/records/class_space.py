"""Class spaces, and the explicit mapping between them.

Data has labels 0..C-1; TFRecords of ImageNet have C = 1001, where 0 is "background" and never occurs. A model has its
own classes, and ``offset`` is the data label of the model's class 0: 0 for AmoebaNet (1001 classes), 1 for a model of
1000 classes. A class that the source lacks gets logit -inf, which has no probability mass at any temperature; padding
with logit 0, as the walkthrough does, takes real mass. A class that the target lacks is dropped, which conditions the
teacher's distribution on the classes that remain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError

TOP5_CLASSES = 20
"""Of fewer classes five answers are a quarter or more of all: their accuracy says little, and people do not see it."""


def shows_top5(num_classes: int) -> bool:
    """Whether tables and pages for people have a top-5 of a model of so many classes; what programs read always has."""
    return num_classes >= TOP5_CLASSES


LOW_TOP1 = 0.1
"""Of a teacher that is above chance: a top-1 that hardly anyone means to distill."""
NUM_JUDGED_IMAGES = 64
"""Images from which three standard errors of chance are too narrow to accuse a fair teacher: 0.19 at one half."""


def describe_low_top1(top1: float, labels: NDArray[np.integer], num_classes: int) -> str | None:
    """What a teacher's top-1 on images of these ``labels`` is too low for, to follow "is"; None where it is not.

    Chance is 1 / C, or always the commonest label where the labels differ; above it is what is so by three standard
    errors of as many images. Of fewer than ``NUM_JUDGED_IMAGES`` only a low top-1 says something.
    """
    low = "low" if top1 < LOW_TOP1 else None
    if len(labels) < NUM_JUDGED_IMAGES:
        return "near chance" if low and top1 <= 1 / num_classes else low

    def limit(chance: float) -> float:
        return min(1.0, chance + 3 * (chance * (1 - chance) / len(labels)) ** 0.5)

    if top1 < limit(1 / num_classes):
        return "near chance"
    commonest = np.unique(labels, return_counts=True)[1].max() / len(labels)
    if commonest < 1 and top1 < limit(commonest):
        words = "hardly above" if top1 > commonest else "no better than"
        return f"{words} what the commonest label alone would get ({commonest:.3f})"
    return low


@dataclass(frozen=True, kw_only=True)
class ClassSpace:
    """``num_classes`` outputs, of which output ``i`` is the data label ``i + offset``."""

    num_classes: int
    offset: int = 0

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"a class space of {self.num_classes} classes: expected at least 1")

    def labels(self) -> NDArray[np.int64]:
        """The data label of each output [num_classes]; negative: none."""
        return np.arange(self.offset, self.offset + self.num_classes)

    def relabel(self, new_labels: NDArray[np.integer]) -> ClassSpace:
        """The same outputs for data that numbers its classes otherwise.

        ``new_labels`` [n] has the new label of each old one, negative where the new data has no such class.
        """
        own = self.labels()
        is_known = (own >= 0) & (own < len(new_labels))
        labels = np.where(is_known, new_labels[np.where(is_known, own, 0)], -1)
        shift = labels - np.arange(self.num_classes)
        if (shift == shift[0]).all() and labels[0] >= 0:
            return ClassSpace(num_classes=self.num_classes, offset=int(shift[0]))
        return NamedClassSpace(num_classes=self.num_classes, output_labels=tuple(labels.tolist()))


@dataclass(frozen=True, kw_only=True)
class NamedClassSpace(ClassSpace):
    """Outputs whose data labels are no run of numbers: found by the names of the classes."""

    output_labels: tuple[int, ...]
    """Data label of each output; negative: the data has no such class."""

    def labels(self) -> NDArray[np.int64]:
        """As given."""
        return np.array(self.output_labels, np.int64)


def resolve_offset(
    model_classes: int, data_classes: int | None, offset: int | None, *, model: str, option: str | None = "--offset"
) -> int:
    """The offset to use: the one given, else 0 for equal class counts and 1 where only a background class is missing.

    Raises ConfigError where neither fits, because a guess would shift every label. ``option`` is the one that an offset
    is given by, where there is one.
    """
    if offset is not None:
        if data_classes is not None and not -model_classes < offset < data_classes:
            raise ConfigError(
                f"{option} {offset} leaves {model} ({model_classes} classes) and the data ({data_classes} "
                "classes) without a common class"
            )
        return offset
    if data_classes is None or model_classes == data_classes:
        return 0
    if model_classes == data_classes - 1:
        return 1
    advice = "create the records with the model's class list (--labels), or choose a model for this data"
    if option is not None:
        advice += (
            f"; if the model's classes are consecutive labels of the data, give the label of its class 0 with {option}"
        )
    raise ConfigError(f"{model} has {model_classes} classes, the data {data_classes}: {advice}")


Outputs = slice | NDArray[np.int64]
"""Which outputs of a class space."""


def shared_classes(source: ClassSpace, target: ClassSpace) -> tuple[Outputs, Outputs]:
    """The outputs of both spaces that mean the same labels: (the source's, the target's), in the same order."""
    if isinstance(source, NamedClassSpace) or isinstance(target, NamedClassSpace):
        labels = target.labels()
        order = np.argsort(labels, kind="stable")
        places = np.minimum(np.searchsorted(labels[order], source.labels()), len(labels) - 1)
        is_shared = (source.labels() >= 0) & (labels[order][places] == source.labels())
        return np.flatnonzero(is_shared), order[places[is_shared]]
    shift = source.offset - target.offset
    first, last = max(shift, 0), min(source.num_classes + shift, target.num_classes)
    last = max(first, last)
    return slice(first - shift, last - shift), slice(first, last)


def map_logits(
    logits: NDArray[np.float32], source: ClassSpace, target: ClassSpace, missing_logit: float = -np.inf
) -> NDArray[np.float32]:
    """Logits [N, source classes] as [N, target classes]; classes that the source lacks get ``missing_logit``."""
    if source == target:
        return logits
    mapped = np.full((*logits.shape[:-1], target.num_classes), missing_logit, np.float32)
    of_source, of_target = shared_classes(source, target)
    mapped[..., of_target] = logits[..., of_source]
    return mapped
