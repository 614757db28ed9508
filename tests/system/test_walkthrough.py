"""The walkthrough's printed commands, run as printed from ``walkthrough/``, on ImageNet-shaped data."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from teachonce.interop.imagenet import imagenet_synsets
from teachonce.models.classifier import load_model
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from tests.support.paths import ROOT
from tests.support.small_data import encode_jpeg
from tests.support.small_models import write_color_teacher

pytestmark = pytest.mark.xdist_group("walkthrough")

FOLDER = ROOT / "walkthrough"


def start(*words) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out + err


def run(*words, code=0) -> str:
    return finish(start(*words), code)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """ILSVRC's layout: train/SYNSET/SYNSET_N.JPEG and validation/SYNSET/ILSVRC2012_val_N.JPEG."""
    folder = tmp_path_factory.mktemp("raw")
    for index, synset in enumerate(imagenet_synsets()[:1000:125]):
        for number in range(3):
            for split, name in (
                ("train", f"{synset}_{number}"),
                ("validation", f"ILSVRC2012_val_{index * 3 + number:08d}"),
            ):
                path = folder / split / synset / f"{name}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_jpeg(index * 10 + number + (500 if split == "validation" else 0)))
    return folder


@pytest.fixture(scope="module")
def tfrecords(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("tfrecords") / "imagenet"
    run(
        "datasets/build_imagenet_data.py",
        f"--train_directory={raw}/train",
        f"--validation_directory={raw}/validation",
        f"--output_directory={out}",
        "--train_shards=4",
        "--validation_shards=2",
    )
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_color_teacher(tmp_path_factory.mktemp("teacher") / "teacher.onnx", num_classes=1000)


@pytest.mark.slow
def test_the_three_steps(raw, tfrecords, teacher, tmp_path):
    logits = tmp_path / "logits"
    parts = [
        start(
            "kd/extract_embeddings.py" if part else "kd/extract_embbeddings.py",
            f"--data_dir={tfrecords}",
            f"--output_dir={logits}",
            f"--gpu_to_use={part}",
            f"--no_shard={part}",
            "--total_num_shard=4",
            "--offset=1",
            f"--teacher={teacher}",
        )
        for part in range(4)
    ]
    for part in parts:
        finish(part)
    run(
        "kd/extract_embeddings.py",
        f"--data_dir={tfrecords}",
        f"--output_dir={logits}_val",
        "--gpu_to_use=0",
        "--no_shard=0",
        "--total_num_shard=1",
        "--n_tfrecord=2",
        "--is_training=False",
        "--offset=1",
        f"--teacher={teacher}",
    )
    assert sorted(path.name for path in logits.glob("*.csv")) == [f"train-{part}.csv" for part in range(4)]
    rows = {row[0]: row[1:] for path in logits.glob("*.csv") for row in csv.reader(path.read_text().splitlines())}
    assert set(rows) == {path.name for path in (raw / "train").glob("*/*")} and len(rows) == 24
    store = Store(logits / "store.train")
    name = store.read_filenames(2)[0]
    np.testing.assert_array_equal(np.array(rows[name], np.float32), store.read_logits(2, 0, [0])[0])

    with_logits = tmp_path / "imagenet_kd"
    output = run(
        "datasets/build_imagenet_data.py",
        f"--train_directory={raw}/train",
        f"--validation_directory={raw}/validation",
        "--make_train=True",
        f"--output_directory={with_logits}",
        "--imagenet_metadata_file=datasets/imagenet_metadata.txt",
        "--labels_file=datasets/imagenet_lsvrc_2015_synsets.txt",
        "--bounding_box_file=datasets/imagenet_2012_bounding_boxes.csv",
        f"--logits_file_path={logits}",
        "--train_shards=2",
        "--validation_shards=1",
        "--background_logit=0",
    )
    assert "the labels are timm's" in output and "no boxes are written" in output
    # A teacher of 1000 classes for 1001 labels: the numbers themselves, and the original's background logit.
    for split in ("train", "validation"):
        record = open_records(with_logits, split).read_record(0, 0, with_logits=True)
        assert record.logits is not None and len(record.logits) == 1001
        assert record.logits[0] == 0 and record.logits[1:].all()

    run(
        "main_classification.py",
        f"--data_dir={with_logits}",
        f"--model_dir={tmp_path}/run",
        "--kd_temp=1",
        "--student=timm:test_resnet",
        "--train_epochs=1",
        "--batch_size=8",
        "--lr_warmup_epochs=0",
        "--image_size=32",
        "--num_workers=0",
    )
    assert load_model(f"run:{tmp_path}/run").num_classes == 1001


@pytest.mark.slow
def test_wrong_flags_are_one_line(tfrecords, teacher, tmp_path):
    data = f"--data_dir={tfrecords}"
    out = f"--output_dir={tmp_path}/logits"
    assert "give --saved_model DIR" in run("kd/extract_embeddings.py", data, out, code=2)
    message = run("kd/extract_embeddings.py", data, out, f"--teacher={teacher}", "--n_tfrecord=1024", code=2)
    assert "has 4 train shards" in message and len(message.splitlines()) == 1
    message = run(
        "kd/extract_embeddings.py", data, out, f"--teacher={teacher}", "--no_shard=8", "--total_num_shard=8", code=2
    )
    assert "--no_shard 8: expected 0 to 7" in message
    message = run(
        "datasets/build_imagenet_data.py", f"--output_directory={tmp_path}/o", f"--train_directory={tmp_path}", code=2
    )
    assert "expected a folder called train" in message
