"""Format 3 of a store, held to docs/reference/store-format.md: read and written without teachonce; what is refused."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from pyarrow import ipc

from teachonce.cli.main import main
from teachonce.errors import PlanMismatchError, StoreError
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.verify import verify
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.tfrecord.framing import TFRecordWriter, read_tfrecords
from teachonce.store.begin import begin_store
from teachonce.store.join import StoreJoin
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import samples_file
from teachonce.store.store import Store
from teachonce.store.tables import StoreWriter
from teachonce.views.columns import VIEW_COLUMNS
from teachonce.views.operations import OPERATION_NAMES
from tests.support.paths import DOCS, GOLDEN, ROOT
from tests.support.small_data import example, write_shards, write_store
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.small_stores import read_tree
from tests.system.test_bad_input import fails, train

READER = ROOT / "examples" / "read_store.py"
PAGE = (DOCS / "reference" / "store-format.md").read_text()
GOLDEN_STORES = sorted(GOLDEN.glob("store-v3-*"))


def open_reader(path):
    return runpy.run_path(str(READER))["StoreReader"](path)


def compare(path) -> Store:
    """Everything that the reader of the examples finds in a store is what ours finds."""
    store, reader = Store(path), open_reader(path)
    assert (reader.num_views, [tuple(shard) for shard in reader.shards]) == (store.num_views, list(store.shards))
    for shard in range(len(store.shards)):
        records = reader.records(shard)
        np.testing.assert_array_equal(records["key"], store.read_keys(shard))
        np.testing.assert_array_equal(records["label"], store.read_labels(shard))
        assert records["filename"] == store.read_filenames(shard)
        for key in records["key"].tolist():
            assert list(reader.find(key)) == store.locations_of(key)
        for view in range(store.num_views):
            columns, ours = reader.views(shard, view), store.read_columns(shard, view)
            assert list(columns) == list(ours)
            for name, values in columns.items():
                np.testing.assert_array_equal(values, ours[name])
                assert values.dtype == ours[name].dtype
            for temperature in (0.5, 1.0, 3.0, 8.0, 20.0):
                logits = reader.logits(columns, temperature)
                expected = store.read_logits(shard, view, slice(None), temperature)
                assert logits.dtype == np.float32
                # Of topk the tail's distance is a sum of other order here: one unit of float32.
                np.testing.assert_allclose(logits, expected, rtol=2.0**-23 if store.codec.name == "topk" else 0)
    assert list(reader.find(123456789)) == store.locations_of(123456789) == []
    return store


@pytest.fixture
def data(tmp_path):
    return write_color_shards(tmp_path / "data", sizes=(9, 6))


@pytest.fixture
def teacher(tmp_path):
    return write_color_teacher(tmp_path / "teacher.onnx")


def run_extract(data, teacher, out, **options):
    return extract(ExtractConfig(data=data, teacher=teacher, out=out, device="cpu", **({"gate_samples": 0} | options)))


# ---- The reader of the examples ----


@pytest.mark.parametrize("path", GOLDEN_STORES, ids=lambda path: path.name)
def test_the_reader_reads_golden_stores(path):
    compare(path)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "topk"])
def test_the_reader_reads_what_is_extracted(tmp_path, data, teacher, codec):
    options = {"topk": 2} if codec == "topk" else {}
    views = {"policy": "crop+randaugment", "views": 3, "views_per_file": 2, "erase_prob": 0.5, "cutmix_alpha": 1.0}
    run_extract(data, teacher, tmp_path / "store", codec=codec, **options, **views)
    store = compare(tmp_path / "store")
    assert store.read_columns(0, 0).keys() >= VIEW_COLUMNS
    run_extract(data, teacher, tmp_path / "center", codec=codec, **options)
    compare(tmp_path / "center")


def test_the_reader_sees_the_parts_and_views_that_are_complete(tmp_path):
    """The rule of parts, wherever the making of a store stops."""
    path = tmp_path / "store"
    shutil.copytree(GOLDEN / "store-v3-grown", path)
    seen = []
    for removed in (
        "manifest.v001-001.001.json",
        "manifest.v001-001.json",
        "plan.002.json",
        "manifest.v000-000.001.json",
        "manifest.records.001.json",
        "plan.001.json",
    ):
        (path / removed).unlink()
        store = compare(path)
        seen.append((store.num_views, store.num_records))
    assert seen == [(1, 5), (1, 5), (1, 5), (1, 3), (1, 3), (1, 3)]
    (path / "manifest.v000-000.json").unlink()
    with pytest.raises(StoreError, match="is not finished"):
        Store(path)
    with pytest.raises(AssertionError, match="no group of views is complete"):
        open_reader(path)


def test_the_reader_needs_numpy_and_pyarrow_alone():
    tree = ast.parse(READER.read_text())
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy", "pyarrow"}


def test_the_reader_as_a_command():
    """In a process that can import neither teachonce nor xxhash."""
    block = "import sys; sys.modules |= dict.fromkeys(['teachonce', 'xxhash', 'msgspec']); "
    code = f"{block}import runpy; sys.argv = {{}}; runpy.run_path({str(READER)!r}, run_name='__main__')"
    printed = []
    for more in ([], ["a"]):
        words = [str(READER), str(GOLDEN / "store-v3-grown"), *more]
        done = subprocess.run([sys.executable, "-I", "-c", code.format(words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert "5 records in 2 shards, 2 views, 2 parts" in printed[0]
    assert "label of 1 of 5 records" in printed[0]
    assert "shard 0 row 1, 10.jpg, label 2\n  view 0: {'box': [0, 1, 10, 20], 'flip': 1} -> 1 (drake)" in printed[1]
    assert "shard 1 row 1, 10.jpg" in printed[1]


def test_operations_have_the_codes_of_the_page():
    assert runpy.run_path(str(READER))["OPERATIONS"] == list(OPERATION_NAMES)
    text = " ".join(PAGE.split())
    for code, name in enumerate(OPERATION_NAMES):
        assert re.search(rf"\b{code} {name}\b", text), name


# ---- The page, byte by byte ----


def seal_of(content: bytes) -> str:
    """The hash of a sealed file, as the page has it."""
    assert content.endswith(b'"\n}\n')
    end = len(content) - 4
    return xxhash.xxh3_128_hexdigest(content[: end - 32] + b"0" * 32 + content[end:])


@pytest.mark.parametrize("path", GOLDEN_STORES, ids=lambda path: path.name)
def test_every_byte_is_where_the_page_says(path):
    """Seals, the chain of plans, and head, blocks and tail of every file that manifests list."""
    plans = [path / "plan.json", *sorted(path.glob("plan.*.json"))]
    follows = None
    seals = []
    for file in plans:
        plan = json.loads(file.read_bytes())
        assert (plan["xxh3"], plan["follows"]) == (seal_of(file.read_bytes()), follows)
        assert plan["identity"] == json.loads((path / "plan.json").read_bytes())["identity"]
        follows = plan["xxh3"]
        seals.append(follows)
    listed = set()
    for file in sorted(path.glob("manifest.*.json")):
        manifest = json.loads(file.read_bytes())
        assert manifest["xxh3"] == seal_of(file.read_bytes()) and manifest["plan"] in seals
        for name, (num_bytes, head_hash, tail_hash) in manifest["files"].items():
            listed.add(name)
            content = (path / name).read_bytes()
            assert len(content) == num_bytes and content[:12] == b"ARROW1\0\0\xff\xff\xff\xff"
            start = 16 + int.from_bytes(content[12:16], "little")
            assert xxhash.xxh3_128_hexdigest(content[:start]) == head_hash
            about = json.loads(ipc.read_schema(pa.py_buffer(content[8:start])).metadata[b"teachonce"])
            assert (about["format"], about["plan"]) == (3, plan["identity"])
            for block_bytes, block_hash in about["blocks"]:
                assert xxhash.xxh3_128_hexdigest(content[start : start + block_bytes]) == block_hash
                start += block_bytes
            assert xxhash.xxh3_128_hexdigest(content[start:]) == tail_hash
            if about["kind"] == "records":
                keys = ipc.open_file(path / name).read_all()["key"].to_numpy()
                assert about["keys_xxh3"] == xxhash.xxh3_64_hexdigest(keys.astype("<u8").tobytes())
    assert listed == {file.name for file in path.glob("*.arrow")}


def test_the_page_names_every_field():
    names = {"alias"}
    for path in GOLDEN_STORES:
        for file in [*path.glob("plan.json"), *path.glob("manifest.*.json")]:
            value = json.loads(file.read_bytes())
            names |= value.keys()
            names |= {name for field in ("class_space", "data", "teacher", "codec") for name in value.get(field, {})}
            policy = value.get("policy", {})
            names |= {*policy, *(name for part in policy.values() if isinstance(part, dict) for name in part)}
        for file in path.glob("*.arrow"):
            schema = ipc.open_file(file).schema
            names |= {*schema.names, *json.loads(schema.metadata[b"teachonce"])}
    assert len(names) > 45
    assert {name for name in names if f"`{name}`" not in PAGE} == set()


# ---- A writer from the page alone ----


def write_sealed(path: Path, value: dict) -> str:
    """With another indentation than ours: the hash is of bytes."""
    body = ",\n".join(f"    {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
    content = f'{{\n{body},\n    "xxh3": "{"0" * 32}"\n}}\n'.encode()
    seal = xxhash.xxh3_128_hexdigest(content)
    path.write_bytes(content[:-36] + seal.encode() + content[-4:])
    return seal


def write_arrow(path: Path, about: dict, batches: list[pa.RecordBatch]) -> list:
    """Head, blocks and tail; returns the entry of the manifest."""
    messages = [batch.serialize().to_pybytes() for batch in batches]
    blocks = [[len(message), xxhash.xxh3_128_hexdigest(message)] for message in messages]
    schema = batches[0].schema.with_metadata({"teachonce": json.dumps({**about, "blocks": blocks})})
    with ipc.new_file(path, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    content = path.read_bytes()
    head = 16 + int.from_bytes(content[12:16], "little")
    tail = head + sum(map(len, messages))
    assert content[head:tail] == b"".join(messages)
    return [len(content), xxhash.xxh3_128_hexdigest(content[:head]), xxhash.xxh3_128_hexdigest(content[tail:])]


def write_by_the_page(path: Path, *, break_it=lambda batch: batch) -> Path:
    """A store of one shard, written with what the page says and nothing of teachonce."""
    path.mkdir()
    identity, shard = "0123456789abcdef" * 2, "set-00000-of-00001"
    plan = {
        "format_version": 3,
        "identity": identity,
        "signal": "logits",
        "teacher": {"spec": "none", "model": "made elsewhere"},
        "class_space": {"num_classes": 2, "offset": 0},
        "data_classes": 2,
        "class_names": ["cat", "dog"],
        "policy": {"name": "crop", "scale": [0.08, 1], "ratio": [0.75, 1.3], "flip_prob": 0.5, "seed": 1},
        "codec": {"name": "float32"},
        "view_groups": [[0, 1]],
        "num_samples": 0,
        "data": {"split": "set", "format": "tfrecord", "num_classes": 2, "shards": [[shard, 2, 0]]},
        "shards": [[shard, 2]],
        "parts": [[0, 0]],
        "follows": None,
    }
    seal = write_sealed(path / "plan.json", plan)
    keys = np.array([9, 4], np.uint64)
    about = {"format": 3, "plan": identity, "num_records": 2}
    of_shard = about | {"shard": shard, "keys_xxh3": xxhash.xxh3_64_hexdigest(keys.astype("<u8").tobytes())}
    records = pa.record_batch({"key": keys, "filename": ["a", "b"], "label": pa.array([1, None], pa.int32())})
    files = {
        f"{shard}.records.arrow": write_arrow(
            path / f"{shard}.records.arrow", of_shard | {"kind": "records"}, [records]
        )
    }
    index = pa.record_batch({"key": keys[[1, 0]], "shard": np.zeros(2, np.uint32), "row": np.array([1, 0], np.uint32)})
    files["index.arrow"] = write_arrow(path / "index.arrow", about | {"kind": "index"}, [index])
    manifest = {"format_version": 3, "plan": seal, "part": 0, "made_by": []}
    write_sealed(
        path / "manifest.records.json",
        manifest | {"views": None, "keys_xxh3": [of_shard["keys_xxh3"]], "files": files},
    )
    batches = [
        pa.record_batch(
            {
                "box": pa.array([[0, 0, 4, 5], [1, 1, 3, 3]], pa.list_(pa.uint16(), 4)),
                "flip": np.array([0, view], np.uint8),
                "logits": pa.array([[1.5, view], [0, 3]], pa.list_(pa.float32(), 2)),
            }
        )
        for view in range(2)
    ]
    name = f"{shard}.v000-001.arrow"
    more = {"kind": "views", "views": [0, 1], "hits": [0, 1], "made_by": {"device": "abacus"}}
    entry = write_arrow(path / name, of_shard | more, [break_it(batch) for batch in batches])
    write_sealed(
        path / "manifest.v000-001.json",
        manifest | {"views": [0, 1], "made_by": [{"device": "abacus"}], "keys_xxh3": [], "files": {name: entry}},
    )
    return path


def test_a_store_written_by_the_page_alone(tmp_path):
    store = compare(write_by_the_page(tmp_path / "store"))
    assert store.check_files() == 3 and store.made_by == [{"device": "abacus"}]
    assert store.read_labels(0).tolist() == [1, -1]
    assert store.read_views(0, 1, slice(None))[1].box == (1, 1, 3, 3)
    assert store.read_logits(0, 1, [0]).tolist() == [[1.5, 1.0]]
    assert store.read_hits(0, (0, 1)) == [0, 1]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[0, 0, 4, 5], None], pa.list_(pa.uint16(), 4)),
        pa.array([[0, 0, 4, 5], [1, 1, None, 3]], pa.list_(pa.uint16(), 4)),
    ],
    ids=["row", "item"],
)
def test_a_null_where_none_may_be(tmp_path, column):
    path = write_by_the_page(tmp_path / "store", break_it=lambda batch: batch.set_column(0, "box", column))
    with pytest.raises(StoreError, match=r"set-00000-of-00001.v000-001.arrow: block 0: column box has 1 nulls"):
        Store(path).read_columns(0, 0)


def test_columns_of_another_type(tmp_path):
    """A box of other integers is not converted in silence."""
    column = pa.array([[0, 0, 4, 5], [1, 1, 3, 3]], pa.list_(pa.int64(), 4))
    path = write_by_the_page(tmp_path / "store", break_it=lambda batch: batch.set_column(0, "box", column))
    with pytest.raises(StoreError, match=r"columns box fixed_size_list<item: int64>\[4\], .* expected box .*uint16"):
        Store(path).read_columns(0, 0)


# ---- What is refused: rows of docs/reference/errors.md ----


@pytest.fixture
def copy(tmp_path):
    def make(name="store-v3-int8"):
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name))

    return make


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "store-v3-int8").iterdir()))
def test_any_changed_byte_is_named(copy, name):
    """A flipped bit, wherever it is; a sealed file is refused when it is read, an Arrow file by check_files."""
    path = copy()
    content = (path / name).read_bytes()
    for at in sorted({*range(0, len(content), max(1, len(content) // 23)), len(content) - 1}):
        changed = bytearray(content)
        changed[at] ^= 4
        (path / name).write_bytes(changed)
        with pytest.raises(StoreError, match=re.escape(name)):
            Store(path).check_files()


def test_an_edited_plan_or_manifest(copy):
    for name, old, new in (
        ("plan.json", b'"offset": 1', b'"offset": 0'),
        ("manifest.v000-001.json", b'"part": 0', b'"part": 1'),
        ("plan.json", b'"xxh3": "', b'"xxh3":  "'),
    ):
        path = copy()
        content = (path / name).read_bytes()
        assert content.count(old) == 1
        (path / name).write_bytes(content.replace(old, new))
        with pytest.raises(StoreError, match=rf"{name}: (its bytes have the hash|does not end with its hash)"):
            Store(path).read_columns(0, 0)
        shutil.rmtree(path)


def test_a_plan_that_follows_another(copy):
    path = copy("store-v3-grown")
    plan = json.loads((path / "plan.001.json").read_bytes())
    del plan["xxh3"]
    write_sealed(path / "plan.001.json", plan | {"follows": "f" * 32})
    with pytest.raises(StoreError, match=r"plan.001.json: follows the plan with hash f+, expected"):
        Store(path)
    for field, value in (("identity", "f" * 32), ("codec", {"name": "float16"}), ("shards", [["a", 3], ["b", 2]])):
        write_sealed(path / "plan.001.json", plan | {field: value})
        with pytest.raises(StoreError, match=r"plan\.001\.json: does not continue the plan before it"):
            Store(path)


def test_a_file_of_another_store(tmp_path, copy):
    """Of another teacher, of other records, and of another shard: each is noticed with and without a manifest."""
    data = write_shards(tmp_path / "data", sizes=(3, 3))
    write_store(tmp_path / "store", data)
    name, other_name = (f"train-0000{shard}-of-00002.v000-000.arrow" for shard in (0, 1))
    write_store(tmp_path / "teacher", data, num_classes=2)
    payloads = [example(index, 1) for index in range(20, 26)]
    write_store(tmp_path / "records", write_shards(tmp_path / "others", sizes=(3, 3), payloads=payloads))
    own = tmp_path / "store" / name
    content = own.read_bytes()
    for source, reason in (
        (tmp_path / "teacher" / name, "belongs to another plan: a file of another store"),
        (tmp_path / "records" / name, "belongs to other records"),
        (tmp_path / "store" / other_name, "its content does not match its name"),
    ):
        shutil.copyfile(source, own)
        with pytest.raises(StoreError, match=rf"{name}: .*(damaged or replaced|{reason})"):
            Store(tmp_path / "store").read_columns(0, 0)
        (tmp_path / "store" / "manifest.v000-000.json").rename(tmp_path / "kept")
        with pytest.raises(StoreError, match=f"{name}: .*{reason}"):
            finalize_store(tmp_path / "store")
        (tmp_path / "kept").rename(tmp_path / "store" / "manifest.v000-000.json")
    own.write_bytes(content)
    assert Store(tmp_path / "store").check_files() == 5


def test_trust_reads_without_hashes(copy):
    """Types, sizes and places are looked at all the same."""
    path = copy()
    name = "train-00000-of-00002.v000-001.arrow"
    content = bytearray((path / name).read_bytes())
    at = content.find(np.array([1, 2, 3, 65535], "<u2").tobytes())
    content[at] = 9
    (path / name).write_bytes(content)
    assert Store(path, trust=True).read_views(0, 0, [0])[0].box == (9, 2, 3, 65535)
    with pytest.raises(StoreError, match=f"{name}: block 0: hash .* its bytes changed on disk; run .*--repair"):
        Store(path).read_views(0, 0, [0])
    (path / name).write_bytes(content[:-1])
    with pytest.raises(StoreError, match=f"{name}: has .* bytes"):
        Store(path, trust=True).read_views(0, 0, [0])


def copy_records(source: Path, out: Path, keep, *, names=None) -> Path:
    """The records of a source that ``keep(index)``, in one shard; ``names`` of the classes."""
    out.mkdir()
    payloads = [
        bytes(payload) for path in sorted(source.glob("train-*-of-0000?")) for _, payload in read_tfrecords(path)
    ]
    with (out / "train-00000-of-00001").open("wb") as file:
        writer = TFRecordWriter(file)
        for index, payload in enumerate(payloads):
            if keep(index):
                writer.write(payload)
    names = names or ("background", "class0", "class1", "class2", "class3")
    write_classes(out, ClassTable(names, names, has_background=True))
    return out


def test_records_that_the_store_does_not_know(tmp_path, capsys, data, teacher):
    """Refused with counts and the first; skipped where that is asked for. Other shards and fewer records do no harm."""
    some = copy_records(data, tmp_path / "some", lambda index: index % 3)
    run_extract(some, teacher, tmp_path / "store")
    with pytest.raises(
        StoreError, match=r"10 of 15 records are in the store; 5 are not \(first: image_0.jpg\); .*--missing skip"
    ):
        StoreJoin(Store(tmp_path / "store"), open_records(data, "train"))
    words = train(data, tmp_path / "run", "--store", tmp_path / "store")
    fails(capsys, words, 1, "10 of 15 records are in the store", "--missing skip")
    with pytest.raises(SystemExit) as end, pytest.warns(UserWarning, match="5 are not .* skipped"):
        main([str(word) for word in [*words, "--missing", "skip"]])
    assert end.value.code == 0
    assert json.loads((tmp_path / "run" / "result.json").read_bytes())["missing_records"] == 5
    run_extract(data, teacher, tmp_path / "all")
    assert len(StoreJoin(Store(tmp_path / "all"), open_records(some, "train")).locate([], [])) == 0
    nothing = write_color_shards(tmp_path / "nothing", first_index=900, sizes=(4,))
    fails(
        capsys,
        train(nothing, tmp_path / "run2", "--store", tmp_path / "all", "--missing", "skip"),
        1,
        "0 of 4 records are in the store",
    )


def test_classes_are_compared_by_name(tmp_path, data, teacher):
    """Renumbered classes are the same ones; other names, and labels in another order, are refused."""
    run_extract(data, teacher, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.plan.class_names == ("background", "class0", "class1", "class2", "class3")
    others = copy_records(data, tmp_path / "others", lambda index: True, names=tuple("abcde"))
    with pytest.raises(StoreError, match=r"its classes are background, class3 and the like, .* a, e: none in common"):
        StoreJoin(store, open_records(others, "train"))
    names = ("background", "class1", "class2", "class3", "class0")
    turned = copy_records(data, tmp_path / "turned", lambda index: True, names=names)
    with pytest.raises(
        StoreError, match=r"; 15 of 15 sampled images .* the classes have a different order or numbering here"
    ):
        StoreJoin(store, open_records(turned, "train"))


def test_growing_a_store(tmp_path, capsys, data, teacher):
    """New and changed records are a part; removed ones stay, and stand in the way of more views."""
    first = copy_records(data, tmp_path / "first", lambda index: index < 10)
    options = {"policy": "crop", "views": 2, "views_per_file": 1}
    run_extract(first, teacher, tmp_path / "store", **options)
    before = read_tree(tmp_path / "store")
    grown = copy_records(data, tmp_path / "grown", lambda index: index > 0)
    capsys.readouterr()
    run_extract(grown, teacher, tmp_path / "store", **options)
    assert "5 new records in 1 shard; 1 that the store has are not in the data" in capsys.readouterr().err
    assert {name: (tmp_path / "store" / name).read_bytes() for name in before} == before
    store = compare(tmp_path / "store")
    assert (store.num_records, store.shards[1]) == (15, ("train-00000-of-00001.p001", 5))
    assert [tuple(part) for part in store.plan.parts] == [(0, 0), (1, 2)]
    StoreJoin(store, open_records(grown, "train"))
    with pytest.raises(PlanMismatchError, match="1 images of the store are not in the data any more"):
        run_extract(grown, teacher, tmp_path / "store", **(options | {"views": 3}))
    run_extract(data, teacher, tmp_path / "store", **(options | {"views": 3}))
    assert compare(tmp_path / "store").num_views == 3


def test_a_store_is_not_grown_by_other_data(tmp_path, data, teacher):
    run_extract(data, teacher, tmp_path / "store")
    nothing = write_color_shards(tmp_path / "nothing", first_index=900, sizes=(4,))
    with pytest.raises(PlanMismatchError, match="started with other data: it has none of the 4 records here"):
        run_extract(nothing, teacher, tmp_path / "store")
    for name in ("manifest.records.json", "train-00000-of-00002.records.arrow"):
        (tmp_path / "store" / name).unlink()
    some = copy_records(data, tmp_path / "some", lambda index: index)
    with pytest.raises(PlanMismatchError, match="is unfinished and was started with other data"):
        run_extract(some, teacher, tmp_path / "store")


def test_repair_makes_damaged_files_again(tmp_path, capsys, data, teacher):
    """A damaged block, a missing file and a damaged manifest; the store is the one it was. A plan cannot come back."""
    path = tmp_path / "store"
    options = {"policy": "crop", "views": 2, "views_per_file": 1}
    run_extract(data, teacher, path, **options)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    view = path / "train-00000-of-00002.v001-001.arrow"
    view.write_bytes(view.read_bytes()[:-100] + b"?" * 100)
    (path / "train-00001-of-00002.records.arrow").unlink()
    (path / "manifest.v000-000.json").write_bytes(b"{}\n")
    with pytest.raises(
        StoreError, match=r"manifest.v000-000.json: does not end with its hash: .*--repair to rebuild it"
    ):
        Store(path).check_files()
    capsys.readouterr()
    run_extract(data, teacher, path, **options, repair=True)
    assert "3 damaged files are recomputed" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    (path / "plan.json").write_bytes((path / "plan.json").read_bytes().replace(b'"offset": 1', b'"offset": 2'))
    with pytest.raises(StoreError, match=r"plan\.json: its bytes have the hash"):
        run_extract(data, teacher, path, **options, repair=True)


def test_sample_and_views_of_two_writers(tmp_path, data, teacher):
    """One was killed behind the sample, another one went on: on another device, with logits equal but for rounding."""
    path = tmp_path / "store"
    run_extract(data, teacher, path, codec="float32")
    store = Store(path)
    (name, group), keys = (store.shards[0][0], (0, 0)), store.read_keys(0)
    samples = store.read_samples(0, group)
    for factor, is_sound in ((1 + 2.0**-20, True), (1.01, False)):
        (path / samples_file(name, group)).unlink()
        (path / "manifest.v000-000.json").unlink()
        changed = [replace(sample, logits=sample.logits * np.float32(factor)) for sample in samples]
        StoreWriter(path, store.plan, {"device": "another"}).write_samples(name, group, keys, changed)
        assert finalize_store(path) == 1 and {"device": "another"} in Store(path).made_by
        verdict = verify(VerifyConfig(store=path, data=data, teacher="none", device="cpu"))
        assert verdict.is_sound == is_sound, verdict.reason


def test_two_writers_of_one_name(tmp_path):
    """The first complete file wins, and the other one's is gone."""
    store = write_store(tmp_path / "store", write_shards(tmp_path / "data"))
    content = (tmp_path / "store" / "plan.json").read_bytes()
    assert begin_store(tmp_path / "store", store.plan, 1) == store.plan
    assert (tmp_path / "store" / "plan.json").read_bytes() == content
    assert not [file for file in (tmp_path / "store").iterdir() if file.name.startswith(".tmp-")]


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "topk"])
def test_hits_are_counted_of_what_is_read(tmp_path, codec):
    """As any reader counts them, near ties and ties too."""
    data = write_shards(tmp_path / "data", sizes=(4,), num_classes=4)
    logits = np.array([[1.0004, 1.0, -8], [1.0, 1.0004, -8], [2.0, 2.0, 2.0], [1, 2, 3]], np.float32)
    write_store(tmp_path / "store", data, logits, num_classes=3, codec=codec)
    reader = open_reader(tmp_path / "store")
    likeliest = reader.logits(reader.views(0, 0)).argmax(axis=1) + 1
    assert likeliest.tolist() == [1, 2, 1, 3] and reader.records(0)["label"].tolist() == [1, 2, 3, 1]
    assert Store(tmp_path / "store").read_hits(0, (0, 0)) == [2]
