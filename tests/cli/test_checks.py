"""What is wrong with a command is said before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from teachonce.cli import checks
from teachonce.cli.main import main
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.training.config import TrainConfig
from tests.records.containers.test_webdataset import write_tars
from tests.support.small_data import run_config, write_image_folder, write_shards, write_store

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "lightning"}:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Blocker())
from teachonce.cli.main import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as end:
        print(end.code, flush=True)
"""
"""Runs a command a line, in a process in which nothing heavy can be imported; prints their exit codes."""
TRAIN = "train --student timm:resnet18 --out run"
COMMANDS = [
    ("extract --data nowhere --teacher timm:a --out o", 2, "nowhere: no such folder"),
    ("extract --data images --split test --teacher timm:a --out o", 2, "only train, expected test-NNNNN-of-NNNNN"),
    ("extract --data images --teacher tim:a --out o", 2, "model 'tim:a': expected timm:NAME"),
    ("extract --data images --teacher onnx:no.onnx --out o", 2, "no file no.onnx"),
    ("extract --data images --teacher run:images --out o", 2, "has no config.json"),
    ("extract --data images --teacher timm:a --out images", 1, "images: exists and is not a store"),
    ("extract --data images --teacher timm:a --out o --views-of images", 1, "images: is not a store"),
    ("extract --data images --teacher timm:a --out o --topk 3", 2, "--topk 3: applies only with --codec topk"),
    ("plan --data images --split test --teacher timm:a", 2, "only train, expected test"),
    ("plan --data images --teacher timm:a,sice=3", 2, "no option 'sice' for timm"),
    (f"{TRAIN} --data nowhere", 2, "nowhere: no such folder"),
    (f"{TRAIN} --data images", 2, "only train, expected validation"),
    (f"{TRAIN} --data images --validation-split none --store images", 1, "images: is not a store"),
    (f"{TRAIN} --data images --validation-split none --teacher tim:a", 2, "model 'tim:a'"),
    ("train --student x --data images --validation-split none --out o", 2, "model 'x': expected"),
    ("train --student timm:a --data images --validation-split none --out images", 1, "exists and is not a run"),
    (
        f"{TRAIN} --data images --validation-split none --batch-size 13",
        2,
        "the split has 12 records, expected at least",
    ),
    (
        f"{TRAIN} --data records --validation-split none --batch-size 4 --accumulate 3",
        2,
        "batch of 12; choose a",
    ),
    (
        f"{TRAIN} --data images --val-fraction 0.2 --batch-size 5 --devices 3",
        2,
        "on 3 devices: the split has 12",
    ),
    (f"{TRAIN} --data images --val-fraction 0.2 --val-seed 3 --batch-size 13", 2, "the split has 12 records"),
    (
        "ablate --student timm:a --data images --validation-split train --out o --batch-size 13 --teacher timm:b",
        2,
        "12 r",
    ),
    (f"{TRAIN} --data images --recipe xyz", 2, "--recipe xyz: expected one of"),
    (f"{TRAIN} --data images --bach-size 3", 2, "did you mean --batch-size?"),
    ("ablate --student timm:a --data images --validation-split train --out o --stores a,b", 1, "a: no such folder"),
    ("ablate --student timm:a --data images --validation-split train --out o --teacher x", 2, "model 'x'"),
    ("ablate --student timm:a --data images --validation-split train --out store --teacher x", 1, "is not an ablation"),
    ("evaluate --data images --model timm:a", 2, "only train, expected validation"),
    ("evaluate --data images --split train --model run:images", 2, "has no config.json"),
    ("predict tim:a images", 2, "model 'tim:a': is not the folder of a run"),
    ("predict images images", 2, "model 'images': is not the folder of a run (it has no config.json)"),
    ("predict no.onnx images", 2, "no file no.onnx"),
    ("predict timm:a images nowhere", 2, "nowhere: no such file or folder; expected an image or a folder of images"),
    ("predict timm:a", 2, "IMAGES none: expected at least one image"),
    ("predict timm:a images --csv records", 2, "records: is a folder; give a file with --csv"),
    ("evaluate --data images --split train --model timm:a --against tim:b", 2, "model 'tim:b'"),
    ("evaluate --data images --split train --model timm:a --store images", 1, "images: is not a store"),
    (
        "evaluate --data images --split train --model timm:a --csv images",
        2,
        "images: is a folder; give a file with --csv",
    ),
    ("export-onnx images --out o", 2, "model 'run:images': has no config.json"),
    ("export-onnx store --out o", 2, "store: is a store, expected a run; use export-logits for stores"),
    ("export-onnx run --out images", 2, "images: is a folder; give a file with --out"),
    ("export-onnx run --out o --int8 --data images", 2, "only train, expected validation"),
    ("export-weights run --out images", 2, "images: is a folder; give a file with --out"),
    ("evaluate --data images --model timm:a --csv store/plan.json/a.csv", 2, "plan.json is a file and not a folder"),
    (
        "ablate --data images --student timm:a --teacher timm:a --validation-split none --out o",
        2,
        "none: expected a split",
    ),
    ("export-logits images --out o", 2, "images: is not a store; export-logits exports the logits"),
    ("records --images nowhere --out o", 2, "nowhere"),
    ("merge images --data images --out o", 1, "images: is not a store"),
    ("import nowhere --data images --out o", 2, "nowhere: no such folder; expected one with train-"),
    ("inspect nowhere", 2, "nowhere: no such folder"),
    ("diff store run", 2, "store is a store, run a run: expected two of one kind"),
    ("verify --data images", 2, "verify: STORE missing"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_image_folder(folder / "images")
    write_store(folder / "store", write_shards(folder / "records"))
    return folder


def test_what_is_missing_is_said_before_torch_is_imported(folder: Path) -> None:
    (folder / "run").mkdir()
    preprocessing = Preprocessing(size_px=16, resize_px=16)
    (folder / "run" / "config.json").write_text(json.dumps(run_config("timm:test_resnet", preprocessing)))
    (folder / "run" / "student.safetensors").write_bytes(b"")
    lines = "\n".join(line for line, _, _ in COMMANDS)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER], input=lines, capture_output=True, text=True, cwd=folder, timeout=120
    )
    codes, said = [int(code) for code in done.stdout.split()], done.stderr.splitlines()
    assert len(codes) == len(said) == len(COMMANDS), done.stderr
    for (line, code, expected), found, message in zip(COMMANDS, codes, said, strict=True):
        assert (found, expected in message) == (code, True), (line, found, message)


