"""Bytes and requests of an extraction: by hand, and those of a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teachonce.extraction.config import PlanConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.planning.estimate import build_estimate
from teachonce.extraction.planning.traffic import (
    PART_BYTES,
    READ_BYTES,
    SINGLE_PUT_BYTES,
    count_heartbeats,
    count_puts,
    count_traffic,
    mix_prob,
)
from teachonce.store.card import CARD_NAME
from teachonce.store.plan_files import CONFIG_NAME
from tests.support.small_data import write_image_folder
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.small_stores import make_plan

MIB = 1 << 20


def plan_of(num_views: int, shard_bytes: int, **data: Any):
    plan = make_plan(num_views)  # two shards of 5 and 3 records, groups of two views
    shards = [[name, count, shard_bytes] for name, count in plan.shards]
    return replace(plan, data={**plan.data, "shards": shards, **data})


def test_by_hand():
    traffic = count_traffic(plan_of(5, 20 * MIB), [1000.0] * 8, 9000)
    # Three groups of views, for each of which both shards are opened and read by three requests; eight files of the
    # store whose ends are read; beside them the index, the plan, and four manifests.
    assert traffic.num_gets == 3 * 2 * (1 + 3) + 2 * 8
    assert traffic.read_bytes == 3 * 2 * 20 * MIB and traffic.written_bytes == 9000
    assert traffic.num_files == traffic.num_puts == 8 + 1 + 1 + 4
    assert traffic.moved_bytes == traffic.read_bytes + 9000


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_image_files_are_read_one_by_one(kind: str):
    assert count_traffic(plan_of(5, 8 * MIB, format=kind), [], 0).num_gets == 3 * 8


def test_a_mixed_view_reads_a_second_record():
    plan = plan_of(4, 8 * MIB)
    assert mix_prob(plan.policy) == 0
    mixed = replace(plan, policy={**plan.policy, "mix": {"mixup_alpha": 0.2, "cutmix_alpha": 0.0, "prob": 0.5}})
    plain, traffic = count_traffic(plan, [], 0), count_traffic(mixed, [], 0)
    assert traffic.num_gets - plain.num_gets == 8 * 4 / 2
    assert traffic.read_bytes - plain.read_bytes == 8 * 4 / 2 * (16 * MIB / 8)


def test_large_files_go_in_parts():
    assert [count_puts(size) for size in (0, SINGLE_PUT_BYTES, SINGLE_PUT_BYTES + 1)] == [1, 1, 9 + 2]
    assert count_puts(10 * SINGLE_PUT_BYTES) == 10 * SINGLE_PUT_BYTES // PART_BYTES + 2
    assert count_traffic(plan_of(1, READ_BYTES), [SINGLE_PUT_BYTES + 1.0], 0).num_puts == 11 + 4


def test_heartbeats_are_puts_for_as_long_as_devices_work():
    assert count_heartbeats(2.0) == 480


@pytest.mark.parametrize("kind", ["tfrecord", "folder"])
def test_files_and_bytes_are_those_of_an_extraction(tmp_path: Path, kind: str):
    if kind == "folder":
        data = write_image_folder(tmp_path / "data")
    else:
        data = write_color_shards(tmp_path / "data")
    teacher = write_color_teacher(tmp_path / "teacher.onnx")
    config = PlanConfig(data=data, teacher=teacher, device="cpu", views=5, views_per_file=2, batch_size=8, offset=0)
    traffic = build_estimate(config)["traffic"]
    extract(replace(config.to_extraction(), out=tmp_path / "store", gate_samples=0))
    # The card and the options of the call are not counted: they are one of each store.
    left_out = (CARD_NAME, CONFIG_NAME)
    files = [path for path in (tmp_path / "store").iterdir() if path.name not in left_out]
    assert traffic["num_files"] == traffic["num_puts"] == len(files)
    written = sum(path.stat().st_size for path in files if path.suffix == ".arrow")
    # Arrow pads each buffer to 8 bytes, of which a file has 30 at most.
    assert traffic["written_bytes"] == pytest.approx(written, abs=8 * 30 * len(files))
    images = [path for path in (data / "train").rglob("*") if path.is_file()]
    shards = list(data.glob("train-*-of-?????")) if kind == "tfrecord" else images
    assert traffic["read_bytes"] == 3 * sum(path.stat().st_size for path in shards)
    num_arrow = sum(1 for path in files if path.suffix == ".arrow" and path.name != "index.arrow")
    assert traffic["num_gets"] == 3 * len(shards) * (1 if kind == "folder" else 2) + 2 * num_arrow


def test_requests_are_as_large_as_the_storage_makes_them() -> None:
    pytest.importorskip("obstore")
    from teachonce.storage.remote import object_storage, reader

    assert reader.AHEAD_BYTES == READ_BYTES
    assert (object_storage.MAX_SINGLE_PUT_BYTES, object_storage.PART_BYTES) == (SINGLE_PUT_BYTES, PART_BYTES)
