"""What crosses to the device and what is done there: batches, stored logits, JPEGs; and who waits for whom."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.report import Report, in_turn, no_waiting, rates, synchronize
from benchmarks.gpu.setting import Setting
from benchmarks.kd import synthetic_logits
from teachonce.codecs.codec import Codec
from teachonce.codecs.dense import Int8Codec
from teachonce.codecs.topk import TopKCodec
from teachonce.data.dataset import EvalDataset, KDDataset
from teachonce.data.logit_sources import LogitSource
from teachonce.data.stored_logits import StoredLogits
from teachonce.engine.machine import num_cores
from teachonce.models.classifier import load_model
from teachonce.models.pending import PendingLogits
from teachonce.pixels.decode import decode_image
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.view_sources import OwnViews
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from teachonce.views.policy import CropPolicy

NUM_CLASSES = 1000
TOPK_TOLERANCE = 2.0**-18
"""Of a row's range: sums of some ten float32 in another order (tests/codecs/test_on_device.py)."""


def check_batches(setting: Setting, report: Report, store: Store) -> None:
    """Batches for the device are page-locked and arrive whole however busy it is; those for the CPU are neither."""
    is_cuda = setting.device.type == "cuda"
    dataset = _dataset(setting, store, page_locked=is_cuda)
    batch = dataset.__getitems__([(index, 0) for index in range(8)])
    unlocked = [name for name, values in batch.items() if not values.is_pinned()] if is_cuda else []
    report.check("batches for the device: entries that are not page-locked", unlocked, "[]", not unlocked)
    preprocessing = Preprocessing(size_px=setting.size_px, resize_px=setting.size_px)
    evaluation = EvalDataset(dataset.records, preprocessing, dataset.class_space, page_locked=is_cuda)
    unlocked = [name for name, item in evaluation.__getitems__([(0, 0)]).items() if is_cuda and not item.is_pinned()]
    report.check("batches for an evaluation there", unlocked, "[]", not unlocked)
    locked = [name for name, values in _dataset(setting, store).__getitems__([(0, 0)]).items() if values.is_pinned()]
    report.check("batches for the CPU: entries that are page-locked", locked, "[]", not locked)
    report.check(
        "batches that differ from the CPU's after copies behind a busy device", *_copy_behind_work(setting, dataset)
    )


def _copy_behind_work(setting: Setting, dataset: KDDataset) -> tuple[int, str, bool]:
    """Copies wait on the device while their memory is let go of and used for the next batches."""
    batches = [list(range(start, start + 8)) for start in range(0, min(dataset.records.num_records, 160), 8)]
    load = torch.rand(512 if setting.is_tiny else 8192, 512 if setting.is_tiny else 8192, device=setting.device)
    arrived = []
    for indices in batches:
        for _ in range(4):
            load @ load  # to keep the device busy
        batch = dataset.__getitems__([(index, 0) for index in indices])
        arrived.append(batch["pixels"].to(setting.device, non_blocking=True))
        del batch
    plain = KDDataset(dataset.records, dataset.views, dataset.logits, size=dataset.preprocessing.size_px)
    expected = [plain.__getitems__([(index, 0) for index in indices])["pixels"] for indices in batches]
    wrong = sum(not torch.equal(a.cpu(), b) for a, b in zip(arrived, expected, strict=True))
    return wrong, f"0 of {len(batches)}", wrong == 0 and len(batches) > 1


def measure_copies(setting: Setting, report: Report) -> None:
    """A batch of pixels to the device, from page-locked memory against plain memory."""
    if setting.device.type != "cuda":
        return
    plain = torch.randint(0, 256, (setting.batch_size, setting.size_px, setting.size_px, 3), dtype=torch.uint8)
    locked = plain.pin_memory()

    def copy(source: torch.Tensor) -> int:
        for _ in range(8):
            source.to(setting.device, non_blocking=True)
        return 8 * source.numel()

    found = in_turn(setting.device, partial(copy, locked), partial(copy, plain), setting.rounds)
    report.measure(
        "pixels to the device, page-locked / plain memory",
        f"{found}; {found.rate / 1e9:.1f} and {found.other_rate / 1e9:.1f} GB/s",
    )


def check_decoding(setting: Setting, report: Report) -> None:
    """Stored logits decoded on the device: the bits of the CPU (int8), or within rounding (topk); and how fast."""
    count = setting.batch_size
    for codec in (Int8Codec(), TopKCodec(k=10, num_classes=NUM_CLASSES)):
        columns = codec.encode_logits(synthetic_logits(count))
        batch = {name: torch.from_numpy(values) for name, values in columns.items()}
        if setting.device.type == "cuda":
            batch = {name: values.pin_memory() for name, values in batch.items()}
        on_device = {name: values.to(setting.device) for name, values in batch.items()}
        with torch.autocast(setting.device.type, torch.bfloat16):
            found = codec.decode_tensor(on_device, 2.0).cpu().numpy()
        expected = codec.decode_logits(columns, 2.0) if isinstance(codec, TopKCodec) else codec.decode_logits(columns)
        error = float(np.abs(found - expected).max() / np.ptp(expected, axis=1).max())
        report.check_at_most(
            f"{codec.name} decoded there, under autocast: difference from NumPy / range",
            error,
            TOPK_TOLERANCE if isinstance(codec, TopKCodec) else 0.0,
        )

        def there(codec: Codec = codec, batch: dict = batch) -> int:
            for _ in range(20):
                codec.decode_tensor(
                    {name: values.to(setting.device, non_blocking=True) for name, values in batch.items()}, 2.0
                )
            return 20 * count

        def here(codec: Codec = codec, batch: dict = batch) -> int:
            for _ in range(20):
                logits = codec.decode_tensor(batch, 2.0)
                (logits.pin_memory() if setting.device.type == "cuda" else logits).to(setting.device, non_blocking=True)
            return 20 * count

        ratio = in_turn(setting.device, there, here, setting.rounds)
        report.measure(
            f"{codec.name}: columns copied and decoded there / decoded on the host and copied",
            f"{ratio}; {1e6 / ratio.rate:.2f} us a record",
        )


