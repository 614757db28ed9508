"""What distillation costs a training: reading and decoding stored logits, a step with them, a store of ImageNet's size.

    python -m benchmarks.kd [--quick] [--only records|steps|store] [--out FILE]

Three parts, each a ratio or an absolute cost with its reference in the same run:

1. A record's logits on one core, in CPU time: gathered from a memory-mapped store in shuffled order, checked against
   the record's key, decoded where the student is; and read one by one. For scale, beside it: NumPy's copy of as many
   bytes as a record's float32 logits.
2. Training steps of a ResNet-18 at 224 px with KD and with labels only, in turn; and what differs, for itself.
3. A synthetic store of ImageNet's size (1.28 million records x 50 views, topk; --quick: a twentieth of the shards):
   opening it, the memory that reading takes, reading in shuffled order from a cold and a warm page cache.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.cpu_ratio import Interval, cpu_ratio, cpu_seconds, median_interval
from teachonce.codecs.codec import Codec
from teachonce.codecs.dense import Int8Codec
from teachonce.codecs.topk import TopKCodec
from teachonce.data.stored_logits import StoredLogits
from teachonce.data.tensors import as_tensors
from teachonce.engine.machine import num_cores
from teachonce.losses.losses import kd_loss, label_loss
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import shard_name
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Plan, group_views
from teachonce.store.store import Store
from teachonce.store.tables import StoreWriter, to_batch
from teachonce.versions import library_versions
from teachonce.views.columns import encode_views
from teachonce.views.policy import CropPolicy, policy_to_json
from teachonce.views.view import View

NUM_CLASSES = 1000
SHARD_RECORDS = 1250
BATCH_SIZE = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller store, fewer rounds")
    parser.add_argument("--only", choices=("records", "steps", "store"), help="one of the three parts")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    torch.set_num_threads(num_cores())
    command = " ".join(
        ["python -m benchmarks.kd", *["--quick"] * flags.quick, *([f"--only {flags.only}"] if flags.only else [])]
    )
    lines = [
        f"# What distillation costs, {platform.machine()}, {num_cores()} cores",
        "",
        f"{time.strftime('%Y-%m-%d')}, `{command}`.",
        ", ".join(f"{key} {value}" for key, value in library_versions().items()),
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if flags.only in (None, "records"):
            lines += record_costs(Path(folder), rounds=5 if flags.quick else 15)
        if flags.only in (None, "steps"):
            lines += step_costs(max_seconds=30 if flags.quick else 150)
        if flags.only in (None, "store"):
            lines += large_store(Path(folder), num_shards=52 if flags.quick else 1024)
    table = "\n".join(lines) + "\n"
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


def record_costs(folder: Path, rounds: int) -> list[str]:
    """Part 1."""
    torch.set_num_threads(1)
    lines = [
        "## A record's logits, one core, microseconds of CPU time",
        "",
        "| part | int8 | topk 10 |",
        "|---|---|---|",
    ]
    rng = np.random.default_rng(0)
    costs: dict[str, list[float]] = {}
    for codec in (Int8Codec(), TopKCodec(k=10, num_classes=NUM_CLASSES)):
        store = synthetic_store(folder / codec.name, codec, num_shards=8, num_views=1)
        teachers, space = StoredLogits([store]), store.class_space
        locations = [divmod(index, SHARD_RECORDS) for index in rng.permutation(8 * SHARD_RECORDS)[:4096].tolist()]
        batches = [locations[start : start + BATCH_SIZE] for start in range(0, len(locations), BATCH_SIZE)]
        gathered = [as_tensors(teachers.to_batch([store.gather_columns(batch, 0)])) for batch in batches]
        logits = [teachers.decode(batch, 2.0, space) for batch in gathered]

        def gather(store: Store = store, batches: list = batches) -> None:
            for batch in batches:
                store.gather_keys(batch)
                store.gather_columns(batch, 0)

        def decode(teachers: StoredLogits = teachers, space: ClassSpace = space, gathered: list = gathered) -> None:
            for batch in gathered:
                teachers.decode(batch, 2.0, space)

        def copy(logits: list = logits) -> None:
            for values in logits:
                values.numpy().copy()

        def read_rows(store: Store = store, locations: list = locations) -> None:
            for shard, row in locations:
                store.read_logits(shard, 0, [row], 2.0)

        for name, work in (
            ("gather from the store, key and view included", gather),
            ("decode to logits where the student is", decode),
            ("(copy 4 kB of float32 logits, for scale)", copy),
            ("(read and decoded one by one)", read_rows),
        ):
            costs.setdefault(name, []).append(median_cpu_seconds(work, rounds) / len(locations) * 1e6)
    lines += [f"| {name} | {int8:.1f} | {topk:.1f} |" for name, (int8, topk) in costs.items()]
    for codec_name in ("int8", "topk"):
        plain, trusted = reading_costs(folder / codec_name, rounds)
        costs.setdefault("a block's first reading, with its hash; once a view", []).append(plain)
        costs.setdefault("(the same with --trust)", []).append(trusted)
    lines += [f"| {name} | {int8:.2f} | {topk:.2f} |" for name, (int8, topk) in list(costs.items())[4:]]
    costs = dict(list(costs.items())[:4])
    both = [sum(values[column] for name, values in costs.items() if name[0] != "(") for column in (0, 1)]
    torch.set_num_threads(num_cores())
    return [*lines, f"| **together** (aim: 8) | **{both[0]:.1f}** | **{both[1]:.1f}** |", ""]


def reading_costs(path: Path, rounds: int) -> tuple[float, float]:
    """Microseconds of the processor a record to map and read all blocks of a view: checked by their hash, and trusted.

    All pages are touched both ways, as reading will do it.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for round_number in range(2 * rounds + 2):
        trust = round_number % 2 == 1
        store = Store(path, trust=trust)
        for shard in range(len(store.shards)):
            store.read_keys(shard)
        begin = time.process_time()
        for shard in range(len(store.shards)):
            for values in store.read_columns(shard, 0).values():
                values.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)
        if round_number >= 2:
            seconds[trust].append(time.process_time() - begin)
    checked, trusted = (statistics.median(seconds[trust]) / store.num_records * 1e6 for trust in (False, True))
    return checked, trusted


