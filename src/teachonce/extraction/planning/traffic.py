"""What an extraction moves: bytes read and written, and the requests that this takes of an object store.

Of local files only the bytes matter. The counts are those of a run that nothing interrupts, by how the storage works:

- *GET*: of TFRecord shards one a ``READ_BYTES`` and the one that opens them, for each group of views, as records are
  read again for each; of image folders, and of tables of image files, one an image; of mixed views one for each
  partner; and two for each file of the store (its first and its last bytes) when the manifests are made.
- *PUT*: one a file of the store, as a file appears complete by one request (larger than ``SINGLE_PUT_BYTES``: one for
  each of its parts, and two more); and the heartbeats of the workers, for as long as these are at it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teachonce.engine.heartbeat import BEAT_SECONDS
from teachonce.records.image_folder import IMAGE_FILE_FORMATS
from teachonce.store.plan import Plan

READ_BYTES = 8 << 20
"""Of a shard that is read in order, by one request."""
SINGLE_PUT_BYTES = 512 << 20
PART_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of the extraction, by all devices together."""

    read_bytes: int
    """Of the data: all of it for each group of views, and the partners of mixed views."""
    written_bytes: int
    """Of the store."""
    num_gets: int
    num_puts: int
    """Without those of heartbeats."""
    num_files: int
    """Of the finished store."""

    @property
    def moved_bytes(self) -> int:
        """In both directions."""
        return self.read_bytes + self.written_bytes


def count_traffic(plan: Plan, file_bytes: Sequence[float], store_bytes: int) -> Traffic:
    """The traffic of a plan whose Arrow files of shards and groups have these sizes, of ``store_bytes`` altogether."""
    sizes = [(num_records, num_bytes) for _, num_records, num_bytes in plan.data["shards"]]
    data_bytes = sum(num_bytes for _, num_bytes in sizes)
    num_groups = len(plan.view_groups)
    if plan.data["format"] in IMAGE_FILE_FORMATS:
        gets_a_group = sum(num_records for num_records, _ in sizes)
    else:
        gets_a_group = sum(1 + math.ceil(num_bytes / READ_BYTES) for _, num_bytes in sizes)
    num_partners = plan.num_records * plan.num_views * mix_prob(plan.policy)
    # Beside the Arrow files: the index, and as JSON the plan and a manifest of the records and of each group.
    num_files = len(file_bytes) + 1 + 1 + 1 + num_groups
    num_puts = num_files - len(file_bytes) + sum(map(count_puts, file_bytes))
    return Traffic(
        read_bytes=round(num_groups * data_bytes + num_partners * data_bytes / max(plan.num_records, 1)),
        written_bytes=store_bytes,
        num_gets=round(num_groups * gets_a_group + num_partners + 2 * len(file_bytes)),
        num_puts=num_puts,
        num_files=num_files,
    )


def count_puts(num_bytes: float) -> int:
    """Requests that put a file: one, or one a part with one that begins and one that ends them."""
    return 1 if num_bytes <= SINGLE_PUT_BYTES else math.ceil(num_bytes / PART_BYTES) + 2


def mix_prob(policy: Mapping[str, Any]) -> float:
    """Share of the views that need a second record, of a policy's entry in a plan."""
    mix = policy.get("mix")
    return 0.0 if mix is None else float(mix["prob"])


def count_heartbeats(device_hours: float) -> int:
    """Puts of heartbeats."""
    return round(device_hours * 3600 / BEAT_SECONDS)
