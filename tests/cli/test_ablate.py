"""The ablation: every arm is trained as it says, at equal steps, and the whole resumes."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from teachonce.cli.ablate import (
    ArmConfig,
    _check_parts,
    _given_stores,
    _student_config,
    _train_students,
    _with_own_threads,
    ablate,
)
from teachonce.cli.config import AblateConfig
from teachonce.engine.stop_long_work import Interrupted
from teachonce.errors import ConfigError, PlanMismatchError, RecordError, TeachonceError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.runs.run import Run
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.support.small_data import write_digits, write_shards, write_store
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.warm_python import warm_python
from tests.training.test_interruption import Stopper
from tests.training.test_train import GRACE_SECONDS, tensor_bytes

# The teacher of a few steps earns a warning, which is tested in test_guards.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*contradicts them more often:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is near chance:UserWarning"),
]

COMMON = {
    "student": "timm:test_resnet",
    "epochs": 2,
    "batch_size": 32,
    "size": 16,
    "eval_crop_frac": 1.0,
    "crop_scale": (0.5, 1.0),
    "flip_prob": 0.0,
    "lr": 0.05,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "run"
    train(TrainConfig(data=digits, out=path, **COMMON))
    return f"run:{path}"


@pytest.fixture(scope="module")
def ablation(digits, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "out"
    config = AblateConfig(
        data=digits,
        out=out,
        teacher=teacher,
        arms="labels,center,views:1,views:2,own:2,online",
        seeds=2,
        codec="float32",
        **COMMON,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the teacher of a few steps earns some, which test_guards has
        return config, ablate(config)


def labels_alone(digits, out, **more):
    settings = {"arms": "labels", "teacher": "run:none", "seeds": 3, "grace_seconds": GRACE_SECONDS, **more}
    return AblateConfig(data=digits, out=out, **COMMON | settings)


def test_each_arm_takes_of_the_techniques_what_it_can(digits, teacher, tmp_path):
    """Crops by objects, AutoAugment, mixup in pairs: no arm is refused, none warns that an option does nothing."""
    techniques = {"policy": "crop+autoaugment", "object_covered": 0.1, "mixup_alpha": 0.2, "mixup_type": 1}
    # Each of these needs another option, or a teacher, that some arms do not have.
    techniques |= {"object_boxes": "image", "mix_prob": 0.9, "erase_prob": 0.1, "erase_scale": (0.02, 0.1)}
    techniques |= {
        "kd_temp": 2.0,
        "kd_weight": 0.5,
        "label_weight": 0.0,
        "label_smoothing": 0.1,
        "validation_data": digits,
    }
    arms = "labels,center,views:1,online"
    common = COMMON | {"epochs": 1, "eval_crop_frac": 0.875}
    config = AblateConfig(data=digits, out=tmp_path, teacher=teacher, arms=arms, seeds=1, **common, **techniques)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ablate(config)
    assert not [warning for warning in caught if "has no effect" in str(warning.message)]
    runs = {path.name: json.loads((path / "config.json").read_text()) for path in tmp_path.glob("runs/*")}
    pairs = {name.removesuffix("-seed0"): run["mixup_type"] for name, run in runs.items()}
    assert pairs == {
        "labels-only": 1,
        "fixed-centre-logits": 1,
        "1-stored-view": "batch",
        "online-teacher": "batch",
    }
    smoothing = {name.removesuffix("-seed0"): run["label_smoothing"] for name, run in runs.items()}
    assert smoothing == dict.fromkeys(smoothing, 0.0) | {"labels-only": 0.1}, "the others have no loss of the labels"
    mixing = {name.removesuffix("-seed0"): run["mix_prob"] for name, run in runs.items()}
    assert mixing == dict.fromkeys(mixing, 1.0) | {"online-teacher": 0.9}


def test_every_arm_at_equal_steps(ablation):
    config, arms = ablation
    names = ["labels only", "fixed centre logits", "1 stored view", "2 stored views", "2 views, not replayed"]
    assert [arm.name for arm in arms] == [*names, "online teacher"]
    results = [json.loads(path.read_text()) for path in config.out.glob("runs/*/result.json")]
    assert len(results) == 12 and {result["steps"] for result in results} == {6}
    assert [arm.teacher_forwards for arm in arms] == [0, 96, 96, 192, 192, 2 * 6 * 32]
    assert all(len(arm.top1) == len(arm.curves) == 2 for arm in arms)
    assert len(Store(config.out / "stores" / "views").shards) == 1


def test_as_many_stored_views_as_epochs_are_the_online_teacher(ablation):
    """With float32 logits nothing but the teacher's batch is different: the views are the same, drawn by one seed."""
    config, _ = ablation
    for seed in range(2):
        stored = Run(config.out / "runs" / f"2-stored-views-seed{seed}").result
        online = Run(config.out / "runs" / f"online-teacher-seed{seed}").result
        # float32 sums in another order; six steps of SGD magnify that a little.
        assert stored["train_loss"] == pytest.approx(online["train_loss"], abs=1e-4)
        fixed = Run(config.out / "runs" / f"fixed-centre-logits-seed{seed}").result
        assert abs(fixed["train_loss"] - online["train_loss"]) > 1e-3


