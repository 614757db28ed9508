"""Columns decoded as tensors: what ``decode_logits`` computes in NumPy, the same bits or within float32's rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teachonce.codecs.codec import Codec
from teachonce.codecs.registry import CODECS, build_codec
from teachonce.codecs.topk import TopKCodec, tail_weights

NUM_CLASSES = 30
FINITE = st.floats(-1e6, 1e6, width=32)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)


def assert_bits(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float32 and expected.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.numpy().view(np.uint32), expected.view(np.uint32))


def decode(codec: Codec, columns: dict[str, np.ndarray], temperature: float = 1.0) -> torch.Tensor:
    tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
    return codec.decode_tensor(tensors, temperature)


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
