"""The store: describes itself, is complete or refused, and gives back what the codec promises."""

import json
import pickle
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from teachonce.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from teachonce.codecs.topk import TopKCodec
from teachonce.errors import StoreError
from teachonce.records.key_index import KeyIndex
from teachonce.storage.block_file import BlockFile
from teachonce.storage.files import open_storage
from teachonce.storage.sealed_json import sealed_bytes
from teachonce.store import open_shards
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store, missing_files
from teachonce.store.open_shards import OpenShards
from teachonce.store.plan_files import put_config, read_plan
from teachonce.store.store import Store
from teachonce.store.tables import Sample, StoreWriter, to_batch, write_index
from teachonce.views.columns import encode_views
from teachonce.views.operations import OPERATION_NAMES
from teachonce.views.policy import CropPolicy, RandAugment, RandomErasing, RandomMix, policy_to_json
from teachonce.views.view import CENTER, View
from tests.support.small_stores import MADE_BY, NUM_CLASSES, SIZES, fill, make_plan, shard_keys


def test_what_is_written_is_read(finished):
    path, logits, views = finished
    store = Store(path)
    assert (store.num_records, store.num_views, store.shards[1]) == (8, 3, ("train-00001-of-00002", 3))
    for shard in range(2):
        assert store.read_keys(shard).tolist() == [2**63 + 100 * shard + i for i in range(SIZES[shard])]
        assert store.read_filenames(shard)[0] == f"{shard}_0.jpg" and store.read_labels(shard)[0] == 1
        for view in range(3):
            stored = store.read_logits(shard, view, slice(None))
            bound = store.codec.error_bound(store.read_rows(shard, view, slice(None)))
            assert (np.abs(stored - logits[shard][view]) <= bound).all()
            np.testing.assert_array_equal(store.read_logits(shard, view, [2, 0]), stored[[2, 0]])
            assert store.read_logits(shard, view, []).shape == (0, NUM_CLASSES)
            for not_numbers in (np.arange(len(stored)) == 2, [0.5]):
                with pytest.raises(TypeError, match="expected row numbers or a slice"):
                    store.read_rows(shard, view, not_numbers)
            assert store.read_views(shard, view, slice(None)) == views[shard][view]


@pytest.mark.parametrize(
    "locations", [[(0, 0)], [(1, 2), (0, 4), (1, 2), (0, 0), (1, 0)], [(0, n) for n in range(5)], [(1, 0), (0, 0)]]
)
def test_gathered_columns_are_the_rows_one_by_one(finished, locations):
    store = Store(finished[0])
    for view in range(3):
        gathered = store.gather_columns(locations, view)
        assert gathered.keys() == store.read_columns(0, view).keys() >= {"box", "flip", "codes"}
        for name, values in gathered.items():
            rows = [store.read_columns(shard, view)[name][row] for shard, row in locations]
            np.testing.assert_array_equal(values, np.stack(rows))
            assert values.dtype == store.read_columns(0, view)[name].dtype
            values[...] = 0  # a copy: what is mapped cannot be written to
    keys, labels = store.gather_keys(locations)
    assert keys.tolist() == [int(store.read_keys(shard)[row]) for shard, row in locations] and keys.dtype == np.uint64
    assert labels.tolist() == [int(store.read_labels(shard)[row]) for shard, row in locations]


def test_gathering_nothing_and_beyond(finished):
    store = Store(finished[0])
    keys, labels = store.gather_keys([])
    assert len(keys) == len(labels) == 0
    with pytest.raises(StoreError, match="view 3 does not exist"):
        store.gather_columns([(0, 0)], 3)
    for location in ((0, 5), (2, 0)):
        with pytest.raises(IndexError):
            store.gather_columns([(0, 0), location], 0)


