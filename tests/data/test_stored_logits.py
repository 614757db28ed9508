"""Stored logits decoded on the device: what the codecs decode in NumPy, in the student's classes, for every store."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teachonce.codecs.codec import Codec
from teachonce.codecs.registry import build_codec
from teachonce.codecs.topk import TopKCodec, tail_weights
from teachonce.data.stored_logits import StoredLogits, decode_on_device
from teachonce.errors import StoreError
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from tests.support.small_data import build_dataset, example, write_shards, write_store

CODECS = ["float32", "float16", "int8", "topk"]
NUM_CLASSES = 30
FINITE = st.floats(-1e6, 1e6, width=32)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)


def assert_bits(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float32 and expected.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.numpy().view(np.uint32), expected.view(np.uint32))


def decode(codec: Codec, columns: dict[str, np.ndarray], temperature: float = 1.0) -> torch.Tensor:
    tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
    return decode_on_device(codec, tensors, temperature)


@st.composite
def dense_columns(draw: st.DrawFn, name: str) -> dict[str, np.ndarray]:
    """Whatever a file can hold, not only what an encoder writes."""
    num_rows, num_classes = draw(SHAPES)
    rows, classes = (num_rows,), (num_rows, num_classes)
    if name == "float32":
        return {"logits": draw(hnp.arrays(np.float32, classes, elements=FINITE))}
    columns = {"max_logit": draw(hnp.arrays(np.float32, rows, elements=FINITE))}
    if name == "float16":
        distances = st.floats(0, 65504, width=16)
        return {**columns, "distances": draw(hnp.arrays(np.float16, classes, elements=distances))}
    positive = st.floats(0, 1e6, width=32)
    columns["codes"] = draw(hnp.arrays(np.uint8, classes))
    columns["range"] = draw(hnp.arrays(np.float32, rows, elements=positive))
    columns["far"] = draw(hnp.arrays(np.float32, rows, elements=positive))
    return columns


@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
@given(data=st.data(), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_the_dense_codecs_to_the_bit(name: str, data: st.DataObject, temperature: float) -> None:
    columns = data.draw(dense_columns(name))
    codec = build_codec(name, num_classes=next(iter(columns.values())).shape[-1])
    assert_bits(decode(codec, columns, temperature), codec.decode_logits(columns, temperature))


def topk_tolerance(codec: TopKCodec, columns: dict[str, np.ndarray], temperature: float) -> np.ndarray:
    """What float32 may lose [N, C]: each operation and each rounded constant half a unit in the last place, 2^-24.

    A kept class: the division by 255 counts twice (it is squared), the square, the product: 4, and 1 more for the
    reference's own rounding. The tail: step, product and two sums make a fall (4); the sum with the range (1); weight,
    product and three sums (5); and the reference's rounding: 11, of the sum of |weight| * |distance|.
    """
    kept = columns["range"].astype(np.float64)[:, None] * (columns["codes"] / 255) ** 2
    tolerance = np.zeros((len(kept), codec.num_classes))
    if codec.num_tail:
        tolerance[:] = 12 * 2.0**-24 * (codec._decode_tail(columns) @ np.abs(tail_weights(temperature)))[:, None]
    np.put_along_axis(tolerance, columns["indices"].astype(np.intp), 6 * 2.0**-24 * kept, axis=1)
    return tolerance


@given(
    logits=hnp.arrays(np.float32, SHAPES, elements=st.floats(-300, 300, width=32) | st.floats(-8, 8, width=16)),
    k=st.integers(1, 12),
    temperature=st.sampled_from([0.5, 1.0, 1.7, 2.0, 4.0, 8.0, 30.0]),
)
def test_topk_within_the_rounding_of_float32(logits: np.ndarray, k: int, temperature: float) -> None:
    codec = TopKCodec(k=k, num_classes=logits.shape[1])
    columns = codec.encode_logits(logits)
    found, expected = decode(codec, columns, temperature), codec.decode_logits(columns, temperature)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    error = np.abs(found.numpy().astype(np.float64) - expected)
    assert (error <= topk_tolerance(codec, columns, temperature)).all()
    assert (found.argmax(dim=1).numpy() == expected.argmax(axis=1)).all()


def test_topk_with_indices_of_four_bytes() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (3, 70_000)).astype(np.float32)
    codec = TopKCodec(k=7, num_classes=70_000)
    columns = codec.encode_logits(logits)
    assert columns["indices"].dtype == np.uint32
    error = np.abs(decode(codec, columns, 2.0).numpy().astype(np.float64) - codec.decode_logits(columns, 2.0))
    assert (error <= topk_tolerance(codec, columns, 2.0)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CODECS)
def test_mixed_precision_changes_nothing(name: str, dtype: torch.dtype) -> None:
    logits = np.random.default_rng(1).normal(0, 4, (5, NUM_CLASSES)).astype(np.float32)
    codec = build_codec(name, num_classes=NUM_CLASSES)
    columns = codec.encode_logits(logits)
    expected = decode(codec, columns, 3.0)
    with torch.autocast("cpu", dtype):
        found = decode(codec, columns, 3.0)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_shards(folder, num_classes=NUM_CLASSES + 1, payloads=[example(index, 1 + index) for index in range(8)])


@pytest.fixture(scope="module")
def stores(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("stores")
    options: dict[str, Any] = {"num_classes": NUM_CLASSES, "offset": 1}
    return {name: write_store(folder / name, data, codec=name, **options) for name in CODECS}


def gather(stores: list[Store], places: list[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
    return [store.gather_columns(places, 0) for store in stores]


PLACES = [(1, 2), (0, 4), (0, 0), (1, 0)]
SPACES = [
    ClassSpace(num_classes=NUM_CLASSES, offset=1),
    ClassSpace(num_classes=NUM_CLASSES + 1),
    ClassSpace(num_classes=NUM_CLASSES - 4, offset=3),
    ClassSpace(num_classes=NUM_CLASSES + 9, offset=-2),
]


def read_logits(store: Store, space: ClassSpace, temperature: float) -> np.ndarray:
    rows = [store.read_logits(shard, 0, [row], temperature)[0] for shard, row in PLACES]
    return map_logits(np.stack(rows), store.class_space, space)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_in_the_students_classes(stores: dict[str, Store], name: str, space: ClassSpace) -> None:
    teachers = StoredLogits([stores[name]])
    batch = teachers.to_batch(gather([stores[name]], PLACES))
    assert all(len(values) == len(PLACES) for values in batch.values())
    found, expected = teachers.decode(batch, 2.0, space), read_logits(stores[name], space, 2.0)
    assert found.shape == (4, space.num_classes) == expected.shape
    np.testing.assert_array_equal(np.isneginf(found.numpy()), np.isneginf(expected))
    if name == "topk":
        # Distances up to some 20 (three sigma of 3 on both sides): 12 * 2^-24 * 20 of rounding, see above.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    else:
        assert_bits(found, expected)


def test_several_stores_have_an_axis_of_their_own(stores: dict[str, Store]) -> None:
    chosen = [stores["int8"], stores["topk"], stores["float16"]]
    teachers = StoredLogits(chosen)
    batch = teachers.to_batch(gather(chosen, PLACES))
    found = teachers.decode(batch, 4.0, SPACES[1])
    assert found.shape == (4, 3, NUM_CLASSES + 1)
    for number, store in enumerate(chosen):
        alone = StoredLogits([store])
        assert torch.equal(found[:, number], alone.decode(alone.to_batch(gather([store], PLACES)), 4.0, SPACES[1]))


def test_more_than_ten_stores_are_told_apart(stores: dict[str, Store]) -> None:
    chosen = [stores["float32"]] * 11 + [stores["float16"]]
    teachers = StoredLogits(chosen)
    found = teachers.decode(teachers.to_batch(gather(chosen, PLACES)), 1.0, SPACES[0])
    assert_bits(found[:, 1].contiguous(), read_logits(stores["float32"], SPACES[0], 1.0))
    assert_bits(found[:, 11].contiguous(), read_logits(stores["float16"], SPACES[0], 1.0))


def test_a_class_index_that_does_not_exist_is_refused_before_it_reaches_a_device(stores: dict[str, Store]) -> None:
    store = stores["topk"]
    (columns,) = gather([store], PLACES)
    columns["indices"][2, 5] = NUM_CLASSES
    teachers = StoredLogits([stores["int8"], store])
    with pytest.raises(StoreError, match=rf"^{store.path}: class index {NUM_CLASSES} in a store of .* damaged"):
        teachers.to_batch([*gather([stores["int8"]], PLACES), columns])
    with pytest.raises(StoreError, match="damaged"):
        store.codec.decode_logits(columns)


def test_with_a_temperature_a_batch_has_logits_and_no_columns(data: Path, stores: dict[str, Store]) -> None:
    records = open_records(data, "train").read_batch(PLACES)
    batch = StoredLogits([stores["int8"]], temperature=2.0).read(PLACES, 0, records, SPACES[1])
    assert list(batch) == ["teacher_logits"]
    assert_bits(batch["teacher_logits"], read_logits(stores["int8"], SPACES[1], 2.0))


def test_it_pickles(stores: dict[str, Store]) -> None:
    chosen = [stores["topk"], stores["int8"]]
    teachers = StoredLogits(chosen)
    batch = teachers.to_batch(gather(chosen, PLACES))
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
def test_on_a_cuda_device(stores: dict[str, Store], name: str) -> None:
    teachers = StoredLogits([stores[name]])
    batch = teachers.to_batch(gather([stores[name]], PLACES))
    with torch.autocast("cuda", torch.bfloat16):
        found = teachers.decode({key: values.cuda() for key, values in batch.items()}, 2.0, SPACES[1])
    assert found.is_cuda and found.dtype == torch.float32
    expected = teachers.decode(batch, 2.0, SPACES[1])
    # The tail may be summed in another order: as far as from the reference, see above.
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-5 if name == "topk" else 0)
