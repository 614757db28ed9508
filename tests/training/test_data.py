"""What a student is evaluated on: both crops of the walkthrough, to the pixel, from the options that name them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teachonce.cli.main import parse_command
from teachonce.data.dataset import EvalDataset
from teachonce.errors import ConfigError, PlanMismatchError, RecordError
from teachonce.evaluation.config import EvaluateConfig
from teachonce.evaluation.evaluate import evaluate
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.prepare import build_plan
from teachonce.models.classifier import load_model
from teachonce.models.spec import override_preprocessing, parse_model_spec
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.view_sources import OwnViews
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.training.data import (
    check_validation,
    describe_other_views,
    student_preprocessing,
    warn_without_effect,
)
from teachonce.training.train import train
from teachonce.views.policy import CropPolicy
from tests.pixels.test_preprocessing import IMAGENET_MEAN_BYTES, WALKTHROUGH
from tests.support.paths import GOLDEN
from tests.support.small_data import encode_jpeg, example, write_image_folder, write_shards
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.training.test_train import config

PIXELS = "interpolation=tf1_bilinear,mean=123.68/116.78/103.94,std=1,range=byte"
CROPS = {
    "imagenet_crop0875": ["--eval-crop-frac", "0.875"],
    "imagenet_plus1": ["--eval-resize", "65"],
}


def preprocessing_of(*words: str) -> Preprocessing:
    student = f"timm:test_resnet,{PIXELS}"
    parsed = parse_command(["train", "--data", "d", "--out", "o", "--student", student, *words])
    return student_preprocessing(parse_model_spec(parsed.student), *parsed.eval_sides_px)


@pytest.mark.parametrize("crop", CROPS)
def test_both_crops_of_the_walkthrough_can_be_said(crop: str) -> None:
    assert preprocessing_of("--size", "32", "--eval-size", "64", *CROPS[crop]) == WALKTHROUGH[crop]
    resize = WALKTHROUGH[crop].resize_px
    spec = parse_model_spec(f"timm:test_resnet,size=64,resize={resize},{PIXELS}")
    assert override_preprocessing(Preprocessing(size_px=224), spec) == WALKTHROUGH[crop], "as evaluate --model says it"


@pytest.mark.parametrize("crop", CROPS)
def test_validation_pixels_are_the_walkthroughs(
    crop: str, shared_data: Path, imagenet_sample: Path, tmp_path: Path
) -> None:
    path = shared_data / "reference" / "eval_preprocessing.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with np.load(path) as arrays:
        expected: dict[str, Any] = {
            key.partition("|")[0]: arrays[key] for key in arrays.files if key.endswith(f"|{crop}")
        }
    for file in expected:
        (source,) = imagenet_sample.glob(f"train/*/{file}")
        (tmp_path / "validation" / source.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "validation" / source.parent.name)
        (tmp_path / "train" / source.parent.name).mkdir(parents=True, exist_ok=True)
    records = open_records(tmp_path, "validation")
    preprocessing = preprocessing_of("--size", "32", "--eval-size", "64", *CROPS[crop])
    dataset = EvalDataset(records, preprocessing, ClassSpace(num_classes=4))
    batch = dataset.__getitems__([(index, 0) for index in range(4)])
    mean = np.array(IMAGENET_MEAN_BYTES, np.float32)
    for record, pixels in zip(records.iter_shard(0), batch["pixels"].numpy(), strict=True):
        np.testing.assert_array_equal(pixels - mean, expected[Path(record.filename).name])


@pytest.mark.parametrize(
    ("size", "words", "resize"),
    [
        (224, [], 256),
        (256, [], 292),  # int(256 / 0.875)
        (256, ["--eval-resize", "257"], 257),
        (256, ["--eval-crop-frac", "1"], 256),
    ],
)
def test_the_side_before_the_crop(size: int, words: list[str], resize: int) -> None:
    found = preprocessing_of("--eval-size", str(size), *words)
    assert (found.size_px, found.resize_px) == (size, resize)


def test_a_resize_below_the_crop() -> None:
    with pytest.raises(ConfigError, match="--eval-resize 255: expected at least the 256 px of the evaluation's input"):
        config(Path("d"), Path("o"), eval_size=256, eval_resize=255)


def test_a_run_with_an_evaluation_filter_of_its_own(digits: Path, tmp_path: Path) -> None:
    """The views are antialiased, as teachers share them; the evaluation is TensorFlow 1's, and the run remembers it."""
    settings = {"epochs": 1, "eval_size": 20, "eval_resize": 21, "eval_crop_frac": 0.875}
    result = train(config(digits, tmp_path / "run", student="timm:test_resnet,interpolation=tf1_bilinear", **settings))
    found = evaluate(EvaluateConfig(data=digits, model=f"run:{tmp_path / 'run'}", device="cpu"))
    assert (found["top1"], found["top5"]) == (result["top1"], result["top5"])


