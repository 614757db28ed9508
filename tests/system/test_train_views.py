"""Training from stored views: growing stores, several stores, ranks, and what is said where the agreement is broken."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from teachonce.errors import ConfigError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.runs.metrics import read_metrics
from teachonce.storage.sealed_json import SEAL, sealed_bytes
from teachonce.store.manifests import finalize_store
from teachonce.store.store import Store
from teachonce.training.callbacks import EpochRecorder, TeacherPassed
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.support.small_data import remove_manifests
from tests.support.trainings import forked
from tests.training.test_train import config, curve


def weak_teacher_warnings(function, *arguments):
    """Call it; the small teacher's warnings are test_guards' business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def replay(data: Path, out: Path, **settings) -> TrainConfig:
    """A training on stored views, beside which no options of the student's own are allowed."""
    return config(data, out, **({"crop_scale": (0.08, 1.0), "flip_prob": 0.5} | settings))


@pytest.fixture(scope="module")
def teacher(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of two epochs."""
    path = tmp_path_factory.mktemp("teacher") / "run"
    train(config(digits, path))
    return f"run:{path}"


@pytest.fixture(scope="module")
def view_store(digits: Path, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four stored views of the digits, in two files."""
    path = tmp_path_factory.mktemp("views") / "store"
    extract(
        ExtractConfig(
            data=digits,
            teacher=teacher,
            out=path,
            policy="crop",
            crop_scale=(0.5, 1.0),
            views=4,
            views_per_file=2,
            codec="float32",
            gate_samples=0,
            device="cpu",
        )
    )
    return path


def test_a_run_goes_on_with_the_views_that_it_began_with(digits: Path, teacher: str, view_store: Path, tmp_path: Path):
    """A store that grew meanwhile, as while it was being extracted, changes nothing for a run that goes on."""
    growing = tmp_path / "growing"
    settings = {
        "data": digits, "teacher": teacher, "out": growing, "policy": "crop", "crop_scale": (0.5, 1.0),
        "views_per_file": 2, "codec": "float32", "gate_samples": 0, "device": "cpu",
    }  # fmt: skip
    extract(ExtractConfig(views=2, **settings))
    begun = replay(digits, tmp_path / "run", store=growing)
    weak_teacher_warnings(train, begun)
    extract(ExtractConfig(views=4, **settings))
    assert Store(growing).num_views == 4
    (tmp_path / "run" / "result.json").unlink()
    weak_teacher_warnings(train, begun)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["store_views"] == 2
    limited = replay(digits, tmp_path / "limited", store=view_store, views=2)
    weak_teacher_warnings(train, limited)
    assert curve(tmp_path / "limited") == curve(tmp_path / "run")
    with pytest.raises(StoreError, match="5 views requested, the store has 4 complete ones"):
        train(replay(digits, tmp_path / "beyond", store=view_store, views=5))


def test_weights_of_several_stores(digits: Path, view_store: Path, tmp_path: Path) -> None:
    """All weight on one of two stores is that store alone."""
    other = tmp_path / "other"
    shutil.copytree(view_store, other)
    # The same numbers, of what calls itself another teacher: one store twice is refused.
    remove_manifests(other)
    plan = json.loads((other / "plan.json").read_text())
    plan["teacher"]["spec"] = "run:elsewhere"
    del plan[SEAL]
    (other / "plan.json").write_bytes(sealed_bytes(plan))
    assert finalize_store(other) == 4
    alone = replay(digits, tmp_path / "alone", store=view_store)
    both = replay(digits, tmp_path / "both", store=(view_store, other), store_weights="0,2")
    for settings in (alone, both):
        weak_teacher_warnings(train, settings)
    assert curve(tmp_path / "both") == curve(tmp_path / "alone")
    assert json.loads((tmp_path / "both" / "result.json").read_text())["store"] == f"{view_store}+{other}"


@pytest.mark.parametrize("weights", ["0.5", "1,2,3", "a,b", "-1,2", "0,0"])
def test_wrong_weights_of_stores(tmp_path: Path, weights: str) -> None:
    with pytest.raises(ConfigError, match="--store-weights"):
        TrainConfig(data=tmp_path, student="s", out=tmp_path, store=(tmp_path, tmp_path), store_weights=weights)


def test_what_breaks_the_agreement_is_said(digits: Path, view_store: Path, tmp_path: Path) -> None:
    for option, phrase in (({"own_views": True}, "--own-views"), ({"mixup_alpha": 0.2}, "--mixup-alpha: the teacher")):
        with pytest.warns(UserWarning) as caught:
            train(replay(digits, tmp_path / phrase[2:5], store=view_store, **option))
        said = [str(warning.message) for warning in caught if phrase in str(warning.message)]
        assert len(said) == 1 and "teacher and student do not see the same" in said[0]
    assert curve(tmp_path / "own") != curve(tmp_path / "mix")


def test_own_views_are_drawn_as_their_options_say(digits: Path, view_store: Path, tmp_path: Path) -> None:
    for crop_scale in ((0.5, 1.0), (0.7, 1.0)):
        own = config(digits, tmp_path / str(crop_scale[0]), store=view_store, own_views=True, crop_scale=crop_scale)
        weak_teacher_warnings(train, own)
    assert curve(tmp_path / "0.5") != curve(tmp_path / "0.7")


def test_evaluation_every_few_epochs(digits: Path, digits_store: Path, tmp_path: Path) -> None:
    weak_teacher_warnings(train, config(digits, tmp_path / "r", store=digits_store, epochs=4, validation_epochs=2))
    rows = read_metrics(tmp_path / "r")
    assert [row["validation_top1"] is None for row in rows] == [True, False, True, False]
    with pytest.raises(ConfigError, match="--validation-epochs 3: expected a divisor of --epochs 4"):
        config(digits, tmp_path / "x", epochs=4, validation_epochs=3)


def test_a_student_that_passes_its_teacher_is_told_so(tmp_path: Path) -> None:
    recorder = EpochRecorder(tmp_path, 3, 1)
    # Two standard errors of 256 answers are 0.062: the teacher may be as good as a student of 0.55.
    guard = TeacherPassed(0.5, 256, recorder)
    for top1, expected in ((0.55, 0), (0.57, 1), (0.7, 0)):
        recorder.rows.append({"epoch": len(recorder.rows) + 1, "train_top1": top1})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            guard.on_train_epoch_start(None, None)
        assert len(caught) == expected
        if expected:
            said = str(caught[0].message)
            assert "epoch 2: the student's top-1 on its training views is 0.570, above the teacher's 0.500" in said
            assert "on 256 of them by more than two standard errors" in said


@pytest.mark.parametrize("top1", [0.0, 1.0])
def test_a_sample_of_one_answer_alone_has_an_error_too(tmp_path: Path, top1: float) -> None:
    recorder = EpochRecorder(tmp_path, 3, 1)
    recorder.rows.append({"epoch": 1, "train_top1": min(1.0, top1 + 0.01)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TeacherPassed(top1, 20, recorder).on_train_epoch_start(None, None)


@pytest.mark.slow
def test_three_devices_replay_the_same_views(digits: Path, view_store: Path, tmp_path: Path) -> None:
    """Three ranks of a third of the batch see what one sees; the first epoch's mean losses are of the same images."""
    one = replay(digits, tmp_path / "one", store=view_store, batch_size=24, epochs=1)
    three = replace(one, out=tmp_path / "three", batch_size=8, devices=3)
    weak_teacher_warnings(train, one)
    forked(train, three)
    rows = [read_metrics(tmp_path / name)[-1] for name in ("one", "three")]
    assert rows[0]["step"] == rows[1]["step"] == 4
    # Batch norm sees 8 images instead of 24, so the losses are near, not equal.
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=0.25)
