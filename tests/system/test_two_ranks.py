"""Every recipe and every training option on two ranks (gloo, on the CPU): two updates each, all in one process group.

Where nothing depends on how a batch is divided (no batch norm, no mixing within a batch), the curve is that of one
process with the same batch over all.
"""

from __future__ import annotations

import csv
import dataclasses
import gc
import os
from collections.abc import Sequence
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from teachonce.errors import TeachonceError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.records.tfrecord.tf_example import encode_example
from teachonce.runs.metrics import TIME_COLUMNS, read_metrics
from teachonce.training.config import TrainConfig
from teachonce.training.ranks import run_ranks
from teachonce.training.recipes import RECIPES, recipe_options
from teachonce.training.train import train
from tests.support.small_data import teacher_logits, write_digits, write_shards, write_store
from tests.support.small_models import small_student
from tests.support.trainings import forked

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(contradicts them more|holds it back|smaller than|nearly one-hot|do not see the same).*:UserWarning",
    "ignore:.*(left out|new last layer).*:UserWarning",
)

TEACHER_OPTIONS = {"kd_temp": 2.0, "kd_weight": 0.5, "label_weight": 0.5}

SAME_CURVES: dict[str, dict[str, Any]] = {
    "average": {"ema_decay": 0.9, "clip_norm": 0.5, "weight_decay": 0.01, "momentum": 0.8, "label_smoothing": 0.1},
    "saved": {"checkpoint_minutes": 1e-6, "ema_decay": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "min_lr": 1e-4, "warmup_epochs": 0.5, "warmup_prefix": True},
    "step": {"schedule": "step", "step_epochs": 1, "step_rate": 0.5, "lr_batch": 32, "seed": 3, "logger": "csv"},
    "exponential": {"schedule": "exponential", "decay_epochs": 0.5, "decay_rate": 0.5, "num_workers": 1},
    "polynomial": {"schedule": "polynomial", "in_memory": True, "channels_last": True, "split": "validation"},
    "piecewise": {"schedule": "piecewise", "boundary_epochs": (1,), "boundary_rates": (1.0, 0.1)},
    "evaluation": {"eval_size": 32, "eval_crop_frac": 0.5, "validation_data": "{digits}", "checkpoint_epochs": 2},
    "resize": {"eval_resize": 40, "num_classes": 11, "offset": 1, "data": "{shards}", "validation_split": None},
    "window": {"data": "{shards}", "logits": "records", "shuffle_shards": 1, "validation_split": None},
    "draws": {"sampler": "balanced", "ema_decay": 0.9},
    "drawn views": {"sampler": "balanced", "store": "{views}", "view_order": "permuted"},
    "weighted": {"class_weights": "balanced", "store": "{center}", **TEACHER_OPTIONS},
    "crops": {
        "policy": "crop+randaugment",
        "crop_scale": (0.5, 1.0),
        "crop_ratio": (0.9, 1.1),
        "object_covered": 0.1,
        "object_boxes": "image",
        "flip_prob": 0.2,
        "randaugment_ops": 1,
        "randaugment_magnitude": 5.0,
        "randaugment_magnitude_std": 1.0,
        "erase_prob": 0.5,
        "erase_scale": (0.1, 0.2),
        "erase_ratio": (0.5, 2.0),
    },
    "stored": {"store": "{center}", "own_views": True, **TEACHER_OPTIONS},
    "replayed": {"store": ("{views}", "{second}"), "store_weights": "3,1", "views": 2, "view_order": "permuted"},
    "missing": {"store": "{views}", "trust": True, "missing": "skip", "ema_decay": 0.9},
    "online": {
        "teacher": "run:{teacher}",
        "teacher_offset": 0,
        "view_seed": 3,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "mix_prob": 0.8,
        "cutmix_prob": 0.4,
    },
    "initial": {"init": "{vit}"},
    "uneven": {"data": "{odd}", "ema_decay": 0.9, "lr": 0.05},
    "accumulated": {"accumulate": 4, "ema_decay": 0.9, "clip_norm": 0.5, "lr_batch": 32},
    "uneven accumulated": {"data": "{odd}", "accumulate": 4, "store": "{center}", **TEACHER_OPTIONS},
}
OTHER_CURVES: dict[str, dict[str, Any]] = {
    "norms": {"student": "timm:test_resnet", "bn_momentum": 0.2, "ema_decay": 0.9, "validation_epochs": 1},
    "mixup": {"store": "{center}", "mixup_alpha": 0.2, **TEACHER_OPTIONS},
    "mixup1": {"mixup_alpha": 0.2, "mixup_type": 1},
    "mixup2": {"store": "{center}", "mixup_alpha": 0.2, "mixup_type": 2},
    "bf16": {"precision": "bf16", "ema_decay": 0.9},
    "compiled": {"compile": True, "ema_decay": 0.9},
}
EVERYWHERE = {"data", "student", "out", "size", "batch_size", "epochs", "lr", "device", "devices", "validation_split"}
ELSEWHERE = {
    "recipe": "test_every_recipe_on_two_ranks",
    "cache": "tests/data/test_fetch_ahead.py, tests/storage/remote/test_cache.py (of several processes)",
    "cache_size": "tests/data/test_fetch_ahead.py",
    "grace_seconds": "tests/training/test_interruption.py",
    "num_nodes": "one machine: what differs is where the ranks meet (tests/training/test_ranks.py)",
    **dict.fromkeys(
        (field.name for field in dataclasses.fields(RecordOptions)),
        "tests/records, tests/system/test_own_data.py: which records there are, before ranks divide them",
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data, its stores, and runs to teach or to begin with."""
    folder = tmp_path_factory.mktemp("places")
    digits = write_digits(folder / "digits", num_train=32, num_validation=32)
    source = open_records(digits, "train")
    logits = teacher_logits(source)
    write_store(folder / "center", source, logits, offset=0)
    payloads = [
        encode_example(
            {
                "image/encoded": record.encoded,
                "image/class/label": record.label + 1,
                "image/filename": record.filename.encode(),
                "image/logit": np.array([0, *row], np.float32),
            }
        )
        for record, row in zip(source.iter_shard(0), logits, strict=True)
    ]
    write_shards(folder / "shards", sizes=(12, 12, 8), num_classes=11, payloads=payloads)
    common: dict[str, Any] = {"data": digits, "device": "cpu"}
    for name, student in (("teacher", "timm:test_resnet"), ("vit", "timm:test_vit")):
        settings = {"epochs": 1, "size": 32, "batch_size": 16, "validation_split": None}
        train(TrainConfig(student=student, out=folder / name, **common, **settings))
    extract(
        ExtractConfig(
            teacher=f"run:{folder / 'teacher'}", out=folder / "views", policy="crop", views=3, gate_samples=0, **common
        )
    )
    second = {"teacher": f"run:{folder / 'vit'}", "views_of": folder / "views", "gate_samples": 0}
    extract(ExtractConfig(out=folder / "second", **second, **common))
    write_digits(folder / "odd", num_train=31, num_validation=8)
    write_digits(folder / "few", num_train=16, num_validation=0)
    return {path.name: path for path in folder.iterdir()}


def build(places: dict[str, Path], out: Path, *, num_ranks: int, **options: Any) -> TrainConfig:
    """A training of two updates of 16 images."""
    chosen: dict[str, Any] = {
        "data": "{digits}",
        "student": "timm:test_vit",
        "size": 32,
        "epochs": 1,
        "lr": 0.01,
        "batch_size": 16 // num_ranks // options.get("accumulate", 1),
        "device": "cpu",
        "devices": num_ranks,
        **options,
    }
    filled = {name: _fill(value, places) for name, value in chosen.items()}
    for name in ("data", "init", "validation_data"):
        if name in filled:
            filled[name] = Path(filled[name])
    if "store" in filled:
        stores = filled["store"] if isinstance(filled["store"], tuple) else (filled["store"],)
        filled["store"] = tuple(map(Path, stores))
    return TrainConfig(out=out, **filled)


def _fill(value: Any, places: dict[str, Path]) -> Any:
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return tuple(_fill(item, places) for item in value)
    return value.format(**places) if isinstance(value, str) else value


def train_each(configs: Sequence[TrainConfig], _: TrainConfig) -> None:
    """What each rank does."""
    environment = dict(os.environ)
    # Traced as ever; generating code takes half a minute a rank (tests/models/assembled_resnet does it).
    compile_module = nn.Module.compile
    nn.Module.compile = partialmethod(compile_module, backend="eager")  # type: ignore[method-assign,assignment]
    for config in configs:
        os.environ.update(environment)  # Lightning takes out what says which ranks there are
        try:
            train(config)
        except Exception as error:
            raise TeachonceError(f"{config.out.name}: {type(error).__name__}: {error}") from error
        gc.collect()  # networks and their optimizers refer to each other: several would stay in memory


def curve(run: Path) -> list[dict[str, Any]]:
    """The rows without what differs between equal runs, and without what is not measured."""
    rows = [{name: value for name, value in row.items() if value is not None} for row in read_metrics(run)]
    return [{name: value for name, value in row.items() if name not in TIME_COLUMNS} for row in rows]


def test_every_option_is_tried() -> None:
    """An option that is added later must be added here too."""
    tried = {name for options in (SAME_CURVES | OTHER_CURVES).values() for name in options}
    assert tried | EVERYWHERE | ELSEWHERE.keys() == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.slow
@pytest.mark.xdist_group("trainings")
def test_every_option_on_two_ranks_is_one_process_with_the_same_batch(places: dict[str, Path], tmp_path: Path) -> None:
    cases = SAME_CURVES | OTHER_CURVES
    configs = [build(places, tmp_path / "two" / name, num_ranks=2, **cases[name]) for name in cases]
    forked(run_ranks, partial(train_each, configs), configs[0])
    for config in configs:
        assert [row["step"] for row in curve(config.out)] == [2], config.out.name
    evaluated = []
    for name, options in SAME_CURVES.items():
        train(build(places, tmp_path / "one" / name, num_ranks=1, **(options | {"accumulate": 1})))
        (one,), (two,) = curve(tmp_path / "one" / name), curve(tmp_path / "two" / name)
        # The sums are taken in another order: 2^-24, amplified by two updates.
        assert two == pytest.approx(one, rel=1e-3, abs=1e-6), name
        if "validation_top1" in two:
            # Counted by both ranks: all images, each once.
            tables = [read_classes(tmp_path / ranks / name) for ranks in ("one", "two")]
            assert [[row["count"] for row in table] for table in tables] == [[row["count"] for row in tables[0]]] * 2
            right, images = (sum(int(row[column]) for row in tables[1]) for column in ("correct", "count"))
            assert right / images == pytest.approx(two["validation_top1"]), name
            evaluated.append(name)
    assert evaluated, "some of them evaluate"


def read_classes(run: Path) -> list[dict[str, str]]:
    with (run / "validation_classes.csv").open() as file:
        return list(csv.DictReader(file))


def count_unsynchronized(config: TrainConfig) -> None:
    """Train, and say how many batches' gradients were kept back from the other rank."""
    num_kept_back = 0
    no_sync = DistributedDataParallel.no_sync

    def counted(self: DistributedDataParallel) -> Any:
        nonlocal num_kept_back
        num_kept_back += 1
        return no_sync(self)

    DistributedDataParallel.no_sync = counted  # type: ignore[method-assign]
    train(config)
    (config.out / f"kept-back-{os.environ['LOCAL_RANK']}").write_text(str(num_kept_back))


@pytest.mark.slow
@pytest.mark.xdist_group("trainings")
def test_gradients_are_exchanged_once_an_update(places: dict[str, Path], tmp_path: Path) -> None:
    config = build(places, tmp_path / "run", num_ranks=2, accumulate=4)
    forked(run_ranks, count_unsynchronized, config)
    # Two updates of four batches.
    assert {path.read_text() for path in config.out.glob("kept-back-*")} == {"6"}


@pytest.mark.slow
@pytest.mark.xdist_group("trainings")
def test_every_recipe_on_two_ranks(places: dict[str, Path], tmp_path: Path) -> None:
    """Its own network, at 64 px and without a warm-up."""
    configs = []
    for name in RECIPES:
        options = recipe_options(name)
        tiny = {"epochs": 1, "validation_epochs": 1, "warmup_epochs": 0.0, "batch_size": 4, "size": 64, "devices": 2}
        tiny |= {key: size for key, size in (("eval_size", 128), ("eval_resize", 129)) if key in options}
        tiny["student"] = small_student(options["student"])
        if options.get("kd_temp", 0) > 0:
            tiny["store"] = places["views" if options.get("label_weight") == 0 else "center"]
        configs.append(
            TrainConfig.from_recipe(
                name,
                data=places["few"],
                out=tmp_path / name,
                device="cpu",
                precision="float32",
                validation_split=None,
                **tiny,
            )
        )
    forked(run_ranks, partial(train_each, configs), configs[0])
    for config in configs:
        assert [row["step"] for row in curve(config.out)] == [2], config.out.name
