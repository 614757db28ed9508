"""What acts in training alone: dropout and stochastic depth of a student, as its library builds them."""

from __future__ import annotations

import pytest
from torch import nn

from teachonce.errors import ConfigError
from teachonce.models.classifier import build_student, load_model


def rates(student: nn.Module, attribute: str) -> set[float]:
    return {round(float(getattr(layer, attribute)), 3) for layer in student.modules() if hasattr(layer, attribute)}


def test_rates_are_those_of_the_library() -> None:
    student = build_student("timm:test_vit,drop_rate=0.2,drop_path_rate=0.1", 5)
    assert max(rates(student, "drop_prob")) == 0.1 and student.head_drop.p == 0.2
    assert rates(build_student("timm:test_vit", 5), "drop_prob") == set()
    student = build_student("torchvision:efficientnet_b0,drop_rate=0.3,drop_path_rate=0.1", 5)
    assert student.classifier[0].p == 0.3 and 0.05 < max(rates(student.features, "p")) < 0.1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet18,drop_path_rate=0.1", "torchvision cannot build it .*'stochastic_depth_prob'"),
        ("timm:vgg11,drop_path_rate=0.1", "timm cannot build it .*'drop_path_rate'"),
        ("timm:test_vit,drop_rate=1", r"drop_rate=1: expected a rate in \[0, 1\)"),
        ("timm:test_vit,drop_rate=-0.1", r"drop_rate=-0\.1: expected a rate in \[0, 1\)"),
    ],
)
def test_rates_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_student(spec, 5)


def test_a_teacher_drops_nothing() -> None:
    with pytest.raises(ConfigError, match=r"drop_rate= acts in training, and a teacher is not trained; omit it"):
        load_model("timm:test_vit,weights=nowhere,drop_rate=0.1")
