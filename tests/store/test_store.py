"""The store: describes itself, is whole or refused, and gives back what the codec promises."""

import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc
from teachonce.store.arrow_files import open_records_file, records_file, views_file, write_records, write_views
from teachonce.store.checks import check_same_data

from teachonce.codecs.dense import Int8Codec
from teachonce.errors import LogitsError, PlanMismatchError, StoreError
from teachonce.records.class_space import ClassSpace
from teachonce.store.plan import Plan, begin_store, finalize_store, group_views, missing_files
from teachonce.store.store import Store
from teachonce.views.policy import CenterPolicy, CropPolicy, policy_to_json
from teachonce.views.view import CENTER, View

SIZES = (5, 3)
NUM_CLASSES = 7


def make_plan(num_views=1, views_per_file=2, **changes):
    policy = CenterPolicy() if num_views == 1 else CropPolicy()
    plan = Plan(
        teacher={"spec": "timm:x", "model": "timm:x", "weights_sha256": "ab", "precision": "float32"},
        class_space=ClassSpace(num_classes=NUM_CLASSES, offset=1),
        data_classes=NUM_CLASSES + 1,
        data={
            "split": "train",
            "format": "tfrecord",
            "shards": [[f"train-{i:05d}-of-00002", n, 100] for i, n in enumerate(SIZES)],
        },
        policy=policy_to_json(policy) | ({} if num_views == 1 else {"seed": 0}),
        codec=Int8Codec().to_json(),
        view_groups=group_views(num_views, views_per_file),
    )
    return dataclasses.replace(plan, **changes)


def fill(path, plan, groups=None):
    """Write every file of the plan (or of some groups); returns the logits [shard][V, N, C] and views."""
    logits, views = [], []
    for shard, (name, num_records) in enumerate(plan.shards):
        rng = np.random.default_rng(shard)
        keys = np.arange(num_records, dtype=np.uint64) + np.uint64(2**63 + 100 * shard)
        labels = np.arange(num_records, dtype=np.int32) + 1
        all_logits = rng.normal(0, 5, (plan.num_views, num_records, NUM_CLASSES)).astype(np.float32)
        all_views = [
            [View((0, 0, v + 1, n + 1), n % 2 == 0) for n in range(num_records)] for v in range(plan.num_views)
        ]
        write_records(path / records_file(name), keys, [f"{shard}_{i}.jpg" for i in range(num_records)], labels)
        for first, last in groups or plan.view_groups:
            chosen = all_views[first : last + 1] if plan.num_views > 1 else None
            write_views(path / views_file(name, (first, last)), keys, Int8Codec(), all_logits[first : last + 1], chosen)
        logits.append(all_logits)
        views.append(all_views)
    return logits, views


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(num_views=3), views_per_file=2)
    logits, views = fill(path, plan)
    assert finalize_store(path, {"python": "3"})
    return path, logits, views


def test_what_is_written_is_read(whole):
    path, logits, views = whole
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
            assert store.read_views(shard, view, slice(None)) == views[shard][view]


@pytest.mark.parametrize(
    "locations", [[(0, 0)], [(1, 2), (0, 4), (1, 2), (0, 0), (1, 0)], [(0, n) for n in range(5)], [(1, 0), (0, 0)]]
)
def test_gathered_columns_are_the_rows_one_by_one(whole, locations):
    store = Store(whole[0])
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


def test_gathering_nothing_and_beyond(whole):
    store = Store(whole[0])
    keys, labels = store.gather_keys([])
    assert len(keys) == len(labels) == 0
    with pytest.raises(StoreError, match="view 3 is not there"):
        store.gather_columns([(0, 0)], 3)
    for location in ((0, 5), (2, 0)):
        with pytest.raises(IndexError):
            store.gather_columns([(0, 0), location], 0)


def test_threads_may_read_different_views_at_once(whole):
    """Two views a shard are kept; whoever reads another one meanwhile takes it away from nobody."""
    path = whole[0]
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
            if store.find_row(shard, int(store.read_keys(shard)[1])) != 1:
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_two_views_of_a_shard_stay_mapped(whole, monkeypatch):
    """A batch of mixed-up images reads two views of each shard; the epoch after it two others."""
    store = Store(whole[0])
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


def test_it_pickles_and_its_fingerprint_is_stable(whole):
    path, *_ = whole
    store = Store(path)
    store.read_keys(0)
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read_logits(1, 2, [1]), store.read_logits(1, 2, [1]))
    assert again.fingerprint == store.fingerprint == Store(path).fingerprint


def test_anybody_can_open_a_file(whole):
    path, *_ = whole
    table = ipc.open_file(pa.memory_map(str(path / "train-00000-of-00002.v000-001.arrow"))).read_all()
    frame = table.to_pandas() if importlib_has("pandas") else table.to_pydict()
    assert set(table.column_names) == {"box", "flip", "codes", "max_logit", "range", "far"} and len(frame["flip"]) == 10


