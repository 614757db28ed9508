"""Data as people have it, from the first command to the last: one store serves the same images in any container."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from teachonce.cli.main import main
from teachonce.data.dataset import KDDataset
from teachonce.data.stored_logits import StoredLogits
from teachonce.records.class_space import ClassSpace
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.records.tfrecord.tf_example import decode_example, encode_example
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from tests.records.containers import test_huggingface, test_webdataset
from tests.records.tfrecord import test_foreign
from tests.support.small_models import COLORS, color_example, write_color_shards, write_color_teacher
from tests.system.test_bad_input import extract, fails, train

NAMES = ("blue", "green", "red", "yellow")
OPTIONS = {"foreign": {"image_feature": "image", "label_feature": "label"}}
COLOR_OF = {"red": 0, "green": 1, "blue": 2, "yellow": 3}


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code


def color_jpeg(index: int, name: str) -> bytes:
    encoded = decode_example(color_example(index, 1, COLORS[COLOR_OF[name]]))["image/encoded"]
    assert isinstance(encoded, list)
    return encoded[0]


def write_images(folder: Path, per_class: int = 6, *, flat: bool = False) -> Path:
    for label, name in enumerate(NAMES):
        for index in range(per_class):
            path = folder / (f"{name}_{index}.jpg" if flat else f"{name}/{index}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(color_jpeg(10 * label + index, name))
    return folder


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """Its classes are red, green, blue and yellow."""
    return write_color_teacher(tmp_path / "teacher.onnx")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def result(path: Path) -> dict:
    return json.loads((path / "result.json").read_text())


@pytest.mark.usefixtures("own_cache")
@pytest.mark.slow
def test_a_folder_of_classes_from_extract_to_evaluate(tmp_path, capsys, teacher):
    data = write_images(tmp_path / "data", per_class=10)
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\nyellow\n")
    options = ["--val-fraction", 0.2, "--labels", tmp_path / "labels.txt"]
    store = tmp_path / "store"
    fails(capsys, train(data, tmp_path / "r", "--validation-split", "validation"), 2, "give --val-fraction 0.1 to hold")
    run(*extract(data, teacher, store, "--expect-top1", 1, "--policy", "crop", "--views", 2, *options))
    held_out = open_records(data, "train").num_records - Store(store).num_records
    assert held_out >= len(NAMES)
    run("verify", store, "--data", data, "--device", "cpu", *options)
    words = train(data, tmp_path / "run", "--store", store, "--validation-split", "validation", *options)
    run(*words)
    run(*words)
    capsys.readouterr()
    run("evaluate", "--data", data, "--model", f"run:{tmp_path / 'run'}", "--device", "cpu", "--json", *options)
    assert json.loads(capsys.readouterr().out)["num_records"] == held_out
    run("inspect", data, "--json", *options)
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert {split["split"]: split["num_records"] for split in splits} == {
        "train": 40 - held_out,
        "validation": held_out,
    }
    fails(capsys, ["inspect", store, "--val-fraction", 0.2], 2, "--val-fraction 0.2: is for records, .* is a store")


# The command line shows it as a line of its own.
@pytest.mark.filterwarnings("default:.*the purpose of stored views:UserWarning")
def test_images_without_labels_are_extracted_and_trained_on(tmp_path, capsys, teacher):
    data = write_images(tmp_path / "photos", flat=True)
    store = tmp_path / "store"
    fails(capsys, extract(data, teacher, store, "--expect-top1", 0.9), 2, "none of its 24 images have labels, which "
          "--expect-top1 needs; leave it out")  # fmt: skip
    run(*extract(data, teacher, store, "--policy", "crop", "--views", 2))
    assert "gate: skipped, the data has no labels to score the teacher by" in capsys.readouterr().err
    opened = Store(store)
    assert opened.plan.class_names is None and opened.plan.data["num_classes"] is None
    assert opened.read_labels(0).tolist() == [-1] * 24
    run("verify", store, "--data", data, "--device", "cpu")
    words = train(data, tmp_path / "run", "--store", store)
    fails(capsys, words, 2, "none of its 24 images have labels, which the label loss needs; .* --label-weight 0")
    validation = train(data, tmp_path / "run", "--store", store, "--label-weight", 0, "--validation-split", "train")
    fails(capsys, validation, 2, "which the evaluation needs; give --validation-split none")
    run(*words, "--label-weight", 0, "--own-views", "--mixup-alpha", 0.2)
    found = result(tmp_path / "run")
    assert found["train_top1"] is None and np.isfinite(found["train_loss"])
    err = capsys.readouterr().err
    assert "train top-1" not in err and "contradicts" not in err
    words = ["evaluate", "--data", data, "--split", "train", "--model", f"run:{tmp_path / 'run'}", "--device", "cpu"]
    fails(capsys, words, 2, "none of its 24 images have labels, which an evaluation needs")
    run("inspect", data)
    assert "classes   none: the images have no labels" in capsys.readouterr().out
    run("plan", "--data", data, "--teacher", teacher, "--device", "cpu", "--samples", 8)
    assert "no labels to score the teacher by" in capsys.readouterr().out


@pytest.mark.slow
def test_training_on_the_teacher_alone_needs_no_labels_to_be_the_same(tmp_path, capsys, teacher):
    """The same images with their labels, at weight 0, and without them: the same student, bit for bit."""
    flat, folders = write_images(tmp_path / "photos", flat=True), write_images(tmp_path / "classes")
    store = tmp_path / "store"
    run(*extract(flat, teacher, store, "--policy", "crop", "--views", 2))
    for name, data, split in (("a", flat, "train"), ("b", folders, "train")):
        # One order: both are sorted by color, then by number.
        run(*train(data, tmp_path / name, "--store", store, "--label-weight", 0, "--split", split, "--num-classes", 4))
    weights = [load_file(tmp_path / name / "student.safetensors") for name in "ab"]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def write_everywhere(source: Path, folder: Path) -> dict[str, Path]:
    """The images of TFRecords, byte by byte, in every other container; classes by name, in another order."""
    images = {}
    for record in open_records(source, "train").iter_shard(0):
        name = f"{record.filename.removesuffix('.jpg')}.jpg"
        images[name] = (bytes(record.encoded), ("red", "green", "blue", "yellow")[record.label - 1])
    for name, (content, label) in images.items():
        for path in (
            folder / "classes" / label / name,
            folder / "split/train" / label / name,
            folder / "t/images" / name,
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    rows = [f"images/{name},{label}\n" for name, (_, label) in reversed(images.items())]
    (folder / "t/table.csv").write_text("path,label\n" + "".join(rows))
    order = [(name, *images[name]) for name in sorted(images)]
    members = [
        (f"{name.removesuffix('.jpg')}.{suffix}", part)
        for name, content, label in order
        for suffix, part in (("jpg", content), ("cls", label.encode()))
    ]
    test_webdataset.write_tar(folder / "tars/train-0.tar", members[:14])
    test_webdataset.write_tar(folder / "tars/train-1.tar", members[14:])
    examples = [encode_example({"image": content, "label": label.encode()}) for _, content, label in order]
    test_foreign.write_shard(folder / "foreign/train.tfrecord.gz", examples, packed=True)
    rows = [{"image": {"bytes": content, "path": name}, "label": COLOR_OF[label]} for name, content, label in order]
    features = {"image": {"_type": "Image"}, "label": {"names": list(COLOR_OF), "_type": "ClassLabel"}}
    tables = [test_huggingface.build_table(part, features) for part in (rows[:9], rows[9:])]
    test_huggingface.write_parquet(folder / "parquet/train-0.parquet", tables[0])
    test_huggingface.write_parquet(folder / "parquet/train-1.parquet", tables[1])
    return {
        "saved": test_huggingface.write_saved(folder / "saved", tables),
        "parquet": folder / "parquet",
        "classes": folder / "classes",
        "split": folder / "split",
        "table": folder / "t/table.csv",
        "tars": folder / "tars",
        "foreign": folder / "foreign",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_one_store_serves_the_same_images_in_every_container(tmp_path, capsys, teacher):
    """Extracted from TFRecords: pixels, teacher logits and class of every image are the same elsewhere."""
    records = write_color_shards(tmp_path / "records", sizes=(20,))
    names = ("background", "red", "green", "blue", "yellow")
    write_classes(records, ClassTable(names, names, has_background=True))
    run(*extract(records, teacher, tmp_path / "store", "--policy", "crop", "--views", 2))
    places = write_everywhere(records, tmp_path)
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\nyellow\n")

    def read(data: Path, options: RecordOptions) -> dict[tuple[int, int], tuple[bytes, str, str]]:
        source = open_records(data, "train", options)
        assert source.classes is not None
        store = Store(tmp_path / "store")
        dataset = KDDataset(source, StoredViews(store), StoredLogits([store], temperature=1.0), size=16,
                            class_space=ClassSpace(num_classes=4, offset=len(source.classes.names) - 4))  # fmt: skip
        found: dict[tuple[int, int], tuple[bytes, str, str]] = {}
        for index in range(len(dataset)):
            for epoch in range(2):
                batch = dataset.read_batch([index], epoch)
                key = source.read_record(*source.locate(index)).key
                name = source.classes.names[int(batch["labels"][0]) + len(source.classes.names) - 4]
                parts = sorted(batch.keys() - {"pixels", "labels", "indices"})
                logits = [(part, batch[part].numpy().tobytes()) for part in parts]
                found[key, epoch] = (
                    batch["pixels"].numpy().tobytes(),
                    repr(logits),
                    name,
                )
        return found

    expected = read(records, RecordOptions())
    assert len(expected) == 40 and len({pixels for pixels, _, _ in expected.values()}) == 40
    for kind, data in places.items():
        options = RecordOptions(labels=tmp_path / "labels.txt", **OPTIONS.get(kind, {}))
        assert read(data, options) == expected, kind
        words = [
            word for name, value in OPTIONS.get(kind, {}).items() for word in (f"--{name.replace('_', '-')}", value)
        ]
        words += ["--labels", tmp_path / "labels.txt"]
        capsys.readouterr()
        run("inspect", data, "--json", *words)
        (split,) = json.loads(capsys.readouterr().out)["splits"]
        assert (split["num_records"], split["num_classes"], split["num_doubled"]) == (20, 4, 0), kind
        assert [entry["num_records"] for entry in split["classes"]] == [5] * 4
        run("verify", tmp_path / "store", "--data", data, "--device", "cpu", *words)


KINDS = {
    "records": "TFRecord shards SPLIT-NNNNN-of-NNNNN",
    "split": "folders of images",
    "classes": "folders of images",
    "table": "a table of images",
    "tars": "WebDataset tars",
    "parquet": "a Hugging Face data set",
    "saved": "a Hugging Face data set",
    "foreign": "TFRecords of others",
}
REFUSED = {
    ("copy", "classes"): "copy tars, Parquet, tables and other data with the tools of the place",
    # Its records have no names, by which CSV identifies images.
    ("import", "foreign"): "train.tfrecord record 0 (byte 0): no line in ",
}
WORK = {"merge": {"records"}, "reindex": {"records"}, "copy": {"records", "split"}, "records": {"split", "classes"}}
"""By command: the containers that it takes; ``import`` takes all, and so do the commands that only read."""


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in all containers, a store of them and its logits as CSV."""
    folder = tmp_path_factory.mktemp("everywhere")
    names = ("background", "red", "green", "blue", "yellow")
    records = write_color_shards(folder / "records", sizes=(20,))
    write_classes(records, ClassTable(names, names, has_background=True))
    write_everywhere(records, folder)
    (folder / "labels.txt").write_text("red\ngreen\nblue\nyellow\n")
    run("extract", "--data", records, "--teacher", write_color_teacher(folder / "teacher.onnx"), "--out",
        folder / "store", "--codec", "float32", "--device", "cpu")  # fmt: skip
    run("export-logits", folder / "store", "--out", folder / "csv", "--format", "csv")
    return folder


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["merge", "reindex", "copy", "records", "import"])
def test_each_container_is_taken_or_refused_with_what_to_do(everywhere, tmp_path, capsys, command, kind):
    data, out = everywhere / ("t/table.csv" if kind == "table" else kind), tmp_path / "out"
    labels = [] if kind == "records" else ["--labels", everywhere / "labels.txt"]
    features = [
        word for name, value in OPTIONS.get(kind, {}).items() for word in (f"--{name}".replace("_", "-"), value)
    ]
    words = {
        "merge": ["merge", everywhere / "store", "--data", data, "--out", out],
        "reindex": ["reindex", "--data", data, "--out", out],
        "copy": ["copy", data, out],
        "records": ["records", "--images", data, "--out", out, "--shards", 1, *labels],
        "import": ["import", everywhere / "csv", "--data", data, "--out", out, *labels, *features],
    }[command]
    if (command, kind) not in REFUSED and kind in WORK.get(command, KINDS):
        run(*words)
        if command == "import":
            assert Store(out).num_records == 20 and Store(out).plan.class_names is not None
        elif command in ("merge", "reindex", "records"):
            assert open_records(out, "train").num_records == 20
        return
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("teachonce: "))
    expected = {
        "merge": f"{data}: merge copies TFRecord shards SPLIT-NNNNN-of-NNNNN, found {KINDS[kind]}; ",
        "reindex": f"{data}: reindex copies TFRecord shards SPLIT-NNNNN-of-NNNNN, found {KINDS[kind]}; ",
        "copy": "copy tars, Parquet, tables and other data with the tools of the place",
        "records": f"{data}: records makes TFRecords of folders of images, SPLIT/CLASS or CLASS, found {KINDS[kind]}; ",
    }
    assert (REFUSED.get((command, kind)) or expected[command]) in line
    assert end.value.code == (1 if command == "import" else 2)
    assert command == "import" or not out.exists()
    instead = {"merge": f"use records --logits {everywhere / 'store'}", "reindex": "use records --restart auto"}
    assert KINDS[kind] != "folders of images" or line.endswith(instead.get(command, "they lie in"))


def test_images_that_were_encoded_again_are_others(tmp_path, capsys, teacher):
    """Joined by the hash of their bytes: the same picture in other bytes is refused, and named."""
    data = write_images(tmp_path / "data")
    store = tmp_path / "store"
    run(*extract(data, teacher, store, "--policy", "crop", "--views", 2))
    path = data / "blue/0.jpg"
    Image.open(path).save(path, "JPEG", quality=95, optimize=True)
    words = train(data, tmp_path / "run", "--store", store)
    line = fails(capsys, words, 1, "23 of 24 records are in the store; 1 are not")
    assert "blue/0.jpg" in line