def test_loss_weights_sum_to_the_labels_arms(ablation):
    """1 + 1 at the labels' learning rate would be about twice the gradient."""
    config, arms = ablation
    runs = [json.loads(path.read_text()) for path in config.out.glob("runs/*/config.json")]
    weights = {(run["label_weight"], run["kd_weight"]) for run in runs if run["store"] or run["teacher"]}
    assert weights == {(0.5, 0.5)} and len(runs) == 12
    assert {run["label_weight"] for run in runs if not (run["store"] or run["teacher"])} == {1.0}
    assert {arm.label_weight + arm.kd_weight for arm in arms} == {1.0} and {arm.lr for arm in arms} == {0.05}
    assert "Loss weights sum to 1 in every arm" in (config.out / "ablation.md").read_text()
    given = _student_config(dataclasses.replace(config, total_weight="given"), ArmConfig("KD", {"teacher": "t"}), 0)
    assert (given.label_weight, given.kd_weight) == (1.0, 1.0)


def test_what_is_written(ablation):
    config, arms = ablation
    table = (config.out / "ablation.md").read_text()
    assert "teachonce ablate" in table.splitlines()[0] and table.count("\n| ") == 7
    assert "Fewer than 3 seeds" in table
    saved = json.loads((config.out / "ablation.json").read_text())
    assert [row["name"] for row in saved] == [arm.name for arm in arms]
    assert (config.out / "ablation.svg").read_text().count("online teacher") >= 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_command_again_trains_nothing(ablation):
    config, arms = ablation
    stamps = {path: path.stat().st_mtime_ns for path in config.out.glob("runs/*/*.json")}
    again = ablate(config)
    assert [arm.top1 for arm in again] == [arm.top1 for arm in arms]
    assert {path: path.stat().st_mtime_ns for path in config.out.glob("runs/*/*.json")} == stamps


@pytest.mark.parametrize(
    ("arms", "names", "said"),
    [
        ("labels", ["labels only", "store"], "gives 1 arm, labels of --arms one more\n"),
        ("", ["store"], "gives 1 arm; --arms without labels leaves out the baseline\n"),
        (
            "labels,center,views:4,online",
            ["labels only", "store"],
            "one more; of --arms center, views:4, online are left out: they need --teacher without --stores",
        ),
        ("views:4", ["store"], "the baseline; of --arms views:4 are left out"),
    ],
)
def test_what_stores_imply_for_the_arms_is_said(tmp_path, capsys, arms, names, said):
    data = write_shards(tmp_path / "data")
    write_store(tmp_path / "store", data)
    config = AblateConfig(data=data, out=tmp_path / "out", stores=f" {tmp_path / 'store'} ", arms=arms, **COMMON)
    assert [arm.name for arm in _given_stores(config)] == names
    assert config.parse_stores() == [(tmp_path / "store",)]
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "arms"),
    [
        ("crop+flip/a", [["crop+flip/a"]]),
        ("crop+flip/a, crop+flip/b+crop+flip/a", [["crop+flip/a"], ["crop+flip/b", "crop+flip/a"]]),
        ("A,x,y,x,y+A", [["A"], ["x,y"], ["x,y", "A"]]),
        ("c++/a", [["c++/a"]]),
        ("A,none+A", [["A"], ["none", "A"]]),
        ("A,B,A+./B", [["A"], ["B"], ["A", "B"]]),
    ],
)
def test_a_store_whose_name_has_what_separates_names(tmp_path, monkeypatch, text, arms):
    monkeypatch.chdir(tmp_path)
    data = write_shards(tmp_path / "data")
    write_store(tmp_path / "A", data)
    for name in ("B", "A+B", "x,y", "crop+flip/a", "crop+flip/b", "c++/a"):
        shutil.copytree("A", name)
    config = AblateConfig(data=data, out=tmp_path / "out", stores=text, arms="", **COMMON)
    assert config.parse_stores() == [tuple(map(Path, parts)) for parts in arms]
    with pytest.raises(
        ConfigError, match=r"^--stores A,A\+B: there is more than one way to read it, as A\+B is a store"
    ):
        dataclasses.replace(config, stores="A,A+B")


