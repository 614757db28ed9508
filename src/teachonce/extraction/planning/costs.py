"""What follows from a plan's measurements: hours, break-even and distortion, as functions of numbers alone.

``measure`` measures; nothing here reads a clock or a file, so each rule can be checked by hand. Two of them a
reader would question:

- *One pipeline.* The extraction decodes in threads ahead of the teacher, and reads and writes beside both. On an
  accelerator these run at the same time, so a view takes as long as the slowest of them. On a CPU they share the
  cores, so a view takes the sum.
  The network uses no core: it runs in parallel in both cases.
- *The break-even compares one with the other's extra work.* Offline pays the whole extraction (reading, decoding,
  teacher, encoding) once and the decoding of a stored row at each step. Online pays the teacher's forward at each step
  and nothing more: the student's loader reads and decodes the image in both. So the hours break even later than the
  bare count of forwards does, which is after V epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.softmax import soften

TEMPERATURES = (1, 2, 4)
"""Where distortion and tail mass are measured: students are mostly trained at one of these."""
TAIL_KS = (1, 2, 5, 10, 20, 50)
"""Classes kept for which the mass of the rest is measured."""
MAX_WORST_VARIATION = 0.01
"""Total variation, of the worst sampled view at any of ``TEMPERATURES``, below which a codec counts as faithful."""
WORTH_NAMING = 0.9
"""Of the recommended codec's bytes: one that takes more than this saves too little to be called a trade-off."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds as measured. Those in threads are of one thread while all ``num_threads`` are busy."""

    read_seconds: float
    """Reading a record, with its checks, one after another."""
    decode_seconds: float
    """Decoding a record, in a thread."""
    look_seconds: float
    """Making the pixels of a view of a decoded record, in a thread; of a mixed view also reading and decoding its
    partner."""
    teacher_seconds: float
    """The teacher's forward, a view, at full batches."""
    write_seconds: float
    """Encoding a view's logits and writing them."""
    read_back_seconds: float
    """A stored row to dense logits, in one thread: what a student's loader pays."""
    num_threads: int
    has_accelerator: bool
    """Whether the teacher runs beside the cores that decode, or on them."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much is to be done."""

    num_records: int
    num_views: int
    num_groups: int
    """Files that hold the views of a shard: a record is read and decoded once for each."""
    num_shards: int
    epochs: int
    """Of each student."""
    students: int
    num_devices: int

    @property
    def all_views(self) -> int:
        """Views of all records together: the teacher's forwards."""
        return self.num_records * self.num_views

    @property
    def num_units(self) -> int:
        """Parts that devices can share: a shard x a group of views."""
        return self.num_shards * self.num_groups


