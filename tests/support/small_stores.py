"""A small store with given content and no data, for tests of its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachonce.codecs.dense import Int8Codec
from teachonce.records.class_space import ClassSpace
from teachonce.store.card import CARD_NAME
from teachonce.store.plan import Group, Plan, group_views
from teachonce.store.plan_files import CONFIG_NAME
from teachonce.store.tables import Sample, StoreWriter
from teachonce.views.policy import CenterPolicy, CropPolicy, policy_to_json
from teachonce.views.view import View

SIZES = (5, 3)
NUM_CLASSES = 7
MADE_BY = {"versions": {"python": "3"}, "device": "cpu"}


def make_plan(num_views: int = 1, views_per_file: int = 2, **changes: Any) -> Plan:
    """A plan of two shards of ``SIZES``: of policy center with one view, else of crops."""
    policy = CenterPolicy() if num_views == 1 else CropPolicy()
    shards = [[f"train-{i:05d}-of-00002", n, 100] for i, n in enumerate(SIZES)]
    plan = Plan(
        teacher={"spec": "timm:x", "model": "timm:x", "weights_sha256": "ab", "precision": "float32"},
        class_space=ClassSpace(num_classes=NUM_CLASSES, offset=1),
        data_classes=NUM_CLASSES + 1,
        data={"split": "train", "format": "tfrecord", "shards": shards},
        shards=tuple((name, count) for name, count, _ in shards),
        policy=policy_to_json(policy) | ({} if num_views == 1 else {"seed": 0}),
        codec=Int8Codec().to_json(),
        view_groups=group_views(num_views, views_per_file),
    )
    return dataclasses.replace(plan, **changes)


def shard_keys(shard: int, num_records: int) -> np.ndarray:
    """The keys of a shard: rising, and beyond 2^63."""
    return np.arange(num_records, dtype=np.uint64) + np.uint64(2**63 + 100 * shard)


def fill(
    path: Path, plan: Plan, groups: Sequence[Group] | None = None, shards: Sequence[int] | None = None
) -> tuple[list[np.ndarray], list[list[list[View]]]]:
    """Write every file of the plan (or of some groups or shards); returns the logits [shard][V, N, C] and the views."""
    writer = StoreWriter(path, plan, MADE_BY)
    logits, views = [], []
    for shard, (name, num_records) in enumerate(plan.shards):
        rng = np.random.default_rng(shard)
        keys = shard_keys(shard, num_records)
        labels = np.arange(num_records, dtype=np.int32) + 1
        all_logits = rng.normal(0, 5, (plan.num_views, num_records, NUM_CLASSES)).astype(np.float32)
        all_views = [
            [View((0, 0, v + 1, n + 1), n % 2 == 0) for n in range(num_records)] for v in range(plan.num_views)
        ]
        logits.append(all_logits)
        views.append(all_views)
        if shards is not None and shard not in shards:
            continue
        writer.write_records(name, keys, [f"{shard}_{i}.jpg" for i in range(num_records)], labels)
        for group in groups or plan.view_groups:
            part = slice(group[0], group[1] + 1)
            chosen = all_views[part] if plan.read_policy()[0].is_random else None
            if plan.num_samples:
                samples = [
                    Sample(row, group[0], row + 1, row + 2, all_logits[group[0], row])
                    for row in range(min(plan.num_samples, num_records))
                ]
                writer.write_samples(name, group, keys, samples)
            writer.write_views(name, group, keys, labels, all_logits[part], chosen)
    return logits, views


def read_tree(path: Path) -> dict[str, bytes]:
    """The files of a store; those aside that are not done, its card, and the options of the call that began it."""
    left_out = (CARD_NAME, CONFIG_NAME)
    return {file.name: file.read_bytes() for file in sorted(path.glob("[!.]*")) if file.name not in left_out}


class Today:
    """Data that has some shards more than the plan, and all of its records."""

    def __init__(self, *added):
        self.added = list(added)
        self.asked = []

    def find_added(self, plan):
        self.asked.append(plan)
        return self.added

    def check_has_all(self, plan):
        """It does."""