def test_arms_whose_runs_would_have_one_folder_are_refused(tmp_path):
    data = write_shards(tmp_path / "data")
    stores = [tmp_path / "a b", tmp_path / "a-b"]
    for store in stores:
        write_store(store, data)
    config = AblateConfig(data=data, out=tmp_path / "out", stores=",".join(map(str, stores)), arms="", **COMMON)
    with pytest.raises(ConfigError, match="two arms would have the same name"):
        _given_stores(config)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
def test_other_views_of_labels_alone_are_said(tmp_path, capsys, scale):
    """Beside a store the arm of labels draws the student's own views, whatever the store's were drawn by."""
    data = write_color_shards(tmp_path / "data", sizes=(4,))
    teacher, store = write_color_teacher(tmp_path / "teacher.onnx"), tmp_path / "store"
    views = {"policy": "crop", "crop_scale": scale, "flip_prob": 0.0, "gate_samples": 0, "device": "cpu"}
    extract(ExtractConfig(data=data, teacher=teacher, out=store, **views))
    options = COMMON | {"crop_scale": (0.08, 1.0)}
    _given_stores(AblateConfig(data=data, out=tmp_path / "out", stores=str(store), arms="labels", **options))
    said = capsys.readouterr().err
    phrase = "ablate: labels only: the student draws views by --policy crop --crop-scale 0.08 1.0 --flip-prob 0.0, and"
    assert (phrase in said) == ("are by --policy crop --crop-scale 0.5 1.0" in said) == (scale != (0.08, 1.0))


