"""The run's directory: agreeing with a configuration, and the curve as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from teachonce.errors import ConfigError, ModelError, PlanMismatchError, TeachonceError
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.class_table import hash_classes
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource, identify_data
from teachonce.runs.metrics import METRIC_COLUMNS, read_metrics, write_metrics
from teachonce.runs.run import Run, begin_run, check_options, check_run, find_run, open_finished_run
from teachonce.storage.files import write_json
from teachonce.training.config import default_options
from tests.support.small_data import run_config, write_shards

CONFIG = {
    "student": "timm:x",
    "lr": 0.1,
    "crop_scale": [0.08, 1.0],
    "out": "a",
    "device": "cpu",
    "versions": {"a": "1"},
}


def test_begin_writes_and_then_agrees(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", CONFIG, default_options())
    begin_run(tmp_path / "run", CONFIG, default_options())
    begin_run(tmp_path / "run", {**CONFIG, "out": "b", "device": "cuda", "versions": {"a": "1"}}, default_options())


def test_begin_says_what_differs(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", CONFIG, default_options())
    other = {**CONFIG, "lr": 0.2, "crop_scale": [0.5, 1.0], "new": 1}
    with pytest.raises(PlanMismatchError) as caught:
        begin_run(tmp_path / "run", other, default_options())
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: was started with a different configuration: lr was 0.1, now 0.2; "
        "crop_scale was [0.08, 1.0], now [0.5, 1.0]; new was None, now 1; choose another --out, or the same settings"
    )


def test_options_alone_are_compared_with_their_part_of_the_run(tmp_path: Path) -> None:
    """What comes of data, and of options with it, is another matter."""
    run = tmp_path / "run"
    check_options(run, {"lr": 0.2}, default_options())
    made = {"num_classes": 5, "train_records": "a", "world_size": 2, "batch_size": 64}
    begin_run(run, CONFIG | made, default_options())
    check_options(run, {"lr": 0.1, "device": "cuda", "num_classes": None, "batch_size": 128}, default_options())
    with pytest.raises(
        PlanMismatchError, match=r"/run: was started with a different configuration: lr was 0\.1, now 1;"
    ):
        check_options(run, {"lr": 1}, default_options())
    write_json(run / "config.json", CONFIG | made | {"world_size": 1})
    with pytest.raises(PlanMismatchError, match="batch_size was 64, now 128;"):
        check_options(run, {"batch_size": 128}, default_options())


def test_an_option_that_the_run_did_not_have_yet_had_its_default(tmp_path: Path) -> None:
    """So a run that an older version began goes on, unless the new option is used."""
    begin_run(tmp_path / "run", CONFIG, default_options())
    begin_run(
        tmp_path / "run", {**CONFIG, "mixup_type": "batch", "boundary_epochs": [30, 60, 80, 90]}, default_options()
    )
    with pytest.raises(PlanMismatchError, match="mixup_type was batch, now 1;"):
        begin_run(tmp_path / "run", {**CONFIG, "mixup_type": 1}, default_options())


def test_the_order_of_the_classes_is_part_of_the_run(tmp_path: Path) -> None:
    """By it labels are numbered, and it is that of a file or of folders, which a user may change."""

    def named(*names: str, **changes: Any) -> dict[str, Any]:
        return CONFIG | {"classes_hash": hash_classes(names), "class_names": list(names), "labels": "a.txt"} | changes

    begin_run(tmp_path / "run", named("cat", "dog", "emu"), default_options())
    begin_run(tmp_path / "run", named("cat", "dog", "emu", labels="b.txt", trust=True), default_options())
    expected = r"started with other classes, or with the same ones in another order: output 1 was dog, now emu; give"
    for check in (check_run, begin_run):
        with pytest.raises(PlanMismatchError, match=expected):
            check(tmp_path / "run", named("cat", "emu", "dog"), default_options())
    with pytest.raises(PlanMismatchError, match="output 2 was emu, now nothing;"):
        begin_run(tmp_path / "run", named("cat", "dog"), default_options())
    # Runs of older versions know less.
    (tmp_path / "old").mkdir()
    write_json(tmp_path / "old" / "config.json", named("cat", "dog", class_names=None))
    with pytest.raises(PlanMismatchError, match="same ones in another order; give --labels"):
        begin_run(tmp_path / "old", named("dog", "cat", class_names=None), default_options())
    write_json(tmp_path / "old" / "config.json", {**CONFIG, "labels": "a.txt"})
    begin_run(tmp_path / "old", named("dog", "cat"), default_options())
    with pytest.raises(PlanMismatchError, match=r"labels was a\.txt, now b\.txt; choose another --out"):
        begin_run(tmp_path / "old", named("dog", "cat", labels="b.txt"), default_options())


def test_begin_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TeachonceError, match="exists and is not a run"):
        begin_run(tmp_path, CONFIG, default_options())
    with pytest.raises(TeachonceError, match="exists and is not a run"):
        begin_run(tmp_path / "notes.txt", CONFIG, default_options())


def test_metrics_survive_the_file_exactly(tmp_path: Path) -> None:
    row = {name: 1 / 3 + index for index, name in enumerate(METRIC_COLUMNS)}
    rows = [{**row, "epoch": 1, "step": 10}, {**row, "epoch": 2, "step": 20, "validation_top1": None, "lr": 1e-300}]
    assert read_metrics(tmp_path) == []
    write_metrics(tmp_path, rows)
    assert read_metrics(tmp_path) == rows


@pytest.mark.parametrize("damage", [b"1,2\n", b"x" * 9 + b"," * 12 + b"\n", b"\xff", b"\xff,1\n", b"x" * 200_000])
def test_damaged_metrics_are_named(tmp_path: Path, damage: bytes) -> None:
    write_metrics(tmp_path, [])
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(damage)
    with pytest.raises(TeachonceError, match=r"metrics.csv: line 2 is not a line of metrics"):
        read_metrics(tmp_path)


def write_config(run: Path, **changes: Any) -> Path:
    """A run that was begun; a setting given as ... is left out."""
    config = run_config("timm:x", Preprocessing(size_px=32), offset=1) | changes
    run.mkdir(exist_ok=True)
    write_json(run / "config.json", {name: value for name, value in config.items() if value is not ...})
    return run


def test_a_run_knows_what_its_student_is(tmp_path: Path) -> None:
    run = Run(write_config(tmp_path, kd_temp=2, store=["A", "B"], store_views=3, classes_hash="abc", lr=0.1))
    assert (run.student, run.num_classes, run.offset, run.data_classes, run.size_px) == ("timm:x", 5, 1, 6, 32)
    assert run.preprocessing == Preprocessing(size_px=32)
    assert (run.temperature, run.stores, run.store_views, run.classes_hash) == (2, ("A", "B"), 3, "abc")
    assert run.class_names is None
    assert Run(write_config(tmp_path, class_names=["a", "b"])).class_names == ("a", "b")
    for damaged in ("a", ["a", 1], {"a": 1}):
        with pytest.raises(ModelError, match=r"is not from a run \(TypeError: class_names is "):
            Run(write_config(tmp_path, class_names=damaged))
    assert run.weights_path == tmp_path / "student.safetensors"
    assert run.config["lr"] == 0.1, "all that config.json holds, for those who show it"


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({}, "labels only"),
        ({"kd_temp": 2.0, "store": "A"}, "KD at temperature 2 from A"),
        ({"kd_temp": 1.5, "store": ["A", "B"], "store_views": 4}, "KD at temperature 1.5 from A and B, 4 views"),
        ({"kd_temp": 1.0, "teacher": "timm:y"}, "KD at temperature 1 from timm:y"),
        ({"kd_temp": 1.0}, "KD at temperature 1 from image/logit of the records"),
    ],
)
def test_who_taught(tmp_path: Path, changes: dict[str, Any], phrase: str) -> None:
    assert Run(write_config(tmp_path, **changes)).describe_supervision() == phrase


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(TeachonceError, match=r"config\.json: cannot be read: No such file"):
        Run(tmp_path)
    for changes, why in (
        ({"num_classes": ...}, "KeyError: 'num_classes'"),
        ({"student": 3}, "TypeError: student is 3"),
        ({"offset": True}, "TypeError: offset is True"),
        ({"preprocessing": {"size_px": 0}}, "ConfigError: "),
    ):
        with pytest.raises(ModelError, match=rf"config\.json: is not from a run \({why}.*\); train again"):
            Run(write_config(tmp_path, **changes))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="is not from a run"):
        Run(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "3", '{"top1": "0.5"}', "[" * 100_000, '{"epochs": 1, "top1": null, "top5": null, "ece": 0}'],
)
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    (write_config(tmp_path) / "result.json").write_text(content)
    with pytest.raises(TeachonceError, match=r"result\.json: is (not the result of a run \(.*\); remove it|not JSON)"):
        _ = Run(tmp_path).result


def test_what_is_found_of_a_run(tmp_path: Path) -> None:
    assert find_run(tmp_path) is None
    with pytest.raises(ConfigError, match=r"^--x: has no config\.json; expected the folder of a finished run"):
        open_finished_run(tmp_path, requested_by="--x")
    write_config(tmp_path)
    run = find_run(tmp_path)
    assert run is not None and run.result is None and run.metrics == []
    with pytest.raises(ConfigError, match=r"^--x: has no student\.safetensors"):
        open_finished_run(tmp_path, requested_by="--x")
    run.weights_path.write_bytes(b"")
    result = {"epochs": 1, "top1": 0.5, "top5": 1, "ece": 0.1, "seconds": 2.5}
    write_json(tmp_path / "result.json", result)
    assert open_finished_run(tmp_path, requested_by="--x").result == run.result == result


def identified(source: RecordSource) -> dict[str, Any]:
    return {**source.describe(), **identify_data(source)}


def test_a_run_whose_data_changed_says_how_much_it_was_and_is(tmp_path: Path) -> None:
    """Its message was: train_records.shards was 1b0c..., now 77aa..."""
    before = open_records(write_shards(tmp_path / "before", sizes=(5, 3)), "train")
    after = open_records(write_shards(tmp_path / "after", sizes=(5, 4)), "train")
    started = CONFIG | {"train_records": identified(before), "validation_records": identified(before)}
    begin_run(tmp_path / "run", started, default_options())
    begin_run(tmp_path / "run", started, default_options())
    with pytest.raises(PlanMismatchError) as caught:
        begin_run(tmp_path / "run", started | {"train_records": identified(after)}, default_options())
    old, new = (f"{identify_data(source)['num_bytes']:,} bytes" for source in (before, after))
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: was started with other inputs: the training data (--data) changed since: 8 images in 2 "
        f"shards ({old}) then, 9 images in 2 shards ({new}) now; choose another --out, or restore what the run was "
        "started with"
    )
    renamed = identified(before) | {"shards": "ab" * 8}
    with pytest.raises(
        PlanMismatchError, match=r"the validation data changed since: 8 images .* then and now, but other"
    ):
        begin_run(tmp_path / "run", started | {"validation_records": renamed}, default_options())
    with pytest.raises(
        PlanMismatchError, match=r"configuration: lr was 0.1, now 0.2; the training data .*same settings$"
    ):
        begin_run(tmp_path / "run", started | {"lr": 0.2, "train_records": identified(after)}, default_options())


def test_a_run_of_an_older_version_knows_less_of_its_data(tmp_path: Path) -> None:
    source = open_records(write_shards(tmp_path / "data"), "train")
    records = identified(source)
    older = {name: value for name, value in records.items() if name not in ("num_shards", "num_bytes")}
    begin_run(tmp_path / "run", CONFIG | {"train_records": older}, default_options())
    begin_run(tmp_path / "run", CONFIG | {"train_records": records}, default_options())
    now = records | {"shards": "ab" * 8, "num_records": 9}
    with pytest.raises(PlanMismatchError, match="changed since: 8 images then, 9 images now; choose"):
        begin_run(tmp_path / "run", CONFIG | {"train_records": now}, default_options())


def test_other_stores_and_weights_are_named_without_their_hashes(tmp_path: Path) -> None:
    names = ("store_fingerprint", "init_weights_sha256", "online_weights_sha256")
    begin_run(tmp_path / "run", CONFIG | dict.fromkeys(names, "ab" * 16), default_options())
    for name, what in zip(names, ("the store", "the weights to start from", "the teacher's weights"), strict=True):
        changed = CONFIG | dict.fromkeys(names, "ab" * 16) | {name: "cd" * 16}
        with pytest.raises(
            PlanMismatchError, match=rf"other inputs: {what} \(.*\): not the same then and now; choose"
        ) as caught:
            begin_run(tmp_path / "run", changed, default_options())
        assert "abab" not in str(caught.value)
