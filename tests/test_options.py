"""Options that need others: where they are declared, and where they are used."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachonce.cli.config import AblateConfig
from teachonce.cli.main import COMMANDS, parse_command
from teachonce.codecs.registry import CODECS, build_codec
from teachonce.errors import ConfigError
from teachonce.evaluation.config import ExportOnnxConfig, ExportWeightsConfig
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
    to_json,
)
from teachonce.records.options import RecordOptions
from teachonce.storage.address import Address
from teachonce.training.config import TrainConfig
from teachonce.views.options import ViewOptions
from teachonce.views.order import ViewOrder
from teachonce.views.policy import build_policy


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


EXTRACT: dict[str, Any] = {"data": Path("d"), "teacher": "timm:a", "out": Path("o")}
TRAIN: dict[str, Any] = {"data": Path("d"), "student": "timm:a", "out": Path("o")}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ExtractConfig, {"policy": "crop+rand_augment"}, "--policy crop+rand_augment: expected center, crop, crop+r"),
        (ExtractConfig, {"policy": "Center"}, "--policy Center: expected center, crop, "),
        (ExtractConfig, {"crop_scale": 0.1}, "--crop-scale 0.1: expected several values, as a tuple or a list"),
        (ExtractConfig, {"crop_scale": (0.1,)}, "--crop-scale (0.1,): expected 2 values, found 1"),
        (ExtractConfig, {"crop_scale": ("a", 1.0)}, "--crop-scale ('a', 1.0): expected a number, found str"),
        (ExtractConfig, {"data": 3}, "--data 3: expected a path"),
        (TrainConfig, {"class_weights": "balance"}, "--class-weights balance: expected "),
        (TrainConfig, {"sampler": "weighted"}, "--sampler weighted: expected uniform or balanced"),
        (TrainConfig, {"mixup_type": "1", "mixup_alpha": 0.2}, "--mixup-type 1: expected "),
        (TrainConfig, {"mixup_type": True, "mixup_alpha": 0.2}, "--mixup-type True: expected "),
        (TrainConfig, {"batch_size": "64"}, "--batch-size 64: expected an integer, found str"),
        (TrainConfig, {"batch_size": 64.0}, "--batch-size 64.0: expected an integer, found float"),
        (TrainConfig, {"epochs": True}, "--epochs True: expected an integer, found bool"),
        (TrainConfig, {"compile": "no"}, "--compile no: expected True or False, found str"),
        (TrainConfig, {"student": Path("a")}, "expected a text, found PosixPath"),
        (TrainConfig, {"logits": "store"}, "--logits store: expected records"),
        (TrainConfig, {"logger": "tb"}, "--logger tb: expected tensorboard, csv, wandb or none"),
        (RecordOptions, {"val_seed": "x", "val_fraction": 0.1}, "--val-seed x: expected an integer, found str"),
        (ExportOnnxConfig, {"run": "r", "out": "o", "preprocessing": "Inside"}, "--preprocessing Inside: expected out"),
        (ExportWeightsConfig, {"run": "r", "out": None}, "--out None: expected a path"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    base = {ExtractConfig: EXTRACT, TrainConfig: TRAIN}.get(kind, {})
    with pytest.raises(ConfigError) as error:
        kind(**base | options)
    assert message in str(error.value)


def test_values_as_python_gives_them() -> None:
    """Texts for paths, lists, NumPy's numbers: what is kept is what a command line would have given."""
    given = {"data": "s3://bucket/data", "out": "out", "store": ["a", Path("b")], "batch_size": np.int64(64)}
    given |= {"lr": np.float32(0.5), "crop_scale": [0.25, 1.0], "kd_temp": 2, "own_views": np.True_}
    config: Any = TrainConfig(**{"student": "timm:a", **given})
    assert isinstance(config.data, Address) and config.out == Path("out") and config.store == (Path("a"), Path("b"))
    assert (config.batch_size, type(config.batch_size)) == (64, int)
    assert (config.lr, config.crop_scale, config.own_views) == (0.5, (0.25, 1.0), True)
    assert TrainConfig(**TRAIN, store="a").store == (Path("a"),)
    for scale in (np.array([0.25, 1.0]), (np.float32(0.25), 1.0), [np.float64(0.25), np.int64(1)]):
        config = TrainConfig(**TRAIN, crop_scale=scale)
        assert config.crop_scale == (0.25, 1.0) and not any(isinstance(item, np.generic) for item in config.crop_scale)
    epochs: Any = TrainConfig(**TRAIN, schedule="piecewise", boundary_epochs=(np.int64(3),), boundary_rates=[1, 0.1])
    assert epochs.boundary_epochs == (3,) and type(epochs.boundary_epochs[0]) is int
    assert json.dumps(to_json(config)) and parse_command(["train", *shlex.split(command_line(config))]) == config


def test_a_codec_of_a_program_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the guide's on extending enters it; a name that nothing was entered by is refused where it is looked up."""
    monkeypatch.setitem(CODECS, "fixed", CODECS["float32"])
    config = ExtractConfig(**EXTRACT, codec="fixed")  # type: ignore[arg-type]
    assert build_codec(config.codec, num_classes=3) == CODECS["fixed"]()
    with pytest.raises(ConfigError, match="fixd"):
        build_codec(ExtractConfig(**EXTRACT, codec="fixd").codec, num_classes=3)  # type: ignore[arg-type]


def test_names_are_checked_where_no_option_is() -> None:
    with pytest.raises(ConfigError, match="policy 'RandAugment': expected center, crop"):
        build_policy("RandAugment", ViewOptions())
    with pytest.raises(ConfigError, match="order 'sequental' of 3 views: expected sequential or permuted"):
        ViewOrder(num_views=3, kind="sequental")  # type: ignore[arg-type]