def test_threads_may_read_different_views_at_once(finished):
    """Two views a shard are kept; whoever reads another one meanwhile takes it away from nobody."""
    path = finished[0]
    store = Store(path)
    expected = {
        (shard, view): Store(path).read_logits(shard, view, slice(None)) for shard in (0, 1) for view in range(3)
    }

    def work(number):
        for step in range(60):
            shard, view = (number + step) % 2, (number * step) % 3
            locations = [(shard, row) for row in range(SIZES[shard])]
            columns = store.gather_columns(locations, view)
            if not np.array_equal(store.codec.decode_logits(columns), expected[shard, view]):
                return False
            if store.locations_of(int(store.read_keys(shard)[1])) != [(shard, 1)]:
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_two_views_of_a_shard_stay_mapped(finished, monkeypatch):
    """A batch of mixed-up images reads two views of each shard; the epoch after it two others."""
    store = Store(finished[0])
    mapped = []
    map_columns = Store._map_columns

    def count(self, shard, view):
        mapped.append((shard, view))
        return map_columns(self, shard, view)

    monkeypatch.setattr(Store, "_map_columns", count)
    for _ in range(3):
        for view in (0, 1):
            store.gather_columns([(0, 0), (1, 0)], view)
    assert mapped == [(0, 0), (1, 0), (0, 1), (1, 1)]
    first = store.read_columns(0, 1)
    store.read_columns(0, 2)
    assert store.read_columns(0, 1) is first
    assert mapped[4:] == [(0, 2)]
    store.read_columns(0, 0)
    assert mapped[5:] == [(0, 0)], "the view before the last two is let go"


def test_it_pickles_and_its_fingerprint_is_stable(finished):
    path, *_ = finished
    store = Store(path)
    store.read_keys(0)
    store.find(store.read_keys(1))
    again = pickle.loads(pickle.dumps(store))
    assert again.locations_of(int(store.read_keys(1)[2])) == [(1, 2)]
    np.testing.assert_array_equal(again.read_logits(1, 2, [1]), store.read_logits(1, 2, [1]))
    assert again.fingerprint == store.fingerprint == Store(path).fingerprint


def test_anybody_can_open_a_file(finished):
    path, *_ = finished
    table = ipc.open_file(pa.memory_map(str(path / "train-00000-of-00002.v000-001.arrow"))).read_all()
    frame = table.to_pandas() if importlib_has("pandas") else table.to_pydict()
    assert set(table.column_names) == {"box", "flip", "codes", "max_logit", "range", "far"} and len(frame["flip"]) == 10


def importlib_has(name):
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_an_unfinished_store_is_refused_and_says_what_is_missing(tmp_path):
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(), views_per_file=2)
    with pytest.raises(
        StoreError, match=r"0 of 4 files are there; run the command that made it \(extract, copy or upgrade\) to resume"
    ):
        Store(path)
    put_config(path, {})
    with pytest.raises(
        StoreError, match=r"is not finished: 0 of 4 files are there; run the same extract command to resume"
    ):
        Store(path)
    fill(path, plan)
    (path / "train-00001-of-00002.v000-000.arrow").unlink()
    assert missing_files(path, plan) == {"train-00001-of-00002.v000-000.arrow"}
    assert not finalize_store(path)
    with pytest.raises(StoreError, match="3 of 4 files"):
        Store(path)
    with pytest.raises(StoreError, match="no such folder; expected a store"):
        Store(tmp_path / "elsewhere")


def test_a_view_beyond_and_a_policy_without_views(finished, tmp_path):
    store = Store(finished[0])
    with pytest.raises(StoreError, match=r"view 3 does not exist: the store has views 0\.\.2"):
        store.read_logits(0, 3, [0])
    path = tmp_path / "center"
    fill(path, begin_store(path, make_plan(), views_per_file=2))
    finalize_store(path)
    assert Store(path).read_views(0, 0, [0]) == [CENTER]


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damage_is_found_where_it_is_read_and_by_verify(finished, damage):
    path, *_ = finished
    file = path / "train-00000-of-00002.v002-002.arrow"
    data = file.read_bytes()
    if damage == "flip":
        flip(file, BlockFile(open_storage(path), file.name)._starts[1] - 9)
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) * 2 // 3] if damage == "cut" else b"")
    store = Store(path)
    store.read_columns(0, 1)
    for read in (lambda: store.read_logits(0, 2, [0]), lambda: Store(path).read_views(0, 2, [0]), store.check_files):
        with pytest.raises(StoreError, match=r"train-00000-of-00002\.v002-002\.arrow: "):
            read()
    num_files, damaged = store.find_damage()
    assert num_files == 7 and [name for name, _ in damaged] == [file.name]


