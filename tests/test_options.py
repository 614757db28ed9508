"""Options that need others: where they are declared, and where they are used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from teachonce.cli.config import AblateConfig
from teachonce.cli.main import COMMANDS
from teachonce.errors import ConfigError
from teachonce.extraction.config import ExtractConfig, PlanConfig
from teachonce.interop.config import ImportConfig, RecordsConfig
from teachonce.options import (
    Condition,
    Positional,
    Repeated,
    check_applicable,
    command_line,
    drop_idle,
    given_options,
    only_with,
)
from teachonce.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Cooking:
    """An option class like the programs'."""

    dish: str
    stove: str = "gas"
    flame_px: int = only_with(3, Condition("--stove gas", lambda options: options.stove == "gas"))
    spoons: tuple[int, ...] = only_with((1,), Condition("--stir and --dish soup", lambda options: options.stirs_soup))
    stir: bool = False

    @property
    def stirs_soup(self) -> bool:
        return self.stir and self.dish == "soup"


def test_the_option_and_what_it_needs_are_named() -> None:
    check_applicable(Cooking(dish="soup", flame_px=5, spoons=(1, 2), stir=True))
    check_applicable(Cooking(dish="soup", stove="induction", flame_px=3))
    with pytest.raises(ConfigError) as error:
        check_applicable(Cooking(dish="soup", stove="induction", flame_px=5))
    assert str(error.value) == "--flame-px 5: applies only with --stove gas, found --stove induction"
    with pytest.raises(ConfigError) as error:
        check_applicable(Cooking(dish="soup", spoons=(2, 3)))
    expected = "--spoons 2 3: applies only with --stir and --dish soup, found no --stir, --dish soup"
    assert str(error.value) == expected


def test_what_others_chose_is_not_given() -> None:
    config = Cooking(dish="soup", stove="induction", flame_px=5)
    assert given_options(config) == {"dish": "soup", "stove": "induction", "flame_px": 5}
    base = {"flame_px": 5}
    assert given_options(config, base) == {"dish": "soup", "stove": "induction"}
    check_applicable(config, given_options(config, base))
    assert "flame_px" not in given_options(dataclasses.replace(config, flame_px=3), base), "the default is no choice"


def test_what_cannot_apply_is_dropped() -> None:
    values = {"dish": "soup", "stove": "induction", "flame_px": 5, "spoons": (2,), "stir": True}
    assert drop_idle(Cooking, values) == {"dish": "soup", "stove": "induction", "spoons": (2,), "stir": True}
    assert drop_idle(Cooking, {"flame_px": 5}) == {"flame_px": 5}, "without what is required"


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (ExtractConfig, {"topk": 5}, "--topk 5: applies only with --codec topk, found --codec int8"),
        (PlanConfig, {"topk": 5}, "--topk 5: applies only with --codec topk, found --codec int8"),
        (ImportConfig, {"topk": 5}, "--topk 5: applies only with --codec topk, found --codec float32"),
        (AblateConfig, {"topk": 5}, "--topk 5: applies only with --codec topk, found --codec int8"),
        (AblateConfig, {"momentum": 0.5, "optimizer": "adamw"}, "--momentum 0.5: applies only with --optimizer sgd"),
        (
            AblateConfig,
            {"label_smoothing": 0.1, "label_weight": 0.0, "arms": "center"},
            "--label-smoothing 0.1: applies only with --label-weight above 0, found --label-weight 0.0",
        ),
        (ExtractConfig, {"randaugment_ops": 3, "policy": "crop"}, "applies only with --policy crop+randaugment"),
        (ExtractConfig, {"erase_ratio": (1.0, 2.0), "policy": "crop"}, "applies only with --erase-prob above 0"),
        (ExtractConfig, {"object_boxes": "image", "policy": "crop"}, "applies only with --object-covered above 0"),
        (
            ExtractConfig,
            {"mix_prob": 0.5, "policy": "crop"},
            "applies only with --teacher and --mixup-alpha or --cutmix",
        ),
        (
            ExtractConfig,
            {"cutmix_prob": 0.1, "mixup_alpha": 0.2, "policy": "crop"},
            "applies only with --mixup-alpha and --cutmix-alpha above 0, found --mixup-alpha 0.2, --cutmix-alpha 0.0",
        ),
        (ExtractConfig, {"views_per_file": 2}, "--views-per-file 2: applies only with a --policy that draws views"),
        (
            RecordsConfig,
            {"background_logit": 0.0},
            "--background-logit 0.0: applies only with --logits, found no --logit",
        ),
        (AblateConfig, {"stores": "a"}, "--teacher t: applies only with no --stores, found --stores a"),
        (
            TrainConfig,
            {"validation_split": None, "validation_epochs": 2, "teacher": None},
            "--validation-epochs 2: applies only with --validation-split, found no --validation-split",
        ),
    ],
)
def test_options_of_other_programs(kind: type, option: dict[str, Any], message: str) -> None:
    values = {
        "data": Path("d"),
        "out": Path("o"),
        "teacher": "t",
        "student": "s",
        "csv": Path("c"),
        "images": Path("i"),
    }
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    required |= {"teacher"} & {field.name for field in dataclasses.fields(kind)}
    with pytest.raises(ConfigError) as error:
        kind(**{name: value for name, value in values.items() if name in required} | option)
    assert message in str(error.value)


def test_every_condition_can_be_asked_of_every_option_class() -> None:
    """A condition reads options that its class may lack: each is asked once of each class that has the field."""
    for command in COMMANDS.values():
        fields = dataclasses.fields(command.options)
        values = {field.name: None if field.default is dataclasses.MISSING else field.default for field in fields}
        assert drop_idle(command.options, values).items() <= values.items()


Marked = Repeated  # another name for it must not matter


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Every form that an option has on a command line."""

    table: Positional[Path | None] = None
    guest: Marked[tuple[str, ...]] = ()
    sides: tuple[int, int] = (1, 1)
    candles: bool = True


def test_a_command_line_as_it_is_typed() -> None:
    serving = Serving(table=Path("by the window"), guest=("Ada", "Grace"), sides=(2, 3), candles=False)
    assert command_line(serving) == "'by the window' --guest Ada --guest Grace --sides 2 3 --no-candles"
    assert command_line(Serving()) == ""
