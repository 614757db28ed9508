"""The benchmark of loading: its command line, its arithmetic, its data, and the pixels of its yardstick; no timings."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from teachonce.interop.config import ReindexConfig
from teachonce.interop.reindex import reindex
from teachonce.pixels.decode import decode_image
from teachonce.pixels.render import ViewReader
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.views.draw import draw_view
from teachonce.views.policy import CropPolicy

WIDTH, HEIGHT = 150, 121


def photograph(mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


PHOTOGRAPHS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
}


def test_help_and_unknown_peers(capsys):
    from benchmarks.loading.__main__ import parse_flags

    with pytest.raises(SystemExit) as stopped:
        parse_flags(["--help"])
    assert stopped.value.code == 0
    with pytest.raises(SystemExit) as stopped:
        parse_flags(["--peers", "tfdata,nosuch"])
    assert stopped.value.code == 2
    assert "nosuch: not known, expected some of tfdata," in capsys.readouterr().err
    assert parse_flags(["--peers", "none"]).peers == []
    assert parse_flags(["--peers", "dali,tfdata"]).peers == ["dali", "tfdata"]


def test_every_target_is_of_a_peer():
    from benchmarks.loading.__main__ import TARGETS
    from benchmarks.loading.peers import PEERS

    assert TARGETS.keys() <= {name for variants in PEERS.values() for name in variants}


def test_ratios_are_taken_round_by_round():
    from benchmarks.loading.__main__ import TARGETS, Pair, quote, verdict

    pair = Pair("tf.data, antialiased", [100.0, 10.0, 50.0], {"ours": [200.0, 15.0, 150.0]})
    assert pair.ratios("ours") == [2.0, 1.5, 3.0]
    assert quote(pair.ratios("ours")) == "2.00 (1.50 to 3.00)"
    assert verdict(TARGETS, pair.peer, pair.ratios("ours")) == "1.9 held"
    assert verdict(TARGETS, pair.peer, [1.89]) == "1.9 **missed**"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_cpu_time_is_that_of_the_group():
    from benchmarks.loading.__main__ import cpu_seconds

    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # Ticks of 10 ms, and user and system time are each rounded down; the end takes next to nothing.
        assert 0.27 <= cpu_seconds(process.pid) < 1.0
        process.communicate(b"\n")
    assert cpu_seconds(process.pid) == 0


@pytest.mark.parametrize("options", PHOTOGRAPHS.values(), ids=PHOTOGRAPHS.keys())
@pytest.mark.parametrize("bottom", [1, 16, 17, 32, 63, HEIGHT - 1, HEIGHT])
def test_rows_above_a_cut_are_those_of_the_whole_image(options, bottom):
    from benchmarks.loading.decoding import CONTEXT_ROWS, cut_height

    encoded = photograph(**options)
    short, num_rows = cut_height(encoded, bottom + CONTEXT_ROWS)
    assert num_rows == min(HEIGHT, bottom + CONTEXT_ROWS)
    image = Image.open(io.BytesIO(bytes(short)))
    assert image.size == (WIDTH, num_rows)
    whole = np.asarray(decode_image(encoded))
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[:bottom], whole[:bottom])


def test_cut_height_of_other_bytes():
    from benchmarks.loading.decoding import cut_height

    with pytest.raises(ValueError, match="16 bytes without a JPEG frame header"):
        cut_height(b"\xff\xd8" + bytes(14), 10)


@pytest.mark.parametrize("options", PHOTOGRAPHS.values(), ids=PHOTOGRAPHS.keys())
def test_the_yardsticks_pixels_are_those_of_a_whole_decode(options):
    pytest.importorskip("simplejpeg")
    from torchvision.transforms.v2.functional import resize

    from benchmarks.loading.decoding import LibraryRenderer

    encoded = photograph(**options)
    whole = torch.from_numpy(np.array(decode_image(encoded))).permute(2, 0, 1)
    render = LibraryRenderer()
    out = np.empty((32, 32, 3), np.uint8)
    for number in range(20):
        view = draw_view(CropPolicy(), 0, 0, number, WIDTH, HEIGHT, None)
        render(encoded, view, out, WIDTH)
        left, top, right, bottom = view.box
        expected = resize(whole[:, top:bottom, left:right], [32, 32], antialias=True).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(out, expected[:, ::-1] if view.flip else expected)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A small WORK folder, as ``prepare_photographs`` makes a large one."""
    from benchmarks.loading.data import link_epoch, write_crop_store
    from benchmarks.photographs import write_photographs

    folder = tmp_path_factory.mktemp("work")
    data = write_photographs(folder / "records", 4, 2, with_logits=True)
    link_epoch(data, folder / "epoch", times=3)
    reindex(ReindexConfig(data=data, out=folder / "marked"))
    link_epoch(folder / "marked", folder / "marked-epoch", times=3)
    write_crop_store(folder / "store", open_records(folder / "epoch", "train"))
    return folder


