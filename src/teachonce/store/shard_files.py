"""Files of a shard that no manifest may have yet: what a repair asks them before it makes another of them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.registry import codec_from_json
from teachonce.errors import StoreError
from teachonce.storage.block_file import BlockFile, check_was_read
from teachonce.storage.files import open_storage
from teachonce.store.manifests import REPAIR, index_file
from teachonce.store.plan import Group, Plan, views_file
from teachonce.store.tables import check_file, count_hits, read_index, to_numpy, views_schema
from teachonce.views.columns import VIEW_COLUMNS

ROWS_AT_ONCE = 1024


def open_views(path: Path, plan: Plan, shard: int, group: Group) -> BlockFile:
    """A view file; StoreError where it is damaged."""
    shard_name, num_records = plan.shards[shard]
    name, storage = views_file(shard_name, group), open_storage(path)
    file = BlockFile(storage, name, advice=REPAIR)
    expected = {"plan": plan.identity, "shard": shard_name, "num_records": num_records, "views": list(group)}
    check_file(file, name, storage.describe(name), expected, REPAIR)
    return file


def count_view_hits(path: Path, plan: Plan, shard: int, group: Group, labels: NDArray[np.int32]) -> list[int]:
    """Of each view of a file the records whose most likely class is the label; StoreError where it is damaged."""
    file = open_views(path, plan, shard, group)
    codec, offset = codec_from_json(plan.codec), plan.class_space.offset
    schema = views_schema(plan.read_policy()[0].layout, codec, plan.class_space.num_classes)
    hits = []
    for block in range(file.num_blocks):
        batch = file.read(block, schema, len(labels))
        columns = {name: to_numpy(batch.column(name)) for name in schema.names if name not in VIEW_COLUMNS}
        count = 0
        for first in range(0, len(labels), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            logits = codec.decode_logits({name: values[rows] for name, values in columns.items()})
            count += count_hits(logits, labels[rows], offset)
        hits.append(count)
    return hits


def read_indexed_keys(path: Path, plan: Plan, shard: int) -> NDArray[np.uint64] | None:
    """The keys [n] of a shard as the index of its part has them; None where there is none that can be read."""
    part = max(part for part, entry in enumerate(plan.parts) if entry.first_shard <= shard)
    shards, storage = plan.part_shards(part), open_storage(path)
    try:
        file = BlockFile(storage, index_file(part))
        index = read_index(file, shards, [plan.shards[number][1] for number in shards])
    except StoreError as error:
        check_was_read(storage, index_file(part), error, "repeat it once this can be read")
        return None
    keys = np.zeros(plan.shards[shard][1], np.uint64)
    own = np.flatnonzero(index.shards == shard)
    keys[index.rows[own]] = index.keys[own]
    return keys