def test_a_program_that_needs_torch_is_stopped_by_the_blocker(folder: Path) -> None:
    """The test above would pass unseen if nothing were blocked."""
    line = "evaluate --data images --split train --model timm:test_resnet"
    done = subprocess.run([sys.executable, "-c", BLOCKER], input=line, capture_output=True, text=True, cwd=folder)
    assert done.stdout.split() == ["1"] and "was imported" in done.stderr


def test_a_baseline_does_not_read_its_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--kd-temp 0 makes the baseline of a command: a store that is gone is no reason to stop."""
    asked = []
    monkeypatch.setattr("teachonce.training.train.train", asked.append)
    monkeypatch.chdir(folder)
    words = (
        "train --student timm:a --data images --validation-split none --out o --kd-temp 0 --store gone --batch-size 4"
    )
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 0 and len(asked) == 1


@pytest.mark.parametrize("name", ["data", "data/train-000000.tar", "data/train-{000000..000001}.tar"])
def test_large_tars_are_not_read_to_count_their_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_tars(tmp_path / "data")

    def count() -> int | None:
        config = TrainConfig(data=tmp_path / name, student="timm:a", out=tmp_path / "run", validation_split="none")
        return checks._count_records(config)

    monkeypatch.setattr(checks, "MAX_BYTES_SCANNED", 10)
    assert count() is None and not list(folder.glob("*.json"))
    if "{" in name:
        return
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counted = count()
    assert counted == (7 if name == "data" else 3)
    # Their index is beside them now, so the next time it is quick whatever their size.
    monkeypatch.setattr(checks, "MAX_BYTES_SCANNED", 10)
    assert count() == counted


def test_a_link_that_leads_nowhere_beside_the_images_ends_nothing(tmp_path: Path):
    images = write_image_folder(tmp_path / "images")
    (images / "labels.csv.gz").symlink_to(tmp_path / "gone")
    config = TrainConfig(data=images, student="timm:a", out=tmp_path / "run", validation_split="none")
    assert checks._count_records(config) == 12