def test_an_epoch_has_every_record_several_times(work):
    source = open_records(work / "epoch", "train")
    names = [record.filename for shard in range(6) for record in source.iter_shard(shard)]
    assert sorted(names) == sorted([f"{index}.jpg" for index in range(4)] * 3)


@pytest.mark.parametrize("name", ["ours, store", "ours, store, restart markers", "ours, image/logit"])
def test_ours_delivers_what_it_says(work, name):
    from benchmarks.loading.peers import OURS, Setting, check_batch

    setting = Setting(work=work, num_classes=1001, batch_size=4, size=16, num_workers=0)
    batches = OURS[name](setting)
    for _ in range(4):  # into the second epoch
        check_batch(next(batches), setting)
    with pytest.raises(ValueError, match="expected 5 images"):
        check_batch(next(batches), Setting(work=work, num_classes=1001, batch_size=5, size=16))


def test_markers_are_compared_on_the_same_pixels(work, monkeypatch):
    """A ratio a round, and an end where the pixels are others."""
    from benchmarks.loading import markers

    monkeypatch.setattr(markers, "BATCH_SIZE", 4)
    measured = markers.measure(work, rounds=2, batches=1)
    assert [len(ratios) for ratios in measured.values()] == [2, 2]
    assert all(ratio > 0 for ratios in measured.values() for ratio in ratios)
    assert markers.describe([1.0, 1.5, 1.25]) == "1.250 (1.000 to 1.500), mean 1.250 +- 0.283"
    black = itertools.repeat({"pixels": torch.zeros(4, 224, 224, 3, dtype=torch.uint8)})
    with pytest.raises(AssertionError, match="other pixels"):
        markers.compare(black, markers.decoded_of(work, "marked-epoch"), rounds=1, batches=1)


def test_small_images_are_measured_from_jpeg_and_from_memory(tmp_path, monkeypatch):
    from benchmarks.loading import small
    from benchmarks.loading.data import prepare_small

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.jpg")
    prepare_small(tmp_path, tmp_path / "images")
    monkeypatch.setattr(small, "BATCH_SIZES", (4, 8))
    rates = small.measure(tmp_path, rounds=1, seconds=0.01)
    assert [name.rpartition("store, ")[2] for name in rates][-4:] == [
        f"from {where}, batches of {size}" for where in ("JPEG", "memory") for size in (4, 8)
    ]
    assert all(rate > 0 for (rate,) in rates.values())
    shares = small.measure_shares(tmp_path, rounds=1)
    assert shares.keys() == {"from JPEG", "from memory"} and all(0 < share < 1 for (share,) in shares.values())


def test_the_stores_views_are_rendered(work):
    store = Store(work / "store")
    source = open_records(work / "epoch", "train")
    assert store.num_views == 4 and store.num_records == 12
    (seen,) = ViewReader(source, StoredViews(store)).read([(0, 0)], 3)
    assert seen.view == draw_view(CropPolicy(), 0, source.read_record(0, 0).key, 3, 500, 375, None)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["tfdata", "torchvision", "webdataset", "grain", "ffcv", "dali"])
def test_peers_deliver_what_they_say(work, peer):
    """In their own processes, as they are measured."""
    from benchmarks.loading.__main__ import NotInstalledError, Pipeline
    from benchmarks.loading.peers import PEERS

    for name in PEERS[peer]:
        try:
            with Pipeline(name, work, 1001, warm_up_seconds=0.0) as pipeline:
                assert min(pipeline.rate(0.1)) > 0
        except NotInstalledError as error:
            pytest.skip(str(error))
