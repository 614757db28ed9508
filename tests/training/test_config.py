"""The options of a training: what cannot apply is refused, through Python and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from teachonce.cli.main import main
from teachonce.errors import ConfigError
from teachonce.training.config import TrainConfig

STORE, ONLINE = {"store": Path("s")}, {"teacher": "timm:resnet18"}
MIXED_VIEWS = "--teacher and --mixup-alpha or --cutmix-alpha above 0"
BATCH_MIXUP = "--mixup-alpha above 0 and no online --teacher"
NO_TEACHER = "no --store, no --logits, no --teacher"


def build(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"data": Path("d"), "student": "s", "out": Path("o"), **settings})


@pytest.mark.parametrize(
    ("option", "settings", "needs", "found"),
    [
        ({"mixup_type": 1}, {}, BATCH_MIXUP, "--mixup-alpha 0.0, no --teacher"),
        ({"mixup_type": 1}, ONLINE | {"mixup_alpha": 0.2}, BATCH_MIXUP, "--mixup-alpha 0.2, --teacher timm:resnet18"),
        ({"validation_data": "v"}, {"validation_split": "none"}, "--validation-split", "--validation-split none"),
        ({"kd_temp": 2.0}, STORE | {"kd_weight": 0.0}, "--kd-weight above 0", "--kd-weight 0.0"),
        ({"kd_weight": 0.5}, {}, "--store, --logits records or --teacher", NO_TEACHER),
        ({"label_smoothing": 0.1}, STORE | {"label_weight": 0.0}, "--label-weight above 0", "--label-weight 0.0"),
        ({"eval_crop_frac": 0.5}, {"eval_resize": 257}, "no --eval-resize", "--eval-resize 257"),
        ({"momentum": 0.8}, {"optimizer": "adamw"}, "--optimizer sgd", "--optimizer adamw"),
        ({"warmup_prefix": True}, {"schedule": "fixed"}, "--schedule cosine", "--schedule fixed"),
        ({"min_lr": 0.01}, {"schedule": "step"}, "--schedule cosine or polynomial", "--schedule step"),
        ({"step_epochs": 3}, {}, "--schedule step", "--schedule cosine"),
        ({"step_rate": 0.5}, {}, "--schedule step", "--schedule cosine"),
        ({"decay_epochs": 3.0}, {}, "--schedule exponential or polynomial", "--schedule cosine"),
        ({"decay_rate": 0.5}, {"schedule": "polynomial"}, "--schedule exponential", "--schedule polynomial"),
        ({"boundary_epochs": (1, 2, 3, 4)}, {}, "--schedule piecewise", "--schedule cosine"),
        ({"boundary_rates": (1.0, 1.0, 1.0, 0.5, 0.1)}, {}, "--schedule piecewise", "--schedule cosine"),
        ({"store_weights": "1"}, {}, "", ""),  # its count is wrong without stores, whatever it applies with
        ({"views": 2}, {}, "--store", "no --store"),
        ({"view_order": "permuted"}, {"logits": "records"}, "--store", "no --store"),
        ({"own_views": True}, ONLINE, "--store", "no --store"),
        ({"teacher_offset": 1}, STORE, "--teacher", "no --teacher"),
        ({"view_seed": 1}, {}, "--teacher", "no --teacher"),
        ({"object_boxes": "image"}, {}, "--object-covered above 0", "--object-covered 0.0"),
        ({"randaugment_ops": 3}, {}, "--policy crop+randaugment", "--policy crop"),
        (
            {"randaugment_magnitude": 5.0},
            {"policy": "crop+autoaugment"},
            "--policy crop+randaugment",
            "--policy crop+autoaugment",
        ),
        ({"randaugment_magnitude_std": 1.0}, {}, "--policy crop+randaugment", "--policy crop"),
        ({"erase_ratio": (0.5, 2.0)}, {}, "--erase-prob above 0", "--erase-prob 0.0"),
        ({"erase_scale": (0.1, 0.2)}, {}, "--erase-prob above 0", "--erase-prob 0.0"),
        ({"mix_prob": 0.5}, {"mixup_alpha": 0.2}, MIXED_VIEWS, "no --teacher, --mixup-alpha 0.2, --cutmix-alpha 0.0"),
        (
            {"cutmix_prob": 0.1},
            ONLINE | {"cutmix_alpha": 1.0},
            "--mixup-alpha and --cutmix-alpha above 0",
            "--mixup-alpha 0.0, --cutmix-alpha 1.0",
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_apply(
    option: dict[str, Any], settings: dict[str, Any], needs: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        build(**settings, **option)
    if needs:
        assert str(error.value).endswith(f": applies only with {needs}, found {found}")
    build(**settings)
    words = []
    for name, value in (settings | option).items():
        flag = "--" + name.replace("_", "-")
        values = value if isinstance(value, tuple) else (value,)
        words += [flag] if value is True else [flag, *map(str, values)]
    with pytest.raises(SystemExit) as end:
        main(["train", "--data", "d", "--student", "s", "--out", "o", *words])
    line = capsys.readouterr().err
    assert end.value.code == 2 and line == f"teachonce: {error.value}\n"
    assert line.startswith(f"teachonce: --{next(iter(option)).replace('_', '-')}")


@pytest.mark.parametrize(
    "settings",
    [
        STORE | {"kd_temp": 0.0, "kd_weight": 0.5, "views": 2, "own_views": True},
        {"logits": "records", "kd_temp": 0.0},
        ONLINE | {"kd_temp": 0.0, "view_seed": 1, "mixup_alpha": 0.2, "mixup_type": 1},
        STORE | {"kd_temp": 0.0, "kd_weight": 0.0},
    ],
)
def test_kd_is_switched_off_by_one_option(settings: dict[str, Any]) -> None:
    """What else the command has for KD stays allowed: a baseline is the same command with --kd-temp 0."""
    assert build(**settings).temperature == 0


def test_what_is_given_is_what_differs_from_the_defaults() -> None:
    assert build(schedule="step", momentum=0.9).given_options() == {
        "data": Path("d"),
        "student": "s",
        "out": Path("o"),
        "schedule": "step",
    }


def test_a_window_without_shards() -> None:
    with pytest.raises(ConfigError, match="--shuffle-shards 0: expected at least 1"):
        build(shuffle_shards=0)
    assert build(shuffle_shards=1).given_options()["shuffle_shards"] == 1


def test_a_store_given_twice() -> None:
    with pytest.raises(ConfigError, match=r"--store a/../s: expected each store once"):
        build(store=(Path("a/../s"), Path("t"), Path("s")))


def test_epochs_between_evaluations_that_there_are_none_of() -> None:
    """A recipe's --validation-epochs stood in the way of --epochs, and any other was refused without a validation."""
    options: dict[str, Any] = {"data": Path("d"), "out": Path("o"), "epochs": 7}
    TrainConfig.from_recipe("vanilla_resnet50", validation_split="none", **options)
    with pytest.raises(ConfigError, match="--validation-epochs 5: expected a divisor of --epochs 7"):
        TrainConfig.from_recipe("vanilla_resnet50", **options)


def test_balanced_classes() -> None:
    assert build(sampler="balanced").sampler == "balanced" and build(class_weights="balanced")
    with pytest.raises(ConfigError, match="--sampler balanced: expected uniform with --shuffle-shards 4, whose"):
        build(sampler="balanced", shuffle_shards=4)
    with pytest.raises(ConfigError, match="--class-weights balanced: expected none with --sampler balanced: each"):
        build(sampler="balanced", class_weights="balanced")
