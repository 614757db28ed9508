"""Records files that are made again without the teacher: as they were at the extraction, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.errors import StoreError
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.verify import verify
from teachonce.store.plan import records_file
from tests.support.small_data import change_image, rewrite_shard
from tests.support.small_models import COLORS, color_example, write_color_shards, write_color_teacher

SHARD = "train-00000-of-00002"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_color_shards(tmp_path / "data", sizes=(9, 6))


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return write_color_teacher(tmp_path / "teacher.onnx")


@pytest.fixture
def store(tmp_path: Path, data: Path, teacher: str) -> Path:
    """Of which a records file is damaged."""
    path = tmp_path / "store"
    run(data, teacher, path)
    file = path / records_file(SHARD)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    return path


def run(data: Path, teacher: str, out: Path, **options) -> None:
    given = {"policy": "crop", "views": 3, "views_per_file": 2, "codec": "int8", "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=out, batch_size=8, **(given | options)))


def test_damaged_records_are_made_again(data: Path, teacher: str, store: Path) -> None:
    run(data, teacher, store, repair=True)
    assert verify(VerifyConfig(store=store, data=data, device="cpu", teacher="none")).is_sound


def refuse(data: Path, teacher: str, store: Path, match: str) -> None:
    """Twice, as a plain extraction goes on; then the data is as it was, and the store too."""
    shard = data / SHARD
    good = shard.read_bytes()
    change, match = CHANGES[match]
    change(shard)
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"{records_file(SHARD)}: is missing or .* cannot be recomputed: {match}"):
            run(data, teacher, store, repair=True)
        assert not (store / records_file(SHARD)).exists()
    shard.write_bytes(good)
    run(data, teacher, store, repair=True)
    assert verify(VerifyConfig(store=store, data=data, device="cpu", teacher="none")).is_sound


CHANGES = {
    "image": (
        lambda shard: change_image(shard, 3),
        rf"an image of the data has changed since the views were extracted \(first: .*{SHARD} record 3 .*image_3\.",
    ),
    "label": (
        lambda shard: rewrite_shard(shard, lambda payloads: [color_example(0, 3, COLORS[0]), *payloads[1:]]),
        r"labels of the data have changed since the views were extracted \(in view 0 .* of 9 records, now of 8\)",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_records_that_changed_since_are_not(data: Path, teacher: str, store: Path, kind: str) -> None:
    refuse(data, teacher, store, kind)


def test_without_an_index_it_is_not_known_which(data: Path, teacher: str, store: Path) -> None:
    (store / "index.arrow").unlink()
    change_image(data / SHARD, 3)
    with pytest.raises(StoreError, match="which one cannot be determined without the store's index"):
        run(data, teacher, store, repair=True)