@pytest.mark.slow
def test_stores_that_are_there(ablation, digits, teacher, tmp_path, capsys):
    config, _ = ablation
    first = config.out / "stores" / "views"
    second = tmp_path / "second"
    extract(ExtractConfig(data=digits, teacher=teacher, out=second, views_of=first, codec="float16", device="cpu"))
    arms = ablate(
        AblateConfig(
            data=digits,
            out=tmp_path / "out",
            stores=f"{first},{second},{first}+{second}",
            arms="labels",
            seeds=1,
            jobs=2,
            **COMMON,
        )
    )
    assert [arm.name for arm in arms] == ["labels only", "views", "second", "views + second"]
    assert "ablate: --stores gives 3 arms, labels of --arms one more\n" in capsys.readouterr().err
    # Two stores of one teacher are that teacher.
    losses = [Run(tmp_path / "out" / "runs" / f"{name}-seed0").result["train_loss"] for name in ("views", "second")]
    both = Run(tmp_path / "out" / "runs" / "views-+-second-seed0").result["train_loss"]
    np.testing.assert_allclose(losses, both, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_students_of_a_store_that_grew_have_its_first_views(digits, teacher, tmp_path, capsys):
    """Those that began before and after are shown as one arm."""
    store = tmp_path / "store"
    extraction = ExtractConfig(
        data=digits, teacher=teacher, out=store, policy="crop", views=1, codec="float16", device="cpu", gate_samples=0
    )
    extract(extraction)
    common = COMMON | {"epochs": 1, "crop_scale": (0.08, 1.0), "flip_prob": 0.5}
    config = AblateConfig(data=digits, out=tmp_path / "out", stores=str(store), arms="", seeds=1, **common)
    ablate(config)
    extract(dataclasses.replace(extraction, views=2))
    capsys.readouterr()
    (arm,) = ablate(dataclasses.replace(config, seeds=2))
    assert "ablate: store: 1 of 2 views are used, as its students in" in capsys.readouterr().err
    runs = [Run(tmp_path / "out" / "runs" / f"store-seed{seed}") for seed in range(2)]
    assert [run.store_views for run in runs] == [1, 1] and arm.teacher_forwards == 96
    (other,) = _given_stores(dataclasses.replace(config, out=tmp_path / "other"))
    assert (other.num_views, other.settings["views"]) == (2, 2), "also when it grows before the last has started"
    _check_parts(config, [other])
    begun = runs[1].config | {"store_parts": [2]}
    (runs[1].path / "config.json").write_text(json.dumps(begun))
    with pytest.raises(PlanMismatchError, match=r"records were added to the store since students of store began"):
        ablate(dataclasses.replace(config, seeds=2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"arms": "labels,views"}, "--arms views: expected labels, center, online, views:V or own:V"),
        ({"arms": "labels,labels"}, "expected each arm once"),
        ({"seeds": 0}, "--seeds 0"),
        ({"stores": "a,,b", "teacher": None}, "--stores a,,b: expected stores as A,B,A+B, none of them empty"),
        ({"label_weight": 0.0, "kd_weight": 0.0}, "--kd-weight 0.0: expected above 0 with --label-weight 0"),
        ({"teacher": None}, "--teacher None: expected a model SPEC, or --stores"),
        (
            {"arms": "views:2,own:2", "cutmix_alpha": 1.0},
            "--arms own:2: expected arms without own:V, or no --cutmix-alpha",
        ),
    ],
)
def test_wrong_commands(settings, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        AblateConfig(**{"data": tmp_path, "out": tmp_path / "o", "teacher": "run:x", **COMMON, **settings})
    assert message in str(error.value)


def test_a_learning_rate_that_would_rise_is_refused_before_a_store_is_made(digits, tmp_path):
    settings = COMMON | {"lr": 0.1, "lr_batch": 1024, "min_lr": 0.05}
    with pytest.raises(ConfigError, match=r"--min-lr 0\.05: expected at most 0\."):
        ablate(AblateConfig(data=digits, out=tmp_path / "out", teacher="run:none", arms="views:2", **settings))
    assert not (tmp_path / "out").exists()


def test_all_calls_of_an_extraction_count(digits, tmp_path, monkeypatch):
    """One that was interrupted, one that went on, and one that found all there, of 10 s each."""
    files = iter(["first", "second", None])

    def fake(extraction):
        extraction.out.mkdir(parents=True, exist_ok=True)
        name = next(files)
        if name is not None:
            (extraction.out / name).touch()
        if name == "first":
            raise KeyboardInterrupt

    clock = itertools.count(step=10)
    program = sys.modules["teachonce.cli.ablate"]
    monkeypatch.setattr(program, "extract", fake)
    monkeypatch.setattr(program, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = AblateConfig(data=digits, out=tmp_path / "o", teacher="run:x", arms="labels,views:1", seeds=1, **COMMON)
    with pytest.raises(KeyboardInterrupt):
        program._make_stores(config)
    program._make_stores(config)
    program._make_stores(config)
    assert json.loads((tmp_path / "o" / "extractions.json").read_text()) == {"views": 20}
    own, other = tmp_path / "o" / "stores" / "views", tmp_path / "other" / "views"
    assert program._extraction_seconds(config, own.parent / ".." / "stores" / "views") == 20
    assert program._extraction_seconds(config, other) == 0, "of --stores, with the name of an own one"


def test_without_validation_there_is_nothing_to_compare(digits, tmp_path):
    """Said before anything is trained."""
    with pytest.raises(ConfigError, match="--validation-split none: expected a split: ablate compares validation acc"):
        AblateConfig(
            data=digits, out=tmp_path / "o", teacher="run:x", arms="labels", seeds=1, validation_split="none", **COMMON
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_configuration_is_refused(ablation):
    """Finished students of other settings must not be shown under a new command line."""
    config, _ = ablation
    before = (config.out / "ablation.md").read_text()
    with pytest.raises(PlanMismatchError, match=r"lr was 0\.05, now 0\.5"):
        ablate(dataclasses.replace(config, lr=0.5))
    assert (config.out / "ablation.md").read_text() == before


def test_another_configuration_is_refused_before_anything_is_done(digits, tmp_path, monkeypatch):
    """A store would be extracted and a student of the new arm trained before one of an old arm is looked at."""
    config = labels_alone(digits, tmp_path / "out", seeds=1)
    ablate(config)
    before = sorted(config.out.rglob("*"))
    monkeypatch.setattr("teachonce.cli.ablate.extract", pytest.fail)
    monkeypatch.setattr("teachonce.cli.ablate.train", pytest.fail)
    with pytest.raises(PlanMismatchError, match=r"labels-only-seed0: was started with .*: lr was 0\.05, now 0\.5; "):
        ablate(dataclasses.replace(config, arms="views:1,labels", lr=0.5))
    assert sorted(config.out.rglob("*")) == before
    # Of a version without the option: the default.
    path = config.out / "runs" / "labels-only-seed0" / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in saved.items() if name != "accumulate"}))
    monkeypatch.undo()
    assert len(ablate(config)) == 1