@pytest.mark.parametrize(
    ("views", "settings", "words"),
    [
        ({"crop_scale": (0.5, 1.0)}, {"crop_scale": (0.08, 1.0)}, "--policy crop --crop-scale 0.5 1.0"),
        ({"erase_prob": 0.2}, {}, "--policy crop --crop-scale 0.08 1.0 --erase-prob 0.2"),
        ({"mixup_alpha": 0.2}, {}, "are mixed, and those that are drawn instead are not"),
        ({}, {}, ""),
    ],
)
def test_the_views_of_a_baseline_are_said_where_they_differ(
    tmp_path: Path, views: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    data = write_color_shards(tmp_path / "data", sizes=(4,))
    extraction = ExtractConfig(
        data=data, teacher="x", out=tmp_path / "store", policy="crop", **{"mixup_alpha": 0.0, **views}
    )
    source = open_records(data, "train")
    teacher = load_model(write_color_teacher(tmp_path / "teacher.onnx"))
    begin_store(tmp_path / "store", build_plan(extraction, source, teacher), 1)
    student: dict[str, Any] = {"data": data, "student": "s", "out": tmp_path / "run", "store": tmp_path / "store"}
    found = describe_other_views(tmp_path / "store", TrainConfig(kd_temp=0, **student, **settings))
    assert words in found and bool(found) == bool(words)
    if "--policy" in words:
        assert "the student draws views by --policy crop --crop-scale 0.08 1.0, and" in found
        assert f"are by {words}: for a baseline" in found
    assert describe_other_views(tmp_path / "nothing", TrainConfig(kd_temp=0, **student)) == ""


def test_what_an_online_teacher_alone_reads_is_said(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"cutmix_alpha": 1.0, "mixup_alpha": 0.2, "mix_prob": 0.5, "cutmix_prob": 0.1}
    given = TrainConfig(
        data=tmp_path, student="s", out=tmp_path, teacher="timm:resnet18", kd_temp=0, view_seed=3, **settings
    )
    data: Any = SimpleNamespace(logits=None, views=OwnViews(CropPolicy()))
    with pytest.warns(UserWarning) as caught:
        warn_without_effect(given, data)
    said = [str(warning.message).removesuffix(" has no effect with --kd-temp 0") for warning in caught]
    assert said == [
        *("--teacher timm:resnet18", "--cutmix-alpha 1.0", "--mix-prob 0.5", "--cutmix-prob 0.1", "--view-seed 3"),
    ]


def test_what_a_baseline_leaves_unread_of_a_store_is_said(tmp_path: Path) -> None:
    """--missing skip too: the training with the store leaves records out, the baseline does not."""
    given = TrainConfig(
        data=tmp_path,
        student="s",
        out=tmp_path,
        store=(tmp_path / "s",),
        kd_temp=0,
        missing="skip",
        views=2,
        trust=True,
    )
    data: Any = SimpleNamespace(logits=None, views=OwnViews(CropPolicy()))
    with pytest.warns(UserWarning) as caught:
        warn_without_effect(given, data)
    said = [str(warning.message) for warning in caught]
    end = " has no effect with --kd-temp 0"
    assert f"--missing skip{end}: the records that the store lacks are trained on too" in said
    assert {f"--views 2{end}", f"--trust{end}"} <= set(said)


def test_own_views_of_mixed_answers_are_refused(tmp_path: Path) -> None:
    data = GOLDEN / "records"
    store = GOLDEN / "store-v3-int8"
    assert Store(store).policy.mix is not None
    with pytest.raises(ConfigError, match=r"--own-views: the views of --store .* are mixed with other images"):
        train(config(data, tmp_path / "run", store=store, own_views=True, validation_split=None))


def test_data_of_one_class(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", num_classes=1)
    with pytest.raises(ConfigError, match="images: has 1 class, expected at least 2"):
        train(config(tmp_path / "images", tmp_path / "run"))


def test_a_label_to_evaluate_on_that_is_no_class_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was found after an epoch, and what mends it, another number of classes or offset, is another run."""
    data = write_shards(tmp_path / "data", sizes=(12, 12), num_classes=None)
    payloads = [example(index, 1 + index % 4) for index in range(6)]
    write_shards(data, sizes=(6,), split="validation", num_classes=None, payloads=payloads)
    run = config(data, tmp_path / "run", num_classes=4, batch_size=12, epochs=1, logger="none")
    with pytest.raises(
        RecordError, match=r"validation-00000-of-00001 record 3 .*: label 4, expected 0 to 3; if labels c"
    ):
        train(run)
    assert not run.out.exists()
    train(begun := dataclasses.replace(run, num_classes=5))
    # One that was begun has been evaluated, or is not lost by it.
    monkeypatch.setattr(EvalDataset, "check_labels", None)
    train(begun)


def test_a_split_to_evaluate_on_with_the_classes_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for split, names in {"train": ["cat", "dog"], "validation": ["dog", "cat"]}.items():
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], metadata)
        rows = [{"image": encode_jpeg(index), "label": index % 2} for index in range(12)]
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / f"data/{split}.parquet")
    with pytest.raises(ConfigError, match="has the same classes in another order: label 0 is dog, expected cat as in"):
        train(config(tmp_path / "data", tmp_path / "run", logger="none"))


def test_names_that_were_swapped_are_other_classes(tmp_path: Path) -> None:
    """The labels would be permuted under a student that has begun to learn them; the file may be moved."""
    write_image_folder(tmp_path / "images", per_class=12)
    labels, moved = tmp_path / "labels.txt", tmp_path / "moved.txt"
    labels.write_text("class0\nclass1\nclass2\n")
    settings = {"epochs": 1, "batch_size": 12, "validation_split": "none", "logger": "none"}
    first = train(config(tmp_path / "images", tmp_path / "run", labels=labels, **settings))
    labels.rename(moved)
    assert train(config(tmp_path / "images", tmp_path / "run", labels=moved, **settings)) == first
    moved.write_text("class0\nclass2\nclass1\n")
    with pytest.raises(PlanMismatchError, match="in another order: output 1 was class1, now class2"):
        train(config(tmp_path / "images", tmp_path / "run", labels=moved, **settings))


@pytest.mark.parametrize(("num_records", "num_devices"), [(5, 8), (0, 1)])
def test_each_device_needs_a_record_to_evaluate_on(num_records: int, num_devices: int) -> None:
    config = TrainConfig(data=Path("d"), student="timm:a", out=Path("o"), val_fraction=0.1)
    data: Any = SimpleNamespace(validation=range(num_records))
    with pytest.raises(ConfigError, match=rf"--validation-split validation: has {num_records} records, held out by"):
        check_validation(config, data, num_devices)
    check_validation(config, SimpleNamespace(validation=range(8)), 8)  # type: ignore[arg-type]
    check_validation(config, SimpleNamespace(validation=None), 8)  # type: ignore[arg-type]
