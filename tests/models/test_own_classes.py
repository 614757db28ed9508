"""Whose classes are a model's: names decide where both sides have them, else counts; nothing is guessed."""

from __future__ import annotations

import warnings

import pytest
import torch

from teachonce.errors import ConfigError
from teachonce.models.classifier import Classifier
from teachonce.models.own_classes import resolve_model_offset
from teachonce.models.spec import parse_model_spec
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.class_table import hash_classes

ANIMALS = ("ape", "bear", "cat", "dog", "eel", "fox")
TOOLS = ("axe", "bolt", "chisel", "drill", "edger", "file")


def model(
    names=ANIMALS, *, offset: int | None = 0, has_names: bool = True, num_classes: int | None = None, spec="run:r"
):
    return Classifier(
        spec=parse_model_spec(spec),
        num_classes=num_classes or len(names),
        preprocessing=Preprocessing(size_px=8),
        default_offset=offset,
        classes_hash=hash_classes(names) if has_names else None,
        weights_sha256="",
        device=torch.device("cpu"),
        forward=torch.nn.Identity(),
    )


def resolve(classifier: Classifier, names, asked: int | None = None, data_classes: int | None = None) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return resolve_model_offset(classifier, names, data_classes or (names and len(names)), asked)


def test_the_same_names() -> None:
    assert resolve(model(), ANIMALS) == 0
    assert resolve(model(), ANIMALS, asked=0) == 0
    assert resolve(model(spec="run:r,offset=0"), ANIMALS) == 0


@pytest.mark.parametrize("own", [None, 0, 1, 4])
def test_names_say_where_the_classes_begin_whatever_the_model_says(own: int | None) -> None:
    assert resolve(model(offset=own), ANIMALS) == 0
    assert resolve(model(offset=own), ("background", *ANIMALS)) == 1
    assert resolve(model(offset=own), (*TOOLS, *ANIMALS)) == 6
    # Outputs that its data had no names for.
    assert resolve(model(offset=own, num_classes=9), ("background", *ANIMALS)) == 1


@pytest.mark.parametrize("names", [TOOLS, ANIMALS[::-1], ANIMALS[:5], ANIMALS[1:], TOOLS + ANIMALS[:5]])
def test_other_names_are_refused(names) -> None:
    message = rf"^run:r: its 6 classes differ in names or order from the {len(names)} of the data \({names[0]}"
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(model(), names)
    assert "give the label of its class 0 with --offset" in str(caught.value) and "\n" not in str(caught.value)


def test_an_offset_that_the_names_contradict() -> None:
    for spec, asked, given in (("run:r", 0, "--offset 0"), ("run:r,offset=0", None, "offset=0")):
        with pytest.raises(ConfigError, match=rf"^{given}: by the names .* class 0 of run:r.* is label 1 of the data"):
            resolve(model(spec=spec), ("background", *ANIMALS), asked)


def test_an_offset_that_somebody_gave_is_taken_where_the_names_are_others() -> None:
    with pytest.warns(
        UserWarning, match=r"--offset 0: the 6 classes of run:r have different names .* \(axe, bolt, chisel, ...\)"
    ):
        assert resolve_model_offset(model(), TOOLS, 6, 0) == 0
    with pytest.raises(ConfigError, match="without a common class"), pytest.warns(UserWarning, match="different names"):
        resolve_model_offset(model(), TOOLS, 6, 6)


def test_without_names_counts_decide() -> None:
    nameless = model(has_names=False)
    assert resolve(nameless, ANIMALS) == resolve(nameless, TOOLS) == resolve(nameless, None) == 0
    assert resolve(model(), None, data_classes=6) == 0
    assert resolve(model(offset=1), None, data_classes=7) == resolve(model(offset=1), None) == 1
    # The offset of its own data does not fit these counts, and another one does.
    assert resolve(model(offset=1), None, data_classes=6) == 0
    assert resolve(model(offset=0), None, data_classes=7) == 1
    for num_classes in (5, 8, 1000):
        with pytest.raises(ConfigError, match=f"run:r has 6 classes, the data {num_classes}: "):
            resolve(nameless, None, data_classes=num_classes)
    assert resolve(nameless, None, asked=3, data_classes=1000) == 3
