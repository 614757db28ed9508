"""One store, any framework: the examples of tf.data, Keras and Grain train on the pixels and logits that torch gets."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from teachonce import KDDataset, Store, StoredLogits, StoredViews, open_records
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from tests.support.paths import ROOT
from tests.support.small_data import build_dataset
from tests.support.small_models import write_color_shards, write_color_teacher

EXAMPLES = ROOT / "examples"
SETTINGS: dict[str, Any] = {"size": 16, "batch_size": 8, "epochs": 2}


def needs(*modules: str) -> pytest.MarkDecorator:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed")


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Colored images, and a store of what a teacher that sees colors says of two views; it lacks the background."""
    folder = tmp_path_factory.mktemp("colors")
    data = write_color_shards(folder / "data", sizes=(64, 32))
    teacher = write_color_teacher(folder / "teacher.onnx")
    options: dict[str, Any] = {"policy": "crop", "views": 2, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=folder / "store", **options))
    return data, folder / "store"


@pytest.fixture
def dataset(places: tuple[Path, Path]) -> KDDataset:
    store = Store(places[1])
    logits = StoredLogits([store], temperature=2.0)
    return KDDataset(open_records(places[0], "train"), StoredViews(store), logits, size=16)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """A framework's arrays and torch's tensors, bit for bit."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        array = np.asarray(found[name])
        assert array.dtype == values.numpy().dtype, name
        np.testing.assert_array_equal(array, values.numpy())


def assert_learns(losses: list[float]) -> None:
    """The KD loss of each update: less in the second epoch than in the first."""
    assert len(losses) == 24
    assert sum(losses[12:]) < 0.9 * sum(losses[:12])


@pytest.mark.slow
@needs("tensorflow")
def test_tf_data(dataset: KDDataset, places: tuple[Path, Path]) -> None:
    example = load("tf_data_loop")
    for epoch in (0, 3):
        found = list(example["epoch_batches"](dataset, epoch, 8))
        expected = list(dataset.batches(batch_size=8, epoch=epoch))
        assert len(found) == len(expected) == 12
        for batch, tensors in zip(found, expected, strict=True):
            assert_same({name: value.numpy() for name, value in batch.items()}, tensors)
    keras_seed(0)
    model, losses = example["train"](*places, **SETTINGS)
    assert_learns(losses)
    assert model(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 5)


@pytest.mark.slow
@needs("keras")
def test_keras(dataset: KDDataset, places: tuple[Path, Path]) -> None:
    example = load("keras_loop")
    batches = example["StoreBatches"](dataset, 8)
    for epoch in (0, 1):
        expected = list(dataset.batches(batch_size=8, epoch=epoch))
        assert len(batches) == len(expected) == 12
        for step in (5, 0, 11):
            pixels, targets = batches[step]
            assert targets.dtype == np.float32
            found = {"pixels": pixels, "teacher_logits": targets[:, :-1], "labels": targets[:, -1].astype(np.int64)}
            assert_same(found, {name: expected[step][name] for name in found})
        batches.on_epoch_end()
    keras_seed(0)
    model, history = example["train"](*places, **SETTINGS)
    first, second = history["kd_loss"]
    assert second < 0.9 * first
    assert model.predict(np.zeros((1, 16, 16, 3), np.uint8), verbose=0).shape == (1, 5)


@pytest.mark.slow
@needs("grain", "jax")
def test_jax_and_grain(dataset: KDDataset, places: tuple[Path, Path]) -> None:
    example = load("jax_grain_loop")
    for epoch in (0, 3):
        found = list(example["epoch_batches"](dataset, epoch, 8))
        expected = list(dataset.batches(batch_size=8, epoch=epoch))
        assert len(found) == len(expected) == 12
        for batch, tensors in zip(found, expected, strict=True):
            assert_same(batch, tensors)
    weights, losses = example["train"](*places, **SETTINGS)
    assert_learns(losses)
    assert example["student_logits"](weights, np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 5)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "topk"])
def test_arrays_are_what_tensors_are(tmp_path: Path, codec: Any) -> None:
    """Of every codec, of several stores, of mixed views, decoded and as they are stored."""
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    stores = []
    for name, order in (("a", None), ("b", [1, 0, 2, 3])):
        teacher = write_color_teacher(tmp_path / f"{name}.onnx", **({} if order is None else {"order": order}))
        of_first = {"views_of": tmp_path / "a"} if stores else {"policy": "crop", "views": 2, "cutmix_alpha": 1.0}
        options: dict[str, Any] = {"codec": codec, "device": "cpu", "gate_samples": 0, **of_first}
        options |= {"topk": 2} if codec == "topk" else {}
        extract(ExtractConfig(data=data, teacher=teacher, out=tmp_path / name, **options))
        stores.append(Store(tmp_path / name))
    source = open_records(data, "train")
    for chosen in (stores[:1], stores):
        for as_stored in (False, True):
            dataset = build_dataset(source, size=12, store=chosen, temperature=2.0, as_stored=as_stored)
            loader = dataset.batches(batch_size=4, epoch=1)
            arrays = loader.as_numpy()
            assert len(arrays) == len(loader)
            for step, (tensors, found) in enumerate(zip(loader, arrays, strict=True)):
                assert found.keys() == tensors.keys()
                for name, values in tensors.items():
                    assert isinstance(found[name], np.ndarray) and found[name].dtype == values.numpy().dtype
                    # Distances up to some 20: float32's rounding of the sparse codec's tail (test_stored_logits.py).
                    tolerance = 2e-5 if (codec, name) == ("topk", "teacher_logits") else 0
                    np.testing.assert_allclose(found[name], values.numpy(), rtol=0, atol=tolerance)
                    np.testing.assert_array_equal(loader[step][name].numpy(), values.numpy())
                    np.testing.assert_array_equal(arrays[step][name], found[name])


def test_arrays_become_tensors_without_a_copy(dataset: KDDataset) -> None:
    from teachonce.data.tensors import as_tensors

    arrays = dataset.read_arrays([0, 1], 0)
    tensors = as_tensors(arrays)
    arrays["pixels"][0, 0, 0] = 77
    assert tensors["pixels"][0, 0, 0].tolist() == [77, 77, 77]


def keras_seed(seed: int) -> ModuleType:
    import keras

    keras.utils.set_random_seed(seed)
    return keras