def step_costs(max_seconds: float) -> list[str]:
    """Part 2: steps in turn, until the interval is within half a per cent or too long; and what differs, for itself.

    Two steps differ in decoding the logits, in the KD loss and in its gradient with respect to the student's logits.
    On a machine whose steps vary by several per cent their ratio says little about one; but these parts are so small
    that the same variation of them is nothing. What they do not show is what they leave in the caches.
    """
    import timm

    # A second thread would spin while it waits for the first one, which is CPU time too.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = timm.create_model("resnet18", num_classes=NUM_CLASSES)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)
    images = torch.rand(16, 3, 224, 224)
    labels = torch.randint(NUM_CLASSES, (16,))
    lines = [
        "## A training step, ResNet-18 at 224 px, batch 16: with KD / labels only",
        "",
        "Ratios of CPU time, one thread: median (95 % interval); target 1.01.",
        "",
        "| codec | steps in turn | 1 + what differs / a step with labels |",
        "|---|---|---|",
    ]
    for codec in (Int8Codec(), TopKCodec(k=10, num_classes=NUM_CLASSES)):
        columns = codec.encode_logits(synthetic_logits(16))
        batch = {name: torch.from_numpy(values) for name, values in columns.items()}

        def loss_of(logits: torch.Tensor, with_kd: bool, codec: Codec = codec, batch: dict = batch) -> torch.Tensor:
            loss = label_loss(logits, labels)
            return loss + kd_loss(logits, codec.decode_tensor(batch, 2.0), 2.0) if with_kd else loss

        def step(with_kd: bool, loss_of: Callable = loss_of) -> None:
            loss = loss_of(student(images), with_kd)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        in_turn = cpu_ratio(partial(step, True), partial(step, False), max_seconds=max_seconds)
        parts = kd_share(partial(step, False), loss_of, student(images).detach())
        lines.append(
            f"| {codec.name} | {in_turn} | {parts.median:.5f} ({parts.low:.5f} to {parts.high:.5f}, "
            f"{parts.num_rounds} rounds) |"
        )
    torch.set_num_threads(num_cores())
    return [*lines, ""]


def kd_share(step: Callable[[], object], loss_of: Callable[..., torch.Tensor], logits: torch.Tensor) -> Interval:
    """1 + (both losses with their gradients - the loss of labels with its gradient) / a step, in CPU time."""
    logits.requires_grad_()
    repeats, rounds = 200, 25

    def losses(with_kd: bool) -> None:
        for _ in range(repeats):
            logits.grad = None
            loss_of(logits, with_kd).backward()

    losses(True)
    losses(False)
    step()
    found = []
    for _ in range(rounds):
        both, labels_alone = (cpu_seconds(partial(losses, with_kd)) / repeats for with_kd in (True, False))
        found.append(1 + (both - labels_alone) / cpu_seconds(step))
    return median_interval(found)


