"""The demo's table: no claim that the noise could have made; its data and its printed commands."""

import json
import shlex

import pytest
from PIL import Image

from teachonce.cli.config import DemoConfig
from teachonce.cli.demo import (
    NUM_TRAIN,
    SIDE_PX,
    Comparison,
    Row,
    demo,
    render,
    render_table,
    write_digits,
    write_labeled,
)
from teachonce.cli.main import parse_command
from teachonce.extraction.config import ExtractConfig
from teachonce.interop.config import MergeConfig
from teachonce.options import command_line
from teachonce.runs.run import Run
from tests.support.chromium import measure_page


def rows(*values):
    return Comparison("title", tuple(Row(name, tuple(top1), 10, 1.0) for name, top1 in zip("ab", values, strict=True)))


def test_a_difference_within_the_noise_is_called_so():
    assert "within the noise" in render_table(rows((0.97, 0.98, 0.99), (0.975, 0.985, 0.99)))
    clear = render_table(rows((0.90, 0.91, 0.90), (0.97, 0.98, 0.97)))
    assert "b: +7.00 points against a (95 % interval +5." in clear and "within the noise" not in clear
    assert "p = 0.0001" in clear
    assert "too few seeds" in render_table(rows((0.90,), (0.97,)))


def test_the_digits_are_split_once(tmp_path):
    write_digits(tmp_path)
    train, validation = (sorted((tmp_path / split).glob("*/*.jpg")) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (NUM_TRAIN, 1797 - NUM_TRAIN)
    assert not {path.name for path in train} & {path.name for path in validation}
    assert {path.parent.name for path in train} == {str(digit) for digit in range(10)}
    with Image.open(train[0]) as image:
        assert image.size == (SIDE_PX, SIDE_PX) and image.mode == "L"
    stamp = train[0].stat().st_mtime_ns
    write_digits(tmp_path)
    assert train[0].stat().st_mtime_ns == stamp
    write_labeled(tmp_path, tmp_path / "labeled")
    labeled = sorted((tmp_path / "labeled").glob("train/*/*.jpg"))
    assert [path.parent.name for path in labeled] == [str(digit) for digit in range(10) for _ in range(10)]
    assert {path.name for path in labeled} <= {path.name for path in train}


@pytest.mark.parametrize(
    "command, config",
    [
        ("merge", MergeConfig(store="s", data="d", out="o")),
        ("extract", ExtractConfig(data="d", teacher="run:t", out="o", policy="crop", views=5, crop_scale=(0.6, 1.0))),
    ],
)
def test_printed_commands_mean_the_same(command, config):
    parsed = parse_command([command, *shlex.split(command_line(config))])
    assert command_line(parsed) == command_line(config)


@pytest.mark.slow
def test_the_page_fits_a_phone(tmp_path):
    page = tmp_path / "demo.html"
    page.write_text(render([rows((0.90, 0.91, 0.90), (0.97, 0.98, 0.97)), rows((0.8, 0.82, 0.84), (0.97, 0.98, 0.97))]))
    measured = measure_page(page, 400, tmp_path)
    assert measured["width"] <= 400 and not measured["small"]


@pytest.mark.slow
def test_the_whole_demo_with_one_seed(tmp_path, capsys):
    demo(DemoConfig(out=tmp_path / "demo", seeds=1))
    text = capsys.readouterr().out
    assert "labels only" in text and "image/logit" in text and "stored views" in text
    few, none = json.loads((tmp_path / "demo" / "table.json").read_text())[1]["rows"]
    assert (few["name"], none["name"]) == ("100 labels", "no labels, stored views of all")
    assert none["top1"][0] > few["top1"][0] + 0.05
    page = (tmp_path / "demo" / "demo.html").read_text()
    assert "100 labels" in page and "<svg" in page
    # Equal steps.
    few_run, none_run = (Run(tmp_path / "demo" / f"student-{name}-0") for name in ("few", "none"))
    assert few_run.metrics[-1]["step"] == none_run.metrics[-1]["step"]
    assert (tmp_path / "demo" / "student-views-0" / "report.html").exists()