def importlib_has(name):
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_an_unfinished_store_is_refused_and_says_what_is_missing(tmp_path):
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(), views_per_file=2)
    with pytest.raises(StoreError, match=r"is not finished: 0 of 4 files are there; run the same extract again"):
        Store(path)
    fill(path, plan)
    (path / "train-00001-of-00002.v000-000.arrow").unlink()
    assert missing_files(path, plan) == ["train-00001-of-00002.v000-000.arrow"]
    assert not finalize_store(path, {})
    with pytest.raises(StoreError, match="3 of 4 files"):
        Store(path)
    with pytest.raises(StoreError, match="is no store"):
        Store(tmp_path / "elsewhere")


def test_another_plan_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "store"
    begin_store(path, make_plan(), views_per_file=2)
    begin_store(path, make_plan(), views_per_file=2)
    other = make_plan(
        teacher={"spec": "timm:y", "model": "timm:y", "weights_sha256": "cd", "precision": "float32"},
        codec={"name": "float32"},
    )
    with pytest.raises(PlanMismatchError) as error:
        begin_store(path, other, views_per_file=2)
    for phrase in (
        "teacher.model was timm:x, now timm:y",
        "teacher.weights_sha256 was ab, now cd",
        "codec.name was int8",
    ):
        assert phrase in str(error.value)


def test_moved_weights_are_the_same_teacher(tmp_path):
    path = tmp_path / "store"
    begin_store(path, make_plan(), views_per_file=2)
    moved = dict(make_plan().teacher, spec="timm:x,weights=/elsewhere/w.safetensors")
    begin_store(path, make_plan(teacher=moved), views_per_file=2)


def test_more_views_leave_the_first_ones_untouched(whole):
    path, *_ = whole
    before = {file.name: file.read_bytes() for file in path.glob("*.arrow")}
    plan = begin_store(path, make_plan(num_views=6), views_per_file=2)
    assert plan.view_groups == ((0, 1), (2, 2), (3, 4), (5, 5))
    # Until the new views are whole, readers see the old number.
    assert Store(path).num_views == 3
    fill(path, plan, groups=plan.view_groups[2:])
    assert finalize_store(path, {})
    assert Store(path).num_views == 6
    assert {name: (path / name).read_bytes() for name in before} == before
    # Asking for fewer views again is no other plan.
    assert begin_store(path, make_plan(num_views=2), views_per_file=2) == plan


def test_a_view_beyond_and_a_policy_without_views(whole, tmp_path):
    store = Store(whole[0])
    with pytest.raises(StoreError, match=r"view 3 is not there: the store has views 0\.\.2"):
        store.read_logits(0, 3, [0])
    path = tmp_path / "center"
    fill(path, begin_store(path, make_plan(), views_per_file=2))
    finalize_store(path, {})
    assert Store(path).read_views(0, 0, [0]) == [CENTER]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damage_is_found(whole, damage):
    path, *_ = whole
    file = path / "train-00000-of-00002.v002-002.arrow"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data)
    with pytest.raises(StoreError, match=r"v002-002\.arrow"):
        Store(path).check_files()
    if damage != "flip":
        with pytest.raises(StoreError, match=r"v002-002\.arrow"):
            Store(path).read_logits(0, 2, [0])


def test_files_of_other_records_are_refused(whole):
    path, *_ = whole
    name = "train-00000-of-00002"
    write_records(path / records_file(name), np.arange(5, dtype=np.uint64), list("abcde"), np.ones(5, np.int32))
    with pytest.raises(StoreError, match="made for records with key hash"):
        finalize_store(path, {})


def test_a_newer_format_and_a_foreign_folder_are_refused(whole, tmp_path):
    path, *_ = whole
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["plan"]["format_version"] = 99
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="format version 99, this teachonce reads 1"):
        Store(path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match="exists and is no store"):
        begin_store(tmp_path / "mine", make_plan(), views_per_file=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="exists and is no store"):
        begin_store(tmp_path / "file", make_plan(), views_per_file=2)


def test_nan_is_refused_and_nothing_is_written(tmp_path):
    logits = np.zeros((1, 2, 3), np.float32)
    logits[0, 1, 2] = np.nan
    with pytest.raises(LogitsError):
        write_views(tmp_path / "a.arrow", np.zeros(2, np.uint64), Int8Codec(), logits, None)
    assert list(tmp_path.iterdir()) == []


def test_other_data_is_refused(whole):
    store = Store(whole[0])
    data = store.plan.data
    check_same_data(store, data)
    with pytest.raises(StoreError, match="made of split 'train', this is 'validation'"):
        check_same_data(store, data | {"split": "validation"})
    shards = [list(shard) for shard in data["shards"]]
    shards[1][1] = 4
    with pytest.raises(StoreError, match="with 3 records in the store, train-00001-of-00002 with 4 in the data"):
        check_same_data(store, data | {"shards": shards})
    with pytest.raises(StoreError, match="2 shards in the store, 1 in the data"):
        check_same_data(store, data | {"shards": data["shards"][:1]})


def test_a_missing_file_is_named_once(tmp_path):
    with pytest.raises(StoreError) as error:
        open_records_file(tmp_path / "gone.arrow", 3)
    assert str(error.value).count("gone.arrow") == 1