def _resident_bytes() -> int:
    """What the process has in memory now, pages of files that it maps included: its peak is that of what ran before."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def large_store(folder: Path, num_shards: int) -> list[str]:
    """Part 3."""
    path = folder / "large"
    synthetic_store(path, TopKCodec(k=10, num_classes=NUM_CLASSES), num_shards=num_shards, num_views=50)
    begin = time.perf_counter()
    store = Store(path)
    open_seconds = time.perf_counter() - begin
    rng = np.random.default_rng(0)
    count = min(64_000, store.num_records)
    locations = [divmod(int(index), SHARD_RECORDS) for index in rng.permutation(store.num_records)[:count]]
    batches = [locations[start : start + BATCH_SIZE] for start in range(0, count, BATCH_SIZE)]

    def read(view: int) -> float:
        begin = time.perf_counter()
        for batch in batches:
            store.gather_columns(batch, view)
        return count / (time.perf_counter() - begin)

    os.sync()
    for file in path.glob("*.arrow"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    before = _resident_bytes()
    cold = read(17)
    warm = statistics.median(read(17) for _ in range(3))
    grown_mb = (_resident_bytes() - before) / 1e6
    size = store.num_bytes()
    return [
        f"## A store of {num_shards * SHARD_RECORDS:,} records x 50 views, topk 10: {size / 1e9:.2f} GB",
        "",
        "| | |",
        "|---|---|",
        f"| opening | {open_seconds:.3f} s (target 1) |",
        f"| {count:,} records in shuffled order, cold page cache | {cold:,.0f} records/s |",
        f"| the same, warm | {warm:,.0f} records/s; cold / warm {cold / warm:.2f} |",
        f"| peak memory grew by | {grown_mb:.0f} MB, of it mapped pages of the {num_shards} files read |",
        "",
    ]


def synthetic_logits(count: int) -> np.ndarray:
    """Logits [count, C] of a confident teacher: a few likely classes above a normal rest."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (count, NUM_CLASSES)).astype(np.float32)
    logits[np.arange(count), rng.integers(0, NUM_CLASSES, count)] += 12
    return logits


def synthetic_store(path: Path, codec: Int8Codec | TopKCodec, num_shards: int, num_views: int) -> Store:
    """A store of crop views; every shard has the content of the first under keys and in files of its own."""
    names = [shard_name("train", index, num_shards) for index in range(num_shards)]
    plan = Plan(
        teacher={"spec": "synthetic", "model": "synthetic", "weights_sha256": "0" * 64},
        class_space=ClassSpace(num_classes=NUM_CLASSES, offset=1),
        data_classes=NUM_CLASSES + 1,
        data={
            "split": "train",
            "format": "tfrecord",
            "num_classes": NUM_CLASSES + 1,
            "shards": [[name, SHARD_RECORDS, 1] for name in names],
        },
        policy=policy_to_json(CropPolicy()) | {"seed": 0},
        codec=codec.to_json(),
        view_groups=group_views(num_views, 10),
        shards=tuple((name, SHARD_RECORDS) for name in names),
    )
    begin_store(path, plan, views_per_file=10)
    labels = np.arange(SHARD_RECORDS, dtype=np.int32) % NUM_CLASSES + 1
    views = [View((10, 20, 300, 330), bool(row % 2)) for row in range(SHARD_RECORDS)]
    columns = encode_views(views, CropPolicy().layout) | codec.encode_logits(synthetic_logits(SHARD_RECORDS))
    batch = to_batch(columns)
    writer = StoreWriter(path, plan, {"versions": library_versions(), "device": "cpu"})
    for shard, name in enumerate(names):
        keys = np.arange(SHARD_RECORDS, dtype=np.uint64) + np.uint64(shard * SHARD_RECORDS)
        writer.write_records(name, keys, [f"{key}.jpg" for key in keys], labels)
        for first, last in plan.view_groups:
            count = last - first + 1
            writer.write_columns(name, (first, last), keys, [batch] * count, [0] * count)
    finalize_store(path)
    return Store(path)


def median_cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median CPU time of ``work``."""
    work()
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
