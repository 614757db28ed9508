"""Stored logits on their way to the loss: what the codecs decode, in the student's classes, for every store."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teachonce.data.stored_logits import StoredLogits
from teachonce.data.tensors import as_tensors
from teachonce.errors import ConfigError, StoreError
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.discovery import open_records
from teachonce.store.join import join_records
from teachonce.store.store import Store
from tests.codecs.test_on_device import assert_bits
from tests.support.small_data import build_dataset, example, write_as_folder, write_shards, write_store

CODECS = ["float32", "float16", "int8", "topk"]
NUM_CLASSES = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_shards(folder, num_classes=NUM_CLASSES + 1, payloads=[example(index, 1 + index) for index in range(8)])


@pytest.fixture(scope="module")
def stores(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("stores")
    options: dict[str, Any] = {"num_classes": NUM_CLASSES, "offset": 1}
    return {name: write_store(folder / name, data, codec=name, **options) for name in CODECS}


def join(data: Path, stores: list[Store]) -> StoredLogits:
    """As a dataset does, before anything is decoded."""
    teachers = StoredLogits(stores)
    teachers.join(open_records(data, "train"))
    return teachers


def gather(stores: list[Store], locations: list[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
    return [store.gather_columns(locations, 0) for store in stores]


LOCATIONS = [(1, 2), (0, 4), (0, 0), (1, 0)]
SPACES = [
    ClassSpace(num_classes=NUM_CLASSES, offset=1),
    ClassSpace(num_classes=NUM_CLASSES + 1),
    ClassSpace(num_classes=NUM_CLASSES - 4, offset=3),
    ClassSpace(num_classes=NUM_CLASSES + 9, offset=-2),
]


def read_logits(store: Store, space: ClassSpace, temperature: float) -> np.ndarray:
    rows = [store.read_logits(shard, 0, [row], temperature)[0] for shard, row in LOCATIONS]
    return map_logits(np.stack(rows), store.class_space, space)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_in_the_students_classes(data: Path, stores: dict[str, Store], name: str, space: ClassSpace) -> None:
    teachers = join(data, [stores[name]])
    batch = as_tensors(teachers.to_batch(gather([stores[name]], LOCATIONS)))
    assert all(len(values) == len(LOCATIONS) for values in batch.values())
    found, expected = teachers.decode(batch, 2.0, space), read_logits(stores[name], space, 2.0)
    assert found.shape == (4, space.num_classes) == expected.shape
    np.testing.assert_array_equal(np.isneginf(found.numpy()), np.isneginf(expected))
    if name == "topk":
        # Distances up to some 20 (three sigma of 3 on both sides): 12 * 2^-24 * 20 of rounding (test_on_device.py).
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    else:
        assert_bits(found, expected)


def test_several_stores_have_an_axis_of_their_own(data: Path, stores: dict[str, Store]) -> None:
    chosen = [stores["int8"], stores["topk"], stores["float16"]]
    teachers = join(data, chosen)
    batch = as_tensors(teachers.to_batch(gather(chosen, LOCATIONS)))
    found = teachers.decode(batch, 4.0, SPACES[1])
    assert found.shape == (4, 3, NUM_CLASSES + 1)
    for number, store in enumerate(chosen):
        alone = join(data, [store])
        assert torch.equal(
            found[:, number], alone.decode(as_tensors(alone.to_batch(gather([store], LOCATIONS))), 4.0, SPACES[1])
        )


def test_more_than_ten_stores_are_told_apart(data: Path, stores: dict[str, Store]) -> None:
    chosen = [stores["float32"]] * 11 + [stores["float16"]]
    teachers = join(data, chosen)
    found = teachers.decode(as_tensors(teachers.to_batch(gather(chosen, LOCATIONS))), 1.0, SPACES[0])
    assert_bits(found[:, 1].contiguous(), read_logits(stores["float32"], SPACES[0], 1.0))
    assert_bits(found[:, 11].contiguous(), read_logits(stores["float16"], SPACES[0], 1.0))


def test_a_class_index_that_does_not_exist_is_refused_before_it_reaches_a_device(stores: dict[str, Store]) -> None:
    store = stores["topk"]
    (columns,) = gather([store], LOCATIONS)
    columns["indices"][2, 5] = NUM_CLASSES
    teachers = StoredLogits([stores["int8"], store])
    with pytest.raises(StoreError, match=rf"^{store.path}: class index {NUM_CLASSES} in a store of .* damaged"):
        teachers.to_batch([*gather([stores["int8"]], LOCATIONS), columns])
    with pytest.raises(StoreError, match="damaged"):
        store.codec.decode_logits(columns)


def test_one_store_needs_no_list(stores: dict[str, Store]) -> None:
    """As ``StoredViews(store)``, beside which it stands."""
    assert StoredLogits(stores["int8"]).stores == [stores["int8"]]


def test_with_a_temperature_a_batch_has_logits_and_no_columns(data: Path, stores: dict[str, Store]) -> None:
    source = open_records(data, "train")
    teachers = StoredLogits([stores["int8"]], temperature=2.0)
    joined = join_records(teachers.join(source), LOCATIONS, source.read_batch(LOCATIONS))
    stored = teachers.read(joined, 0, SPACES[1])
    arrays = teachers.finish_arrays(stored, SPACES[1])
    batch = teachers.finish_tensors(as_tensors(stored), SPACES[1])
    assert list(batch) == list(arrays) == ["teacher_logits"]
    assert_bits(batch["teacher_logits"], read_logits(stores["int8"], SPACES[1], 2.0))
    np.testing.assert_array_equal(arrays["teacher_logits"], read_logits(stores["int8"], SPACES[1], 2.0))


def test_before_the_classes_of_the_data_are_known_nothing_is_decoded(
    data: Path, stores: dict[str, Store], tmp_path: Path
) -> None:
    """A folder of the same images numbers their classes from 0: by the store's own numbers each would be the next."""
    store = stores["float32"]
    folder = open_records(write_as_folder(open_records(data, "train"), tmp_path / "folder"), "train")
    teachers, names = StoredLogits([store]), store.plan.class_names
    assert folder.classes is not None and names is not None
    columns = teachers.to_batch(gather([store], LOCATIONS))
    space = ClassSpace(num_classes=len(folder.classes.names))
    with pytest.raises(ConfigError, match=rf"^{store.path}: .* not joined with records yet; decode with dataset.logit"):
        teachers.decode(as_tensors(columns), 2.0, space)
    with pytest.raises(ConfigError, match=rf"^{store.path}: .* not joined with records yet"):
        teachers.decode_arrays(columns, 2.0, space)
    with pytest.warns(UserWarning, match="by name the data has 8 of the teacher's 30 classes"):
        teachers.join(folder)
    found = teachers.decode_arrays(columns, 2.0, space)
    shard, row = LOCATIONS[0]
    said = store.read_logits(shard, 0, [row])[0]
    assert found[0].tolist() == [said[names.index(name) - store.class_space.offset] for name in folder.classes.names]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["float32", "topk"])
