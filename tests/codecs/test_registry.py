"""The codecs by name, their JSON, and that a codec of anybody's own goes all the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from msgspec import Meta
from numpy.typing import NDArray

from teachonce.codecs.codec import Columns, check_finite
from teachonce.codecs.dense import DenseCodec
from teachonce.codecs.options import CodecName
from teachonce.codecs.registry import CODECS, build_codec, codec_from_json
from teachonce.data.stored_logits import StoredLogits
from teachonce.data.tensors import as_tensors
from teachonce.errors import LogitsError, StoreError
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from tests.support.small_data import write_shards, write_store


@dataclass(frozen=True, kw_only=True)
class FixedPointCodec(DenseCodec):
    """Logits in steps of ``step`` as int16: 2 bytes a class, exact to half a step."""

    name: ClassVar[str] = "fixed"
    num_classes: int
    step: Annotated[float, Meta(gt=0)] = 0.125

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        steps = np.rint(check_finite(logits) / self.step)
        if np.abs(steps).max(initial=0) > 32767:
            raise LogitsError(
                f"a logit beyond {32767 * self.step:g}: too large for steps of {self.step}; choose larger ones"
            )
        return {"steps": steps.astype(np.int16)}

    def decode_logits(self, columns: Columns, temperature: float = 1.0) -> NDArray[np.float32]:
        return columns["steps"] * np.float32(self.step)

    def decode_tensor(self, columns: Mapping[str, torch.Tensor], temperature: float = 1.0) -> torch.Tensor:
        return columns["steps"] * self.step

    def error_bound(self, columns: Columns) -> NDArray[np.float64]:
        return np.full(columns["steps"].shape, self.step / 2)


def test_a_codec_of_ones_own_is_a_class_and_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the plan through the files of a store to the batch of a student, with no word of it anywhere else."""
    monkeypatch.setitem(CODECS, "fixed", FixedPointCodec)
    logits = np.random.default_rng(0).normal(0, 3, (8, 3)).astype(np.float32)
    write_store(tmp_path / "store", write_shards(tmp_path / "data"), logits, codec="fixed")

    store = Store(tmp_path / "store")
    assert store.codec == FixedPointCodec(num_classes=3)
    assert store.plan.codec == {"name": "fixed", "num_classes": 3, "step": 0.125}
    locations = [(0, 0), (1, 2), (0, 4)]
    expected = np.rint(logits[[0, 7, 4]] / 0.125) * 0.125
    assert [store.read_logits(shard, 0, [row])[0].tolist() for shard, row in locations] == expected.tolist()

    teachers = StoredLogits([store])
    teachers.join(open_records(tmp_path / "data", "train"))
    batch = as_tensors(teachers.to_batch([store.gather_columns(locations, 0)]))
    assert batch["teacher0_steps"].dtype == torch.int16
    decoded = teachers.decode(batch, 2.0, ClassSpace(num_classes=4))
    assert decoded.dtype == torch.float32 and decoded[:, 1:].tolist() == expected.tolist()
    assert decoded[:, 0].isneginf().all()


def test_a_codec_of_ones_own_refuses_what_it_cannot_hold() -> None:
    codec = FixedPointCodec(num_classes=2)
    held = np.array([[4095.875, -4095.875]], np.float32)
    assert codec.decode_logits(codec.encode_logits(held)).tolist() == held.tolist()
    with pytest.raises(LogitsError, match=r"a logit beyond 4095\.88: too large for steps of 0\.125"):
        codec.encode_logits(held + 1)
    assert codec.encode_logits(np.zeros((0, 2), np.float32))["steps"].shape == (0, 2)


def test_the_command_line_offers_every_codec() -> None:
    assert get_args(CodecName) == tuple(CODECS)
    assert all(codec.name == name for name, codec in CODECS.items())


def test_dense_codecs_keep_every_class_and_sparse_ones_say_which() -> None:
    logits = np.array([[0.0, 3.0, 1.0, 2.0]], np.float32)
    for name in ("float32", "float16", "int8"):
        codec = build_codec(name, num_classes=4)
        columns = codec.encode_logits(logits)
        assert (codec.num_kept, codec.num_tail, codec.kept_classes(columns)) == (None, 0, None)
    codec = build_codec("topk", num_classes=4, k=3)
    assert (codec.num_kept, codec.num_tail) == (3, 1)
    assert codec.kept_classes(codec.encode_logits(logits)).tolist() == [[1, 3, 2]]
    codec = build_codec("topk", num_classes=4, k=30)
    assert (codec.num_kept, codec.num_tail) == (4, 0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "int3"}, "unknown codec 'int3'"),
        ({}, "unknown codec None"),
        ({"name": ["int8"]}, r"unknown codec \['int8'\]"),
        ({"name": "int8", "bits": 3}, r"codec 'int8' with .*: bits: unknown here \(known: power\)"),
        ({"name": "float32", "power": 2.0}, r"power: unknown here \(known: none\)"),
        ({"name": "int8", "power": "2"}, "power: expected `float`, got `str`"),
        ({"name": "int8", "power": 0}, r"power: expected `float` > 0\.0"),
        ({"name": "int8", "power": float("nan")}, "power: nan, expected a finite number"),
        ({"name": "int8", "power": float("inf")}, "power: inf, expected a finite number"),
        ({"name": "topk", "k": 3}, "missing required field `num_classes`"),
        ({"name": "topk", "k": 3.0, "num_classes": 7}, "k: expected `int`, got `float`"),
        ({"name": "topk", "k": True, "num_classes": 7}, "k: expected `int`, got `bool`"),
        ({"name": "topk", "k": 0, "num_classes": 7}, "k 0 of 7 classes: expected at least 1"),
    ],
)
def test_an_entry_that_means_no_codec_is_refused_with_its_field(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        codec_from_json(entry)
