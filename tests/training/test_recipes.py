"""Recipes: each one is built, says what a recipe must say, and trains for two steps; flags override."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm

from teachonce.cli.main import main, parse_command
from teachonce.errors import ConfigError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.models.assembled_resnet.blocks import Bottleneck
from teachonce.models.assembled_resnet.registry import register_models
from teachonce.models.classifier import build_student
from teachonce.models.spec import parse_model_spec
from teachonce.records.discovery import open_records
from teachonce.runs.metrics import read_metrics
from teachonce.training.config import TrainConfig
from teachonce.training.recipes import RECIPES, build_recipe, describe_recipes, recipe_options
from teachonce.training.train import train
from tests.support.small_data import teacher_logits, write_digits, write_store
from tests.support.small_models import small_student

BASE = ["train", "--data", "d", "--out", "o", "--store", "s"]
NEEDS_STORE = [name for name in RECIPES if recipe_options(name).get("kd_temp", 0) > 0]


def build(name: str, **settings: Any) -> TrainConfig:
    places: dict[str, Any] = {"data": Path("d"), "out": Path("o"), "store": (Path("s"),)}
    return TrainConfig.from_recipe(name, **(places | settings))


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_and_python_mean_the_same(name: str) -> None:
    parsed = parse_command([*BASE, "--recipe", name])
    assert parsed == build(name) and parsed.recipe == name


def test_from_python_options_override_and_the_records_logits_are_meant() -> None:
    words = ["train", "--recipe", "assemble_resnet50", "--data", "d", "--out", "o", "--epochs", "10"]
    config = TrainConfig.from_recipe("assemble_resnet50", data=Path("d"), out=Path("o"), epochs=10)
    assert config == parse_command(words) and config.logits == "records" and config.epochs == 10
    with pytest.raises(ConfigError, match="did you mean assemble_resnet50"):
        TrainConfig.from_recipe("assemble_resnet5", data=Path("d"), out=Path("o"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_docstring_says_what_a_recipe_must_say(name: str) -> None:
    text = inspect.getdoc(RECIPES[name]) or ""
    flat = " ".join(text.split())
    assert re.search(r"arXiv:\d{4}\.\d{5}|docs/results/accuracy\.md", flat), "where it is from"
    assert re.search(r"\d\.\d+ %|\+?\d\.\d points", flat), "the figure to expect"
    assert "Time: " in flat and re.search("[Ss]een by us", flat), "how long it takes, and whether we have seen it"
    lines = [line.strip() for line in text.splitlines() if line.startswith("    teachonce ")]
    commands = [parse_command(shlex.split(line)[1:]) for line in lines]
    assert commands[-1].recipe == name


@pytest.mark.parametrize("name", RECIPES)
def test_the_student_is_there(name: str) -> None:
    student = parse_model_spec(recipe_options(name)["student"])
    if student.name.startswith(("assemble_", "tf_")):
        register_models()
    assert timm.is_model(student.name)


@pytest.mark.parametrize("name", ["vanilla_resnet50", "assemble_resnet50", "assemble_resnet152"])
def test_the_walkthroughs_networks_start_as_their_shortcuts(name: str) -> None:
    """Zero gamma, which both of its published training scripts ask for."""
    narrow = recipe_options(name)["student"] + ",num_filters=8"
    student = build_student(narrow, 5)
    blocks = [module for module in student.modules() if isinstance(module, Bottleneck)]
    assert blocks and all(not block.conv3.get_submodule("bn").weight.any() for block in blocks)


def test_the_walkthroughs_numbers() -> None:
    """The public training script of Assemble-ResNet-50, option by option."""
    config = build("assemble_resnet50", devices=8)
    assert (config.lr, config.lr_batch, config.batch_size * config.devices) == (0.4, 1024, 1024)
    assert (config.schedule, config.warmup_epochs, config.warmup_prefix, config.epochs) == ("cosine", 5, True, 600)
    assert (config.momentum, config.weight_decay, config.label_smoothing, config.kd_temp) == (0.9, 1e-4, 0.1, 1)
    assert (config.policy, config.mixup_type, config.mixup_alpha) == ("crop+autoaugment", 1, 0.2)
    assert (config.size, config.eval_size, config.eval_crop_frac, config.eval_resize) == (224, 256, 0.875, None)
    assert (config.crop_scale, config.crop_ratio, config.object_covered) == ((0.05, 1), (0.75, 1.33), 0.1)
    assert build("assemble_resnet152").eval_resize == 257 and build("vanilla_resnet50").epochs == 120


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--epochs", "7"], {"epochs": 7}),
        (["--epochs=7", "--lr=0.1"], {"epochs": 7, "lr": 0.1}),
        (["--label_smoothing", "0"], {"label_smoothing": 0.0}),
        (["--crop-scale", "0.5", "1"], {"crop_scale": (0.5, 1.0)}),
        (["--no-channels-last", "--no-warmup-prefix"], {"channels_last": False, "warmup_prefix": False}),
        (["--student", "timm:resnet18"], {"student": "timm:resnet18"}),
        (["--mixup-type", "batch"], {"mixup_type": "batch"}),
    ],
)
def test_flags_override_wherever_they_stand(words: list[str], expected: dict) -> None:
    # The warm-up of 5 epochs must fit into what is asked for.
    settings = {"warmup_epochs": 1.0, **expected}
    for line in (
        [*BASE, "--recipe", "assemble_resnet50", "--warmup-epochs", "1", *words],
        [*BASE, *words, "--warmup-epochs", "1", "--recipe=assemble_resnet50"],
    ):
        if "epochs" in expected:
            line = [*line, "--validation-epochs", "1"]
            settings["validation_epochs"] = 1
        assert parse_command(line) == build("assemble_resnet50", **settings)


def test_only_train_has_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ablate", "--recipe", "cifar_resnet"], ["extract", "--list-recipes"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2 and f"not an option of {words[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--recipe"], ["--recipe", "--data", "d", "--out", "o"]])
def test_a_recipe_without_a_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", *words])
    assert end.value.code == 2 and "--recipe TEXT: expected 1 value" in capsys.readouterr().err


def test_help_beside_a_recipe_shows_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--recipe", "assemble_resnet50", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for text in ("Number of epochs. (default: 600)", "(default: timm:assemble_resnet50)", "--data PATH"):
        assert text in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--kd-temp", "0"],  # no logits: the recipe's mixup, smoothing and crops go on
        ["--schedule", "step"],  # --warmup-prefix is the cosine's
        ["--mixup-alpha", "0"],  # --mixup-type
        ["--object-covered", "0"],  # --object-boxes
        ["--label-weight", "0"],  # --label-smoothing
        ["--kd-weight", "0"],  # --kd-temp
        ["--teacher", "timm:resnet18"],  # --mixup-type is for batches
    ],
)
def test_a_recipes_own_options_may_be_idle(words: list[str]) -> None:
    store = [] if "--teacher" in words else ["--store", "s"]
    line = ["train", "--recipe", "assemble_resnet50", "--data", "d", "--out", "o", *store, *words]
    assert parse_command(line).recipe == "assemble_resnet50"


def test_an_option_beside_a_recipe_must_apply(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*BASE, "--recipe", "mobilenetv4_views", "--momentum", "0.8"])
    assert end.value.code == 2
    expected = "teachonce: --momentum 0.8: applies only with --optimizer sgd, found --optimizer adamw\n"
    assert capsys.readouterr().err == expected


def test_a_recipe_that_there_is_not_in_python() -> None:
    with pytest.raises(ConfigError, match="--recipe xyz: expected one of"):
        TrainConfig(data=Path("d"), out=Path("o"), student="s", recipe="xyz")


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--recipe resnet50_view: expected one of .* did you mean resnet50_views"):
        recipe_options("resnet50_view")
    with pytest.raises(SystemExit) as end:
        main([*BASE, "--recipe", "xyz"])
    assert end.value.code == 2
    assert "--recipe xyz: expected one of vanilla_resnet50, " in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--list-recipes"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed == describe_recipes() + "\n"
    assert all(f"\n{name}\n    " in f"\n{printed}" and f"--recipe {name} " in printed for name in RECIPES)


@pytest.mark.parametrize("name", NEEDS_STORE)
def test_kd_without_a_teacher_is_refused(name: str) -> None:
    if build_recipe(name).logits_from_records:
        assert build(name, store=()).logits == "records"
        return
    with pytest.raises(ConfigError, match="expected 0 without --store"):
        build(name, store=())


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images to train on, 8 to validate."""
    return write_digits(tmp_path_factory.mktemp("digits"), num_train=16, num_validation=8)