@dataclass(frozen=True, kw_only=True)
class Hours:
    """How long an extraction takes."""

    seconds_per_view: dict[str, float]
    """By stage; decoding with all threads at work."""
    pipeline_seconds: float
    """A view, all stages together."""
    lanes: dict[str, float]
    """The same by what runs in parallel (on a CPU: one after another), the network too where its rate is
    given."""
    bottleneck: str
    """The lane that limits: of those of an accelerator the longest, of a CPU the longest unless the network takes
    longer than all of them together."""
    hours_here: float
    hours_on_devices: float
    """On ``num_devices`` like this one, each with cores of its own."""
    hours_sharing_cores: float | None
    """On that many accelerators in this machine, whose cores then decode for all of them; None on a CPU."""
    devices_used: int
    """At most one a unit."""
    device_hours: float
    """What is paid for: all of these devices until the last one is done."""
    cost: float | None
    """In the currency of ``price``; None without one."""


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Offline against an online teacher, run at every step of every student. Hours are those of one device."""

    offline_forwards: int
    online_forwards: int
    offline_hours: float
    """The extraction, and reading rows back in all epochs of all students."""
    online_hours: float
    saved_hours: float
    ratio: float
    """online_hours / offline_hours."""
    epochs: float | None
    """Epochs of one student after which both cost the same; None: never, reading a row costs more than a forward."""
    students: float | None
    """The same in students of the planned epochs."""


def estimate_hours(
    timings: Timings, workload: Workload, *, network_seconds: float | None = None, price: float | None = None
) -> Hours:
    """Hours of the extraction here and on several devices; the module's text says how stages are put together.

    ``network_seconds``: what the bytes of a view take on a device's link. ``price``: of a device for an hour.
    """
    decodes = workload.num_groups / workload.num_views
    stages = {
        "read": timings.read_seconds * decodes,
        "decode": timings.decode_seconds * decodes / timings.num_threads,
        "look": timings.look_seconds / timings.num_threads,
        "teacher": timings.teacher_seconds,
        "write": timings.write_seconds,
    }
    # What runs one after another, and beside the others: reading and writing are the main thread's.
    lanes = {
        "teacher": stages["teacher"],
        "decoding": stages["decode"] + stages["look"],
        "reading and writing": stages["read"] + stages["write"],
    }
    pipeline = max(lanes.values()) if timings.has_accelerator else sum(lanes.values())
    bottleneck = max(lanes, key=lambda name: lanes[name])
    if network_seconds is not None:
        if network_seconds > pipeline:
            pipeline, bottleneck = network_seconds, "network"
        lanes["network"] = network_seconds
    here = pipeline * workload.all_views / 3600
    used = min(workload.num_devices, workload.num_units)
    largest_share = math.ceil(workload.num_units / used) / workload.num_units
    sharing = None
    if timings.has_accelerator:
        # One machine has one link, too.
        shared = {name: used * lanes[name] for name in ("decoding", "network") if name in lanes}
        sharing = max((lanes | shared).values()) * workload.all_views / 3600 * largest_share
    device_hours = here * largest_share * used
    return Hours(
        seconds_per_view=stages,
        pipeline_seconds=pipeline,
        lanes=lanes,
        bottleneck=bottleneck,
        hours_here=here,
        hours_on_devices=here * largest_share,
        hours_sharing_cores=sharing,
        devices_used=used,
        device_hours=device_hours,
        cost=None if price is None else price * device_hours,
    )


def network_seconds(moved_bytes: float, gbps: float) -> float:
    """Seconds of so many bytes on a link of ``gbps`` 10^9 bits a second."""
    return moved_bytes * 8 / (gbps * 1e9)


def estimate_break_even(timings: Timings, workload: Workload, extraction_hours: float) -> BreakEven:
    """When the extraction has paid for itself: N V views once against N forwards an epoch."""
    steps = workload.epochs * workload.students
    online_a_step = workload.num_records * timings.teacher_seconds / 3600
    offline_a_step = workload.num_records * timings.read_back_seconds / 3600
    offline, online = extraction_hours + steps * offline_a_step, steps * online_a_step
    gain = online_a_step - offline_a_step
    epochs = extraction_hours / gain if gain > 0 else None
    return BreakEven(
        offline_forwards=workload.all_views,
        online_forwards=workload.num_records * steps,
        offline_hours=offline,
        online_hours=online,
        saved_hours=online - offline,
        ratio=online / offline,
        epochs=epochs,
        students=None if epochs is None else epochs / workload.epochs,
    )


def first_cheaper(break_even: float) -> int:
    """The first full epoch, or student, at which offline has cost less."""
    return math.floor(break_even) + 1


def tail_mass(logits: NDArray[np.float32], k: int, temperature: float) -> NDArray[np.float64]:
    """Softened mass [N] of the classes beyond the ``k`` most likely."""
    num_tail = logits.shape[1] - k
    # The tail itself is summed: one minus the rest would be rounding where the tail has next to nothing.
    return np.partition(soften(logits, temperature), num_tail - 1, axis=1)[:, :num_tail].sum(axis=1)


def measure_tails(logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Mean and worst tail mass at each of ``TEMPERATURES``, for each of ``TAIL_KS`` below the class count."""
    return [
        {"k": k, "mass": {str(t): mean_and_worst(tail_mass(logits, k, t)) for t in TEMPERATURES}}
        for k in TAIL_KS
        if k < logits.shape[1]
    ]


def mean_and_worst(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean and largest of a sample."""
    return {"mean": float(values.mean()), "worst": float(values.max())}


def recommend(codecs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The smallest faithful codec (``MAX_WORST_VARIATION``) of a plan's entries, and what a smaller one would cost.

    float32 is faithful, so there always is one.
    """
    usable = [entry for entry in codecs if entry["refused"] is None]
    faithful = [entry for entry in usable if worst_variation(entry) < MAX_WORST_VARIATION]
    best = min(faithful, key=lambda entry: entry["bytes_per_view"])
    smaller = [entry for entry in usable if entry["bytes_per_view"] < WORTH_NAMING * best["bytes_per_view"]]
    temperatures = ", ".join(map(str, TEMPERATURES))
    reason = (
        f"the smallest with total variation below {MAX_WORST_VARIATION} on every sampled view at T = "
        f"{temperatures} (worst {worst_variation(best):.2g})"
    )
    if smaller:
        # Of those that give something up, the one that gives up least.
        other = min(smaller, key=worst_variation)
        means = " / ".join(f"{other['total_variation'][str(t)]['mean']:.2g}" for t in TEMPERATURES)
        factor = best["bytes_per_view"] / other["bytes_per_view"]
        reason += (
            f"; the trade-off: {other['label']} takes {factor:.2g} times fewer bytes, for a mean total variation of "
            f"{means} at these T"
        )
    return {"codec": best["name"], "k": best["k"], "label": best["label"], "reason": reason}


def worst_variation(entry: Mapping[str, Any]) -> float:
    """Largest total variation of a codec's entry over the sample and all temperatures."""
    return max(entry["total_variation"][str(t)]["worst"] for t in TEMPERATURES)