def test_a_temperature_that_no_softmax_has_is_refused(
    data: Path, stores: dict[str, Store], name: str, temperature: float
) -> None:
    """A sparse codec would raise what NumPy says of it, or nothing, and give NaN."""
    teachers = join(data, [stores[name]])
    columns = teachers.to_batch(gather([stores[name]], LOCATIONS))
    with pytest.raises(ConfigError, match=rf"^temperature {temperature}: expected a finite number above 0"):
        StoredLogits([stores[name]], temperature=temperature)
    with pytest.raises(ConfigError, match=r"^temperature"):
        teachers.decode(as_tensors(columns), temperature, SPACES[0])
    with pytest.raises(ConfigError, match=r"^temperature"):
        teachers.decode_arrays(columns, temperature, SPACES[0])
    with pytest.raises(ConfigError, match=r"^temperature"):
        stores[name].read_logits(0, 0, [0], temperature)


def test_it_pickles(data: Path, stores: dict[str, Store]) -> None:
    chosen = [stores["topk"], stores["int8"]]
    teachers = join(data, chosen)
    batch = as_tensors(teachers.to_batch(gather(chosen, LOCATIONS)))
    again = pickle.loads(pickle.dumps(teachers))
    assert torch.equal(again.decode(batch, 2.0, SPACES[1]), teachers.decode(batch, 2.0, SPACES[1]))


@pytest.mark.parametrize("names", [["int8"], ["topk"], ["topk", "float16"]], ids=str)
def test_a_data_sets_batches_decode_to_its_logits(data: Path, stores: dict[str, Store], names: list[str]) -> None:
    """Records and partners in one batch too, whose columns are joined as they are stored."""
    source, chosen = open_records(data, "train"), [stores[name] for name in names]
    options: dict[str, Any] = {"size": 8, "store": chosen, "temperature": 2.0}
    stored, decoded = build_dataset(source, as_stored=True, **options), build_dataset(source, **options)
    for items in ([(0, 3), (7, 3), (5, 3)], [(0, 4), (6, 4), (6, 5), (1, 5)]):
        a, b = stored.__getitems__(items), decoded.__getitems__(items)
        assert "teacher_logits" not in a and not [name for name in b if name.startswith("teacher0_")]
        assert isinstance(stored.logits, StoredLogits)
        assert torch.equal(stored.logits.decode(a, 2.0, stored.class_space), b["teacher_logits"])
        assert all(torch.equal(a[name], b[name]) for name in b.keys() - {"teacher_logits"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CODECS)
def test_on_a_cuda_device(data: Path, stores: dict[str, Store], name: str) -> None:
    teachers = join(data, [stores[name]])
    batch = as_tensors(teachers.to_batch(gather([stores[name]], LOCATIONS)))
    with torch.autocast("cuda", torch.bfloat16):
        found = teachers.decode({key: values.cuda() for key, values in batch.items()}, 2.0, SPACES[1])
    assert found.is_cuda and found.dtype == torch.float32
    expected = teachers.decode(batch, 2.0, SPACES[1])
    # The tail may be summed in another order: as far as from the reference, see tests/codecs/test_on_device.py.
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-5 if name == "topk" else 0)
