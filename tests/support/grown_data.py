"""Data that grows, and the extraction over it in short, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from tests.support.small_data import (
    build_dataset,
)
from tests.support.small_stores import read_tree

OPTIONS = {"policy": "crop", "views": 3, "views_per_file": 2, "codec": "float32", "device": "cpu", "gate_samples": 0}


def run(data: Path, teacher: str, out: Path, **options) -> Store:
    assert extract(ExtractConfig(data=data, teacher=teacher, out=out, **(OPTIONS | {"batch_size": 8} | options)))
    return Store(out)


def by_key(store: Store) -> dict[int, list]:
    """Views and logits of each record, and its label and filename."""
    return {
        key: [
            (store.read_views(shard, view, [row])[0], store.read_logits(shard, view, [row])[0])
            for view in range(store.num_views)
        ]
        + [int(store.read_labels(shard)[row]), store.read_filename(shard, row)]
        for shard in range(len(store.shards))
        for row, key in enumerate(store.read_keys(shard).tolist())
    }


def check_same_content(store: Store, scratch: Store, *, num_gone: int = 0) -> None:
    """What an extraction from scratch has of the data as it is now, the store has too."""
    found, expected = by_key(store), by_key(scratch)
    assert len(found) == len(expected) + num_gone and store.num_views == scratch.num_views
    for key, (*views, label, filename) in expected.items():
        assert found[key][-2:] == [label, filename]
        for (view, logits), (other_view, other_logits) in zip(views, found[key], strict=False):
            assert view == other_view
            np.testing.assert_allclose(logits, other_logits, atol=1e-5)


def check_kept(path: Path, before: dict[str, bytes]) -> None:
    after = read_tree(path)
    assert {name: after[name] for name in before} == before


def check_trains(store: Store, data: Path) -> None:
    """Every record of the data in every view, with the logits of its own key."""
    source = open_records(data, "train")
    dataset = build_dataset(source, size=8, store=store)
    for epoch in range(store.num_views):
        batch = dataset.read_batch(range(len(dataset)), epoch)
        for index in range(len(dataset)):
            record = source.read_record(*source.locate(index))
            (shard, row), *_ = store.locations_of(record.key)
            assert batch["labels"][index] == record.label
            logits = batch["teacher_logits"][index][torch.isfinite(batch["teacher_logits"][index])]
            np.testing.assert_array_equal(logits, store.read_logits(shard, epoch, [row])[0])
