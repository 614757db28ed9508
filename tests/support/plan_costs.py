"""Measured figures of a plan, for tests."""

from teachonce.extraction.planning.costs import (
    Timings,
    Workload,
)

TIMINGS = Timings(
    read_seconds=0.01,
    decode_seconds=0.08,
    look_seconds=0.02,
    teacher_seconds=0.2,
    write_seconds=0.001,
    read_back_seconds=0.02,
    num_threads=4,
    has_accelerator=False,
)


WORKLOAD = Workload(num_records=3600, num_views=10, num_groups=2, num_shards=3, epochs=50, students=2, num_devices=4)