@pytest.fixture(scope="module")
def stores(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Fixed center logits, and two stored views that were mixed, by a network that hardly knows anything."""
    folder = tmp_path_factory.mktemp("stores")
    source = open_records(few_digits, "train")
    write_store(folder / "center", source, teacher_logits(source), offset=0)
    common = {"data": few_digits, "device": "cpu"}
    teacher = folder / "teacher"
    settings = {"epochs": 1, "size": 16, "batch_size": 8, "validation_split": None}
    train(TrainConfig(student="timm:test_resnet", out=teacher, **common, **settings))
    extract(
        ExtractConfig(
            teacher=f"run:{teacher}",
            out=folder / "views",
            policy="crop",
            views=2,
            mixup_alpha=0.2,
            gate_samples=0,
            **common,
        )
    )
    return {name: folder / name for name in ("center", "views")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*smaller than.*:UserWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_for_two_steps(
    name: str, few_digits: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    """At 64 px and without a warm-up."""
    options = recipe_options(name)
    store = stores["views" if options.get("label_weight") == 0 else "center"] if name in NEEDS_STORE else ()
    tiny = {"epochs": 1, "validation_epochs": 1, "warmup_epochs": 0.0, "batch_size": 8, "size": 64}
    tiny |= {"student": small_student(options["student"])}
    tiny |= {key: size for key, size in (("eval_size", 128), ("eval_resize", 129)) if key in options}
    places = {"data": few_digits, "out": tmp_path / "run", "store": store}
    result = train(build(name, device="cpu", precision="float32", **places, **tiny))
    (row,) = read_metrics(tmp_path / "run")
    assert (row["step"], result["steps"]) == (2, 2)
    assert (row["kd_loss"] > 0) == (name in NEEDS_STORE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kd-temp", "1"], "records"),
        ([], "records"),
        (["--kd-temp=0"], None),
        (["--kd_temp", "0.0"], None),
        (["--kd-temp", "2"], "records"),
        (["--kd-temp", "0.5"], "records"),
        (["--store", "S"], None),
        (["--teacher=timm:resnet18"], None),
    ],
)
def test_the_walkthroughs_recipes_read_the_logits_of_the_records(words: list[str], expected: str | None) -> None:
    line = ["train", "--recipe", "assemble_resnet50", "--data", "D", "--out", "R", *words]
    assert parse_command(line).logits == expected
