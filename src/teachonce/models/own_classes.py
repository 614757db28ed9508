"""Whether a model's classes are those of the data: by their names where both have them, else by their numbers.

Six classes fit six others just as well, and a run's own offset says only where its classes began in the data that it
was trained on. So a run, and an ONNX file that was exported from one, carry a hash of their classes' names, in order.
The data's names are cut at every place where so many classes fit, and where the hash is the same the model's class 0
is: data with a background class and without are the same data. Models of libraries have no names that data uses
(timm's and torchvision's are texts for people), and counts decide.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from teachonce.errors import ConfigError
from teachonce.models.classifier import Classifier
from teachonce.records.class_space import resolve_offset
from teachonce.records.class_table import hash_classes

_NUM_SHOWN = 3


def resolve_model_offset(
    classifier: Classifier,
    names: Sequence[str] | None,
    data_classes: int | None,
    asked: int | None = None,
    *,
    option: str | None = "--offset",
) -> int:
    """The data label of the model's class 0, for data of ``names`` (None: it does not know) and ``data_classes``.

    ``asked`` is the offset that was given by ``option`` (None: there is none); one in the SPEC counts as much. It
    is taken, with a warning where the names are others. Raises ConfigError where names, or without them counts, say
    that these are not the data's classes.
    """
    given = f"{option} {asked}"
    if asked is None:
        asked = classifier.spec.options.get("offset")
        given = f"offset={asked}"
    model, count = str(classifier.spec), classifier.num_classes
    if classifier.classes_hash is not None and names is not None:
        found = _find_names(classifier, names)
        if found is None and asked is None:
            advice = "give a model for this data"
            if option is not None:
                advice += f", or, if only the names differ, give the label of its class 0 with {option}"
            raise ConfigError(
                f"{model}: its {count} classes differ in names or order from the {len(names)} of the data "
                f"({_describe(names)}); {advice}"
            )
        if found is not None and asked not in (None, found):
            raise ConfigError(
                f"{given}: by the names of the classes, class 0 of {model} is label {found} of the data; omit it "
                f"or give {found}"
            )
        if found is not None:
            return found
        warnings.warn(
            f"{given}: the {count} classes of {model} have different names than those of the data "
            f"({_describe(names)}); they are assumed to be the same",
            stacklevel=3,
        )
    own = classifier.default_offset
    if asked is None and own is not None and data_classes in (None, own + count):
        return own
    return resolve_offset(count, data_classes, asked, model=model, option=option)


def _find_names(classifier: Classifier, names: Sequence[str]) -> int | None:
    """The label at which the data's names are the model's; None where they are nowhere."""
    for first in _places(classifier, len(names)):
        if hash_classes(names[first : first + classifier.num_classes]) == classifier.classes_hash:
            return first
    return None


def _places(classifier: Classifier, num_names: int) -> Iterator[int]:
    own = classifier.default_offset or 0
    # A model may have further outputs, which its data had no names for.
    yield from dict.fromkeys(place for place in (own, 0, 1) if 0 <= place < num_names)
    yield from range(2, num_names - classifier.num_classes + 1)


def _describe(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")