def test_one_view_of_a_file_is_damaged_and_the_others_are_read(finished):
    path, logits, _ = finished
    file = path / "train-00001-of-00002.v000-001.arrow"
    flip(file, BlockFile(open_storage(path), file.name)._starts[2] - 9)
    store = Store(path)
    assert store.read_logits(1, 0, slice(None)).shape == logits[1][0].shape
    for again in range(2):
        with pytest.raises(
            StoreError, match=r"v000-001\.arrow: block 1: hash \w+, \w+ was written.*--repair to rebuild it"
        ):
            store.read_logits(1, 1, [again])
    assert len(Store(path, trust=True).read_columns(1, 1)) > 0, "who trusts is not told"
    with pytest.raises(StoreError, match=r"1 of 7 files are damaged.*\n.*block 1: "):
        Store(path, trust=True).check_files()


def test_a_block_is_hashed_once(finished, monkeypatch):
    hashed = []
    real = BlockFile._damage
    monkeypatch.setattr(BlockFile, "_damage", lambda self, block, at: hashed.append(block) or real(self, block, at))
    store = Store(finished[0])
    for _ in range(3):
        for view in range(3):
            store.read_columns(0, view)
    assert hashed == [0, 1, 0], "three views; each was mapped again, as two are kept"


@pytest.mark.parametrize("kind", ["records", "index"])
def test_damaged_keys_join_nothing(finished, kind):
    path, *_ = finished
    file = path / ("index.arrow" if kind == "index" else "train-00000-of-00002.records.arrow")
    flip(file, BlockFile(open_storage(path), file.name)._starts[1] - 9)
    with pytest.raises(StoreError, match=rf"{file.name}: block 0: hash"):
        Store(path).find(np.arange(3, dtype=np.uint64)) if kind == "index" else Store(path).read_keys(0)


def test_a_file_of_another_store_in_its_place_is_refused(finished, tmp_path):
    """Of equal size and sound in itself: the manifest has the hash of its first bytes."""
    path, *_ = finished
    other = begin_store(tmp_path / "other", make_plan(num_views=3, teacher={"spec": "timm:y", "model": "timm:y"}), 2)
    fill(tmp_path / "other", other)
    for name in ("train-00000-of-00002.v000-001.arrow", "train-00000-of-00002.records.arrow"):
        shutil.copy(tmp_path / "other" / name, path / name)
        with pytest.raises(StoreError, match=rf"{name}: its first bytes .* are not those that were written"):
            Store(path).check_files()
        with pytest.raises(StoreError, match=rf"{name}: its first bytes"):
            Store(path).read_columns(0, 0) if ".v" in name else Store(path).read_keys(0)
        with pytest.raises(StoreError, match=rf"{name}: plan \w+, expected \w+: belongs to another plan"):
            Store(path, trust=True).read_columns(0, 0) if ".v" in name else Store(path, trust=True).read_keys(0)


def test_any_flipped_bit_of_a_plan_or_manifest_is_refused(finished):
    path, *_ = finished
    for name in ("plan.json", "manifest.records.json", "manifest.v000-001.json", "manifest.v002-002.json"):
        good = (path / name).read_bytes()
        for at in range(0, len(good), 11):
            flip(path / name, at)
            with pytest.raises(StoreError, match=rf"{name}: "):
                Store(path).check_files()
            (path / name).write_bytes(good)
    assert Store(path).check_files() == 7