def check_waiting(setting: Setting, report: Report, teacher: str) -> None:
    """Asking a teacher waits for nothing, and what was asked first is here while the next is still at work."""
    model = load_model(teacher, device=setting.device)
    size_px = model.preprocessing.size_px
    pixels = torch.zeros(setting.batch_size, size_px, size_px, 3, dtype=torch.uint8)
    pixels = pixels.pin_memory() if setting.device.type == "cuda" else pixels
    model.collect_logits(model.logits(pixels))
    try:
        with no_waiting(setting.device):
            first = PendingLogits(model.logits(pixels))
            second = PendingLogits(model.logits(pixels))
        found = "nothing"
    except RuntimeError as error:
        found = str(error).splitlines()[0]
    report.check("what asking a teacher waits for", found, "nothing", found == "nothing")
    if setting.device.type != "cuda" or found != "nothing":
        return
    second.wait()
    # A long queue behind the first answer: it must come home without waiting for all of that.
    first = PendingLogits(model.logits(pixels))
    for _ in range(8):
        last = model.logits(pixels)
    end = torch.cuda.current_stream(setting.device).record_event()
    first.wait()
    is_early = not end.query()
    report.check("an answer is read while later batches are at work", is_early, "True", is_early)
    del last
    synchronize(setting.device)


def measure_jpegs(setting: Setting, report: Report) -> None:
    """Whole JPEGs decoded by nvJPEG through torchvision, against this package's views and Pillow on all cores."""
    from torchvision.io import ImageReadMode, decode_jpeg

    jpegs = setting.jpegs[0][:8] if setting.is_tiny else (setting.jpegs[0] * 2)[:256]
    encoded = [torch.frombuffer(bytearray(item), dtype=torch.uint8) for item in jpegs]
    source = open_records(setting.data, "train")
    views = OwnViews(CropPolicy(), 0)
    dataset = KDDataset(source, views, size=setting.size_px, page_locked=setting.device.type == "cuda")
    # Small batches: at the end of an epoch no thread is left without work for long.
    size = min(32, source.num_records)

    def ours() -> int:
        for batch in dataset.batches(batch_size=size, epoch=0, num_workers=num_cores()):
            batch["pixels"].to(setting.device, non_blocking=True)
        return len(dataset)

    def nvjpeg() -> int:
        decode_jpeg(encoded, mode=ImageReadMode.RGB, device=setting.device)
        return len(encoded)

    def torchvision_cpu() -> int:
        threads = [
            threading.Thread(
                target=lambda part: [decode_jpeg(item, mode=ImageReadMode.RGB) for item in part],
                args=(encoded[start :: num_cores()],),
            )
            for start in range(num_cores())
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(encoded)

    per_second = sorted(rates(setting.device, ours, 2 * setting.rounds))
    middle = per_second[len(per_second) // 2]
    report.measure(
        f"our loader, random crops to {setting.size_px} px on the device, {num_cores()} cores",
        f"{middle:,.0f} images/s ({per_second[0]:,.0f} to {per_second[-1]:,.0f}), {middle / num_cores():,.0f} a core",
    )
    if setting.device.type != "cuda":
        return
    ratio = in_turn(setting.device, nvjpeg, ours, setting.rounds)
    report.measure(
        "nvJPEG, whole images without cropping or resizing / our loader", f"{ratio}; {ratio.rate:,.0f} images/s"
    )
    ratio = in_turn(setting.device, nvjpeg, torchvision_cpu, setting.rounds)
    report.measure(
        "nvJPEG / torchvision's decoder on all cores, whole images",
        f"{ratio}; {ratio.other_rate:,.0f} images/s on the CPU",
    )
    found = decode_jpeg(encoded[:16], mode=ImageReadMode.RGB, device=setting.device)
    differences = [
        np.abs(image.permute(1, 2, 0).cpu().numpy().astype(int) - np.asarray(decode_image(item)).astype(int))
        for image, item in zip(found, jpegs[:16], strict=True)
    ]
    largest, mean = max(int(item.max()) for item in differences), float(np.mean([item.mean() for item in differences]))
    report.measure("nvJPEG's pixels against Pillow's", f"largest difference {largest} of 255, mean {mean:.2f}")


def _dataset(setting: Setting, store: Store, page_locked: bool = False) -> KDDataset:
    logits: LogitSource = StoredLogits([store], other_views=True)
    records = open_records(Path(setting.data), "train")
    return KDDataset(records, OwnViews(CropPolicy(), 0), logits, size=setting.size_px, page_locked=page_locked)