@pytest.mark.parametrize("begun", ["stores", "runs", "logs", ".hidden"])
def test_a_folder_of_something_else_is_refused(digits, tmp_path, begun):
    write_store(tmp_path / "store", write_shards(tmp_path / "data"))
    for out in (tmp_path / "store", tmp_path / "data", tmp_path / "store" / "plan.json", digits):
        with pytest.raises(TeachonceError, match=f"^{out}: exists and is not an ablation; choose another --out"):
            ablate(labels_alone(digits, out))
    assert not (digits / "logs").exists()
    (tmp_path / "out" / begun).mkdir(parents=True)
    labels_alone(digits, tmp_path / "out").check_folder()


def test_a_signal_stops_the_student_at_hand_and_the_ablation(digits, tmp_path, monkeypatch, capsys):
    """In this process; what was trained is kept, and the same command resumes within the epoch."""
    common = COMMON | {"batch_size": 8, "grace_seconds": GRACE_SECONDS}
    config = AblateConfig(
        data=digits, out=tmp_path / "out", arms="labels", teacher="run:none", seeds=2, jobs=1, **common
    )
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    ablate(whole)
    stopper = Stopper(monkeypatch)
    stopper.plan("training_step", 24 + 5, signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        ablate(config)
    assert ended.value.code == 143
    *_, progress, last = capsys.readouterr().err.splitlines()
    assert last == "ablate: interrupted; 1 of 2 students are trained. Run the same command to resume"
    assert progress.startswith("ablate: stopped at 2 of 4 epochs in ")
    log = (config.out / "logs" / "labels-only-seed1.log").read_text()
    assert "training: interrupted in epoch 1 at step 5 of 12; checkpoint saved." in log
    stopper.plan("training_step", 0)
    ablate(config)
    assert stopper.num_calls["training_step"] == 24 - 5
    assert "ablate: done 4 of 4 epochs in " in capsys.readouterr().err
    for seed in range(2):
        runs = [folder / "runs" / f"labels-only-seed{seed}" for folder in (config.out, whole.out)]
        assert tensor_bytes(runs[0] / "student.safetensors") == tensor_bytes(runs[1] / "student.safetensors")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_student_is_prepared_stops_it_too(digits, tmp_path, monkeypatch, number):
    """It comes before the training listens."""

    def asked_to_stop(config, **given):
        os.kill(os.getpid(), number)
        return train(config, **given)

    monkeypatch.setattr("teachonce.cli.ablate.train", asked_to_stop)
    common = COMMON | {"batch_size": 8, "grace_seconds": GRACE_SECONDS}
    config = AblateConfig(
        data=digits, out=tmp_path / "out", arms="labels", teacher="run:none", seeds=2, jobs=1, **common
    )
    with pytest.raises(SystemExit if number == signal.SIGTERM else Interrupted):
        ablate(config)
    log = (config.out / "logs" / "labels-only-seed0.log").read_text()
    assert "training: interrupted in epoch 1 at step 1 of 12; checkpoint saved." in log
    assert not (config.out / "runs" / "labels-only-seed1").exists()


@pytest.mark.parametrize("error", [RecordError("a shard is damaged"), RuntimeError("CUDA out of memory\nTried ...")])
def test_a_student_that_fails_leaves_the_others_to_be_trained(digits, tmp_path, monkeypatch, capsys, error):
    def train_but_one(config, **given):
        if config.seed == 0:
            raise error
        return train(config, **given)

    monkeypatch.setattr("teachonce.cli.ablate.train", train_but_one)
    config = labels_alone(digits, tmp_path / "out")
    text = str(error) if isinstance(error, RecordError) else "RuntimeError: CUDA out of memory"
    line = f"labels-only-seed0: {text}"
    with pytest.raises(TeachonceError) as raised:
        ablate(config)
    assert str(raised.value).startswith(f"{config.out}: of 3 students 1 failed: {line}; logs/ has more")
    assert raised.value.exit_code == 1
    said = capsys.readouterr().err.splitlines()
    assert f"ablate: {line}" in said and said[-1].startswith("ablate: stopped at 4 of 6 epochs")
    log = (config.out / "logs" / "labels-only-seed0.log").read_text().splitlines()
    assert log[-1] == f"teachonce: {text}"
    assert all(Run(config.out / "runs" / f"labels-only-seed{seed}").result for seed in (1, 2))
    assert not (config.out / "ablation.md").exists()
    monkeypatch.setattr("teachonce.cli.ablate.train", train)
    assert len(ablate(config)[0].top1) == 3, "the same command trains what failed"


@pytest.mark.parametrize("error", [ConfigError("no such device"), PlanMismatchError("lr was 1, now 2")])
def test_what_is_wrong_with_the_command_ends_it(digits, tmp_path, monkeypatch, error):
    def refuse(config, **given):
        raise error

    monkeypatch.setattr("teachonce.cli.ablate.train", refuse)
    with pytest.raises(type(error), match=f"^{error}$"):
        ablate(labels_alone(digits, tmp_path))
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["labels-only-seed0.log"]


def test_a_failure_before_a_signal_is_not_lost(digits, tmp_path, monkeypatch, capsys):
    def fail_then_stop(config, **given):
        if config.seed == 1:
            os.kill(os.getpid(), signal.SIGINT)
            return train(config, **given)
        raise RecordError("a shard is damaged")

    monkeypatch.setattr("teachonce.cli.ablate.train", fail_then_stop)
    with pytest.raises(Interrupted):
        ablate(labels_alone(digits, tmp_path))
    said = capsys.readouterr().err.splitlines()
    assert "ablate: labels-only-seed0: a shard is damaged" in said
    assert said[-1] == "ablate: interrupted; 0 of 3 students are trained. Run the same command to resume"


@pytest.mark.slow
def test_students_that_run_are_stopped_where_the_command_is_wrong(digits, tmp_path):
    """In two processes: one of them is asked to end, with a checkpoint, when the other refuses its student."""
    config = labels_alone(digits, tmp_path, seeds=2, jobs=2, epochs=5000, batch_size=8)
    students = [_student_config(config, ArmConfig("labels only", {}), seed) for seed in range(2)]
    students[1] = dataclasses.replace(students[1], data=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        _train_students(config, students, 2)
    assert not list(tmp_path.glob("runs/*/result.json")), "5000 epochs are not over"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_students_of_all_processes(digits, tmp_path, number):
    """SIGTERM comes to the command alone, Ctrl+C on a terminal to its processes as well."""
    words = f"ablate --data {digits} --student timm:test_resnet --out {tmp_path} --arms labels"
    words += " --teacher timm:test_resnet --seeds 2 --jobs 2"
    words += " --epochs 2000 --batch-size 8 --size 16 --eval-crop-frac 1 --device cpu"
    program = f"from teachonce.cli.main import main\nif __name__ == '__main__':\n    main({words.split()!r})"
    # The processes of a user's are spawned, and of its process group.
    command = [*(warm_python() if number == signal.SIGTERM else [sys.executable]), "-c", program]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    runs = [tmp_path / "runs" / f"labels-only-seed{seed}" for seed in range(2)]
    deadline = time.monotonic() + 300
    while not all((run / "metrics.csv").exists() for run in runs):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    expected = "ablate: interrupted; 0 of 2 students are trained. Run the same command to resume"
    assert said.splitlines()[-1] == expected
    for seed in range(2):
        log = (tmp_path / "logs" / f"labels-only-seed{seed}.log").read_text()
        assert log.splitlines()[-1].endswith("; checkpoint saved. Run the same command to resume"), log


@pytest.mark.parametrize("device, given, jobs, wanted", [("cpu", None, 2, 0), ("cuda", None, 4, 3), ("cuda", 9, 4, 9)])
def test_students_at_once_share_the_cores(tmp_path, monkeypatch, device, given, jobs, wanted):
    monkeypatch.setattr("teachonce.cli.ablate.num_cores", lambda: 12)
    monkeypatch.setattr("teachonce.data.loader.num_cores", lambda: 12)
    monkeypatch.setattr("teachonce.models.classifier.resolve_device", lambda name: SimpleNamespace(type=name))
    student = TrainConfig(data=tmp_path, student="timm:a", out=tmp_path, device=device, num_workers=given)
    assert _with_own_threads(student, jobs).num_workers == wanted
    assert _with_own_threads(student, 1) == student