def test_what_made_the_views_is_said(finished):
    path, *_ = finished
    assert Store(path).made_by == [MADE_BY] and Store(path).versions == {"python": "3"}
    plan = begin_store(path, make_plan(num_views=4), views_per_file=2)
    other = {"versions": {"python": "4", "torch": "2"}, "device": "gpu"}
    for shard, (name, count) in enumerate(plan.shards):
        logits = np.zeros((1, count, NUM_CLASSES), np.float32)
        views = [[View((0, 0, 1, 1))] * count]
        StoreWriter(path, plan, other).write_views(
            name, (3, 3), shard_keys(shard, count), np.zeros(count, np.int32), logits, views
        )
    assert finalize_store(path) == 4
    store = Store(path)
    assert store.made_by == [MADE_BY, other] and store.versions == {"python": "3 and 4", "torch": "2"}
    assert Store(path, num_views=3).made_by == [MADE_BY]


def test_the_fingerprint_is_that_of_the_views_that_are_read(finished):
    path, *_ = finished
    fingerprints = {Store(path, num_views=count).fingerprint for count in (1, 2, 3)}
    assert len(fingerprints) == 3
    plan = begin_store(path, make_plan(num_views=5), views_per_file=2)
    fill(path, plan, groups=[(3, 4)])
    finalize_store(path)
    assert {Store(path, num_views=count).fingerprint for count in (1, 2, 3)} == fingerprints
    assert Store(path).fingerprint not in fingerprints


def test_records_are_found_by_their_keys(finished):
    store = Store(finished[0])
    keys = np.concatenate([store.read_keys(1)[::-1], np.array([1, 2**64 - 1], np.uint64), store.read_keys(0)[2:3]])
    known, locations = store.find(keys)
    assert known.tolist() == [True, True, True, False, False, True]
    assert locations.tolist() == [[1, 2], [1, 1], [1, 0], [-1, -1], [-1, -1], [0, 2]]
    assert store.locations_of(int(keys[0])) == [(1, 2)] and store.locations_of(1) == []
    assert store.has_filename("1_2.jpg") and store.has_filename("a/b/1_2.jpg") and not store.has_filename("2.jpg")


def test_samples_are_read_back(tmp_path):
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(num_views=3, num_samples=2), views_per_file=2)
    logits, _ = fill(path, plan)
    assert finalize_store(path) == 3
    store = Store(path)
    assert store.sample_files() == [(0, (0, 1)), (1, (0, 1)), (0, (2, 2)), (1, (2, 2))]
    assert Store(path, num_views=2).sample_files() == store.sample_files()[:2]
    first, second = store.read_samples(1, (2, 2))
    assert (first.row, first.view, first.image_xxh3, second.row, second.pixels_xxh3) == (0, 2, 1, 1, 3)
    np.testing.assert_array_equal(second.logits, logits[1][2, 1])
    assert store.check_files() == 11 and store.num_bytes() == sum(file.stat().st_size for file in path.glob("*.arrow"))


def test_the_rows_that_were_right_are_kept(finished):
    path, logits, _ = finished
    for shard, count in enumerate(SIZES):
        expected = [(logits[shard][view].argmax(axis=1) == np.arange(count)).sum() for view in range(3)]
        assert (
            Store(path).read_hits(shard, (0, 1)) == expected[:2]
            and Store(path).read_hits(shard, (2, 2)) == expected[2:]
        )


def test_a_missing_file_is_named_once(finished):
    path, *_ = finished
    (path / "train-00000-of-00002.records.arrow").unlink()
    with pytest.raises(StoreError) as error:
        Store(path).read_keys(0)
    assert str(error.value).count("records.arrow") == 1


def count_maps(path):
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="of Linux")
def test_a_file_is_mapped_once_and_a_shard_three_times_at_most(finished):
    """A process may have 65,530 maps: of 13,672 shards and two stores that is not much."""
    path, *_ = finished
    store = Store(path)
    for views, expected in ([0, 1], 2), ([2], 3), ([0], 3), ([1], 2):
        for view in views:
            for shard in range(2):
                store.read_columns(shard, view)
                store.read_labels(shard)
        assert count_maps(path) == 2 * expected
    del store
    assert count_maps(path) == 0


def test_the_shards_that_were_used_last_stay_open(finished, monkeypatch):
    monkeypatch.setattr(OpenShards, "_all", weakref.WeakSet())
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 2)
    opened = []
    real = BlockFile.__init__
    monkeypatch.setattr(BlockFile, "__init__", lambda self, *a, **o: opened.append(a[1]) or real(self, *a, **o))
    hashed = []
    damage = BlockFile._damage
    monkeypatch.setattr(BlockFile, "_damage", lambda self, block, at: hashed.append(block) or damage(self, block, at))
    store = Store(finished[0])
    for _ in range(2):
        first, second = store.read_columns(0, 0), store.read_keys(1)
    assert len(opened) == 2 and len(store._open) == 2
    other = Store(finished[0])  # two stores share what a process may have
    assert store.read_columns(0, 0) is first and len(store._open) == 1
    assert store.read_keys(1).tolist() == second.tolist() and len(store._open) == 1
    assert len(opened) == 3 and len(hashed) == 2, "opened again, not hashed again"
    assert len(pickle.loads(pickle.dumps(store))._open) == 0
    del other
    assert store.read_columns(0, 0)["codes"].tolist() == first["codes"].tolist() and len(store._open) == 2


def test_manifests_do_not_travel(finished):
    store = Store(finished[0])
    empty = len(pickle.dumps(store))
    assert store.read_columns(0, 0) and store.made_by
    assert len(pickle.dumps(store)) == empty
    assert pickle.loads(pickle.dumps(store)).made_by == store.made_by


@pytest.mark.parametrize(("row", "view"), [(5, 0), (0, 2), (2**32 - 1, 0)])
def test_a_sample_of_a_row_or_view_that_is_not_there_is_refused(tmp_path, row, view):
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(num_views=3, num_samples=2), views_per_file=2)
    name = "train-00000-of-00002.v000-001.sample.arrow"
    sample = Sample(row, view, 1, 2, np.zeros(NUM_CLASSES, np.float32))
    StoreWriter(path, plan, MADE_BY).write_samples("train-00000-of-00002", (0, 1), shard_keys(0, 5), [sample])
    fill(path, plan)
    finalize_store(path)
    with pytest.raises(StoreError, match=rf"{name}: a sample of row {row}, view {view}, expected rows below 5 and vie"):
        Store(path).read_samples(0, (0, 1))


@pytest.mark.parametrize("trust", [False, True])
def test_an_index_of_records_that_are_not_there_is_refused(finished, trust):
    """Though its hashes hold, and where nothing is hashed."""
    path, *_ = finished
    index = Store(path).index[0]
    rows = index.rows.copy()
    rows[3] = 4_000_000_000
    (path / "index.arrow").unlink()
    write_index(path, "index.arrow", KeyIndex(index.keys, index.shards, rows), read_plan(path).identity)
    value = json.loads((path / "manifest.records.json").read_text())
    del value["xxh3"]
    value["files"]["index.arrow"] = BlockFile(open_storage(path), "index.arrow").entry
    (path / "manifest.records.json").write_bytes(sealed_bytes(value))
    with pytest.raises(StoreError, match=r"index\.arrow: shard \d row 4000000000: there is no such record: damaged"):
        Store(path, trust=trust).find(np.array([1], np.uint64))


POLICY = CropPolicy(
    randaugment=RandAugment(), erasing=RandomErasing(), mix=RandomMix(mixup_alpha=1.0, cutmix_alpha=1.0)
)
CODECS = {
    "float32": Float32Codec(),
    "float16": Float16Codec(),
    "int8": Int8Codec(),
    "topk": TopKCodec(k=3, num_classes=NUM_CLASSES),
}


@pytest.mark.parametrize(
    ("codec", "column", "value", "match"),
    [
        ("float32", "logits", np.nan, r"logits \[.*nan.*\], expected finite numbers"),
        ("float32", "logits", -np.inf, r"logits \[.*-inf"),
        ("float16", "distances", np.nan, r"distances \[.*nan"),
        ("float16", "distances", -1, r"distances \[.*-1"),
        ("float16", "max_logit", np.inf, "max_logit inf"),
        ("int8", "max_logit", np.nan, "max_logit nan"),
        ("int8", "range", np.nan, "range nan"),
        ("int8", "far", -1, r"far -1\.0"),
        ("topk", "indices", NUM_CLASSES, f"class index {NUM_CLASSES}, expected one of {NUM_CLASSES} classes"),
        ("topk", "range", np.nan, "range nan"),
        ("topk", "range", np.inf, "range inf, expected 0 to 256"),
        ("int8", "box", [9, 0, 3, 9], r"box \[9, 0, 3, 9\], expected left < right"),
        ("int8", "box", [3, 3, 3, 9], r"box \[3, 3, 3, 9\]"),
        ("int8", "flip", 2, "flip 2, expected 0 or 1"),
        ("int8", "operations", [0, 99], r"operations \[0, 99\], expected codes below 15 .a newer teachonce"),
        ("int8", "magnitudes", [np.nan, 0], r"magnitudes \[nan, 0\.0\], expected finite"),
        ("int8", "posterize", 0, r"magnitudes \[.*1 to 8 bits for posterize"),
        ("int8", "posterize", 9, r"magnitudes \[.*1 to 8 bits for posterize"),
        ("int8", "erasing_boxes", [9, 9, 3, 3], r"erasing_boxes \[9, 9, 3, 3\], expected left <= right"),
        ("int8", "mix_share", 2, r"mix_share 2\.0, expected 0 to 1"),
        ("int8", "mix_share", np.nan, "mix_share nan"),
        ("int8", "mix_box", [9, 9, 3, 3], r"mix_box \[9, 9, 3, 3\], expected left <= right"),
    ],
)
def test_values_that_nothing_writes_are_refused_where_they_are_read(tmp_path, codec, column, value, match):
    """Though every hash holds; once a block is found sound it is not looked at again."""
    path, name = tmp_path / "store", "train-00000-of-00002"
    policy = policy_to_json(POLICY) | {"seed": 0}
    plan = begin_store(path, make_plan(num_views=2, policy=policy, codec=CODECS[codec].to_json()), views_per_file=2)
    good = encode_views([View((0, 0, 5, 5))] * 5, POLICY.layout)
    good |= CODECS[codec].encode_logits(np.random.default_rng(0).normal(0, 3, (5, NUM_CLASSES)).astype(np.float32))
    bad = {key: values.copy() for key, values in good.items()}
    if column == "posterize":
        bad["operations"][3], bad["magnitudes"][3] = OPERATION_NAMES.index(column), value
    else:
        bad[column][3] = value
    StoreWriter(path, plan, MADE_BY).write_columns(
        name, (0, 1), shard_keys(0, 5), [to_batch(good), to_batch(bad)], [0, 0]
    )
    fill(path, plan)
    finalize_store(path)
    store = Store(path)
    assert store.check_files() and store.read_columns(0, 0)
    for _ in range(2):
        with pytest.raises(
            StoreError, match=rf"{name}\.v000-001\.arrow: view 1, row 3: {match}.*: damaged; .*--repair"
        ):
            store.read_columns(0, 1)
    assert Store(path, trust=True).read_columns(0, 1)


def test_large_logits_are_no_damage():
    """Whose sum float32 does not hold."""
    Float32Codec().check_values({"logits": np.full((3, NUM_CLASSES), 3e38, np.float32)})


@pytest.mark.parametrize("order", ["reversed", "other"])
def test_an_index_that_is_not_that_of_the_records_is_found(finished, order):
    path, *_ = finished
    index = Store(path).index[0]
    Store(path).check_index()
    rows = index.rows[::-1].copy() if order == "reversed" else index.rows * 0
    keys = index.keys[::-1].copy() if order == "reversed" else index.keys
    (path / "index.arrow").unlink()
    write_index(path, "index.arrow", KeyIndex(keys, index.shards, rows), read_plan(path).identity)
    value = json.loads((path / "manifest.records.json").read_text())
    del value["xxh3"]
    value["files"]["index.arrow"] = BlockFile(open_storage(path), "index.arrow").entry
    (path / "manifest.records.json").write_bytes(sealed_bytes(value))
    with pytest.raises(StoreError, match=r"index\.arrow: is not the index of these records; .*--repair"):
        Store(path).check_index()
