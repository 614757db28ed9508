import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teachonce.errors import ConfigError, ImageError, LogitsError, PlanMismatchError, RecordError, TeachonceError
from teachonce.interop import convert
from teachonce.interop.config import MergeConfig, RecordsConfig
from teachonce.interop.convert import check_arrived, convert_records
from teachonce.interop.merge import merge
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import find_splits, open_records
from teachonce.records.source import record_key
from teachonce.records.tfrecord.framing import index_path, read_tfrecords
from teachonce.records.tfrecord.tf_example import encode_example
from tests.support.kills import dead_writer, everything, temporary
from tests.support.raw_images import CLASSES, encode, examples_of, run, shards_of, write
from tests.support.small_data import encode_jpeg, write_shards, write_store


def make_bomb() -> bytes:
    """A small JPEG whose header says 30,000 x 30,000 pixels."""
    encoded = bytearray(encode_jpeg(3))
    at = encoded.index(b"\xff\xc0") + 5
    encoded[at : at + 4] = (30_000).to_bytes(2, "big") * 2
    return bytes(encoded)


def test_the_schema_field_by_field(images: Path, out: Path) -> None:
    run(images, out)
    examples = examples_of(out)
    assert len(examples) == 17
    example = {name: list(value) for name, value in examples["n01443537_4.JPEG"].items()}
    assert example == {
        "image/encoded": [(images / "train/n01443537/n01443537_4.JPEG").read_bytes()],
        "image/height": [30],
        "image/width": [44],
        "image/colorspace": [b"RGB"],
        "image/channels": [3],
        "image/format": [b"JPEG"],
        "image/filename": [b"n01443537_4.JPEG"],
        "image/class/label": [2],
        "image/class/synset": [b"n01443537"],
        "image/class/text": [b"goldfish, Carassius auratus"],
        "image/object/bbox/xmin": [],
        "image/object/bbox/ymin": [],
        "image/object/bbox/xmax": [],
        "image/object/bbox/ymax": [],
        "image/object/bbox/label": [],
    }
    assert [len(list(read_tfrecords(out / name))) for name in shards_of(out)] == [4, 4, 4, 5]
    assert json.loads((out / "classes.json").read_text()) == {
        "names": ["background", *CLASSES],
        "texts": ["background", "tench, Tinca tinca", "goldfish, Carassius auratus",
                  "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"],
        "has_background": True,
    }  # fmt: skip
    assert all(index_path(out / name).exists() for name in shards_of(out))


def test_the_result_is_a_record_source(images: Path, out: Path) -> None:
    run(images, out)
    source = open_records(out, "train")
    found = {record.filename: record for shard in range(4) for record in source.iter_shard(shard)}
    assert source.classes is not None and source.classes.names[1:] == tuple(CLASSES)
    for number in range(17):
        record = found[f"{CLASSES[number % 3]}_{number}.JPEG"]
        assert record.label == 1 + number % 3 and record.key == record_key(encode_jpeg(number, 40 + number, 30))


def test_tensorflow_reads_the_result_field_by_field(tensorflow: Any, images: Path, out: Path, tmp_path: Path) -> None:
    boxes = write(tmp_path / "boxes.csv", "n01440764_3.JPEG,0.1,0.2,0.3,0.4\nn01440764_3.JPEG,0.5,0.5,1,1\n")
    run(images, out, boxes=boxes)
    tf = tensorflow
    strings = ("encoded", "colorspace", "format", "filename", "class/synset", "class/text")
    features = {f"image/{name}": tf.io.FixedLenFeature([], tf.string) for name in strings}
    numbers = ("height", "width", "channels", "class/label")
    features |= {f"image/{name}": tf.io.FixedLenFeature([], tf.int64) for name in numbers}
    corners = ("xmin", "ymin", "xmax", "ymax")
    features |= {f"image/object/bbox/{name}": tf.io.VarLenFeature(tf.float32) for name in corners}
    features["image/object/bbox/label"] = tf.io.VarLenFeature(tf.int64)
    ours = examples_of(out)
    dataset = tf.data.TFRecordDataset([str(out / name) for name in shards_of(out)])
    num_seen = 0
    for theirs in dataset.map(lambda payload: tf.io.parse_single_example(payload, features)):
        example = ours[theirs["image/filename"].numpy().decode()]
        assert theirs.keys() == example.keys()
        for name, value in theirs.items():
            dense = tf.sparse.to_dense(value) if isinstance(value, tf.sparse.SparseTensor) else [value.numpy()]
            np.testing.assert_array_equal(np.asarray(dense), np.asarray(example[name]))
        pixels = tf.io.decode_jpeg(theirs["image/encoded"], channels=3).numpy()
        assert pixels.shape == (example["image/height"][0], example["image/width"][0], 3)
        num_seen += 1
    assert num_seen == 17


def test_the_order_is_shuffled_and_a_function_of_the_seed_alone(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "1")
    run(images, tmp_path / "2", num_workers=2)
    run(images, tmp_path / "3", seed=1)
    assert shards_of(tmp_path / "1") == shards_of(tmp_path / "2")
    orders = [list(examples_of(tmp_path / name)) for name in "13"]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_a_rerun_makes_only_what_is_missing(images: Path, out: Path, tmp_path: Path) -> None:
    run(images, out)
    whole = shards_of(out)
    (out / "train-00002-of-00004").unlink()
    index_path(out / "train-00001-of-00004").unlink()
    temporary(out, dead_writer(), "train-00002-of-00004")
    neighbor = temporary(out, name="validation-00000-of-00001")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*-of-00004")}
    run(images, out)
    assert shards_of(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert list(out.glob(".tmp-*")) == [neighbor]
    # And nothing at all when all is there, even if the images are gone but for their names.
    for path in images.rglob("*.JPEG"):
        path.write_bytes(b"")
    run(images, out)
    assert shards_of(out) == whole


def test_shards_that_a_cluster_made_elsewhere_are_said(images: Path, out: Path) -> None:
    convert_records(RecordsConfig(images=images, out=out, shards=2))
    config = RecordsConfig(images=images, out=out, shards=2, engine="ray")
    names = ["train-00000-of-00002", "train-00001-of-00002"]
    check_arrived(config, names)
    (out / names[1]).unlink()
    with pytest.raises(
        RecordError, match=rf"^{out}: 1 shards that workers wrote are missing here \(first: {names[1]}\)"
    ):
        check_arrived(config, names)


@pytest.mark.parametrize("name", ["records", "merge"])
def test_workers_of_a_job_array_make_the_same_shards(images: Path, tmp_path: Path, name: str) -> None:
    """Each alone makes all; the second finds nothing to do."""
    data = tmp_path / "data"
    store = write_store(tmp_path / "store", write_shards(data))
    for out, worker in (("whole", "0/1"), ("array", "1/2"), ("array", "0/2")):
        if name == "records":
            convert_records(RecordsConfig(images=images, out=tmp_path / out, shards=3, worker=worker))
        else:
            merge(MergeConfig(store=store.path, data=data, out=tmp_path / out, worker=worker))
    assert everything(tmp_path / "whole") == everything(tmp_path / "array")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"shards": 3}, "shards was 4, now 3"),
        ({"seed": 5}, r"seed was 0, now 5; the order of the images \(drawn by --seed\): not the same then and now"),
        ({"labels": "n01484850\nn01443537\nn01440764\n"}, "the labels of the images: not the same then and now"),
        ({"boxes": "n01440764_3.JPEG,0,0,1,1\n"}, r"the boxes \(--boxes\): none then"),
    ],
)
def test_another_conversion_is_refused_with_what_differs(
    images: Path, out: Path, tmp_path: Path, options: dict[str, Any], difference: str
) -> None:
    run(images, out)
    before = shards_of(out)
    for name in ("labels", "boxes"):
        if name in options:
            options = {name: write(tmp_path / f"{name}.txt", options[name])}
    expected = (
        rf"^{out}: was started with (a different plan|other inputs): .*{difference}.*"
        r"the train shards and records\.train\.json$"
    )
    with pytest.raises(PlanMismatchError, match=expected):
        run(images, out, **options)
    assert shards_of(out) == before


def test_other_images_and_foreign_shards_are_refused(images: Path, out: Path, tmp_path: Path) -> None:
    run(images, out)
    write(images / "train" / CLASSES[0] / "new.JPEG", encode_jpeg(99))
    with pytest.raises(
        PlanMismatchError, match=r"images was 17, now 18; the names of the images: not the same then and now"
    ):
        run(images, out)
    (out / "records.train.json").unlink()
    with pytest.raises(PlanMismatchError, match="holds train shards that this command did not write"):
        run(images, out)
    (out / "train-00000-of-00004").unlink()
    with pytest.raises(PlanMismatchError, match="holds train shards that this command did not write"):
        run(images, out)


def test_two_splits_share_a_folder_and_its_classes(images: Path, out: Path) -> None:
    write(images / "validation" / CLASSES[2] / "v1.JPEG", encode_jpeg(50))
    write(images / "validation" / CLASSES[1] / "v2.JPEG", encode_jpeg(51))
    run(images, out)
    run(images, out, split="validation", shards=1)
    labels = {name: example["image/class/label"][0] for name, example in examples_of(out, "validation").items()}
    assert labels == {"v1.JPEG": 3, "v2.JPEG": 2}  # the classes are train's, one of which validation lacks
    (images / "train").rename(images / "other")
    (images / "validation").rename(images / "test")
    with pytest.raises(PlanMismatchError, match=r"other classes \(4, label 1 is n01440764\) than now \(3, .* --labels"):
        run(images, out, split="test", shards=2)


@pytest.mark.parametrize(
    ("folder", "split"), [("val", "validation"), ("Validation", "val"), ("valid", "valid"), ("validation", "VALID")]
)
@pytest.mark.parametrize(("train", "asked"), [("train", "training"), ("Train", "train")])
def test_a_split_by_another_of_its_names(
    images: Path, out: Path, folder: str, split: str, train: str, asked: str
) -> None:
    """As every command takes them; shards are named as was asked."""
    write(images / folder / CLASSES[2] / "v1.JPEG", encode_jpeg(50))
    (images / "train").rename(images / train)
    run(images, out, split=asked)
    run(images, out, split=split, shards=1)
    assert find_splits(out) == sorted([asked, split]) and open_records(out, asked).num_records == 17
    labels = {name: example["image/class/label"][0] for name, example in examples_of(out, split).items()}
    assert labels == {"v1.JPEG": 3}  # the classes are train's


def test_a_flat_split_by_another_of_its_names(images: Path, out: Path, tmp_path: Path) -> None:
    write(images / "val/a.JPEG", encode_jpeg(50))
    answers = write(tmp_path / "a.txt", CLASSES[1])
    run(images, out, split="validation", image_labels=answers, shards=1)
    assert open_records(out, "val").read_record(0, 0).label == 2


def test_labels_from_a_file(images: Path, out: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.txt", "n01484850\nn99999999\nn01443537\nn01440764\n")
    metadata = write(
        tmp_path / "metadata.txt", "".join(f"{name}\ttext of {name}\n" for name in [*CLASSES, "n99999999"])
    )
    run(images, out, labels=labels, metadata=metadata)
    example = examples_of(out)["n01484850_2.JPEG"]
    assert example["image/class/label"].tolist() == [1]
    assert example["image/class/text"] == [b"text of n01484850"]
    classes = open_records(out, "train").classes
    assert classes is not None and len(classes.names) == 5 and classes.names[4] == "n01440764"


def test_labels_that_do_not_fit(images: Path, out: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.txt", "n01484850\nn01443537\n")
    with pytest.raises(RecordError, match=r"n01440764_0.JPEG: class n01440764 is not among the 2 of .*labels.txt"):
        run(images, out, labels=labels)
    with pytest.raises(ConfigError, match="line 3: n01484850 is a duplicate"):
        run(images, out, labels=write(labels, "n01484850\nn01443537\nn01484850\n"))
    with pytest.raises(ConfigError, match="the metadata lacks 2 of 3 classes, such as n01443537"):
        run(images, out, metadata=write(tmp_path / "metadata.txt", "n01440764\ttench\n"))
    write(images / "validation/n00000001/1.JPEG", encode_jpeg(1))
    with pytest.raises(RecordError, match=r"class n00000001 is not among the 3 of .*images/train"):
        run(images, out, split="validation", shards=1)
    assert not out.exists()


def test_a_flat_validation_folder(images: Path, out: Path, tmp_path: Path) -> None:
    for number in range(1, 6):
        write(images / f"validation/ILSVRC2012_val_{number:08d}.JPEG", encode_jpeg(number))
    lines = [CLASSES[number] for number in (2, 0, 2, 1, 0)]
    answers = write(tmp_path / "answers.txt", "\n".join(lines) + "\n")
    run(images, out, split="validation", image_labels=answers, shards=2)
    found = {name: example["image/class/label"][0] for name, example in examples_of(out, "validation").items()}
    assert found == {f"ILSVRC2012_val_{number + 1:08d}.JPEG": 1 + CLASSES.index(lines[number]) for number in range(5)}
    with pytest.raises(ConfigError, match=r"validation: no class folders; .* give --image-labels"):
        run(images, out, split="validation", shards=2)
    with pytest.raises(ConfigError, match="4 lines for 5 images"):
        run(images, out, split="validation", image_labels=write(answers, "\n".join(lines[:4])), shards=2)
    with pytest.raises(RecordError, match=r"val_00000004.JPEG: class 490 is not among .* ILSVRC's own class numbers"):
        run(images, out, split="validation", image_labels=write(answers, "\n".join([*lines[:3], "490", lines[4]])))
    with pytest.raises(ConfigError, match=r"train has class folders; leave the option out"):
        run(images, out, image_labels=answers)


def test_a_flat_folder_alone_takes_its_classes_from_the_answers(out: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"flat/validation/{number}.JPEG", encode_jpeg(number))
    run(tmp_path / "flat", out, split="validation", image_labels=write(tmp_path / "a.txt", "dog\ncat\ndog"), shards=1)
    assert {name: example["image/class/label"][0] for name, example in examples_of(out, "validation").items()} == {
        "0.JPEG": 2,
        "1.JPEG": 1,
        "2.JPEG": 2,
    }


@pytest.mark.parametrize(
    ("content", "message", "num_workers"),
    [
        (encode_jpeg(3)[:-300], r"JPEG image of 40 x 30 pixels cannot be decoded .*truncated", 1),
        # What becomes of an error that a worker meets is the same for each content.
        (encode_jpeg(3)[:-300], r"JPEG image of 40 x 30 pixels cannot be decoded .*truncated", 2),
        (b"just a text file named .JPEG", "begin with b'just a t': expected a JPEG", 1),
        (b"", "0 bytes: expected a JPEG", 1),
        (make_bomb(), "JPEG image of 30000 x 30000 pixels, more than the", 1),
        (encode(decode_image(encode_jpeg(3)), "PNG")[:-200], "PNG image of 40 x 30 pixels cannot be decoded", 1),
    ],
)
def test_an_image_that_cannot_be_decoded_stops_with_its_path(
    images: Path, out: Path, content: bytes, message: str, num_workers: int
) -> None:
    bad = write(images / "train" / CLASSES[1] / "n01443537_4.JPEG", content)
    with pytest.raises(ImageError, match=rf"^{bad}: .*{message}") as caught:
        run(images, out, num_workers=num_workers)
    assert "\n" not in str(caught.value)
    # Nothing half-written; once the image is mended, the same command finishes the work.
    assert not list(out.glob(".tmp-*")) and len(shards_of(out)) < 4
    write(bad, encode_jpeg(4, 44, 30))
    run(images, out)
    assert len(examples_of(out)) == 17


def test_a_missing_image_and_empty_folders(images: Path, out: Path, tmp_path: Path) -> None:
    link = images / "train" / CLASSES[0] / "link.JPEG"
    link.symlink_to("nowhere")
    with pytest.raises(RecordError, match=rf"^{link}: cannot be read: No such file"):
        run(images, out)
    (images / "train/n01494475").mkdir()
    with pytest.raises(RecordError, match="train/n01494475: has no images"):
        run(images, tmp_path / "other")
    (tmp_path / "empty/train").mkdir(parents=True)
    with pytest.raises(ConfigError, match="empty/train: no class folders"):
        run(tmp_path / "empty", tmp_path / "other")


def test_wrong_commands(images: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"images/test: no such folder; .*images has train; give another --split"):
        run(images, out, split="test")
    with pytest.raises(ConfigError, match="nowhere: no such folder; expected SPLIT/CLASS"):
        run(tmp_path / "nowhere", out)
    with pytest.raises(ConfigError, match="--shards 18: more than the 17 images"):
        run(images, out, shards=18)
    with pytest.raises(TeachonceError, match="file: is not a folder, or holds train shards"):
        run(images, write(tmp_path / "file", "in the way"))


def test_classes_in_no_splits_are_the_training_split(images: Path, out: Path, tmp_path: Path) -> None:
    """So a store of such data merges as the message of ``merge`` says: with ``records --logits``."""
    classes = images / "train"
    source = open_records(classes, "train")
    logits = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32)
    store = write_store(tmp_path / "store", source, logits, offset=0)
    with pytest.raises(ConfigError, match=r"found folders of images; use records --logits"):
        merge(MergeConfig(data=classes, store=store.path, out=tmp_path / "merged"))
    run(classes, tmp_path / "by_another_name", split="Training")
    assert open_records(tmp_path / "by_another_name", "train").num_records == 17
    run(classes, out, logits=store.path)
    examples = examples_of(out)
    assert len(examples) == 17
    for row, record in enumerate(source.iter_shard(0)):
        example = examples[record.filename.rpartition("/")[2]]
        assert example["image/class/label"] == record.label + 1
        np.testing.assert_array_equal(example["image/logit"], [-np.inf, *logits[row]])
    with pytest.raises(ConfigError, match=r"has no splits; its images are --split train; move .* of test below it"):
        run(classes, out, split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no splits; move the class folders of train below it"):
        run(tmp_path / "empty", out)


def write_csv(folder: Path, images: Path, num_classes: int = 3) -> dict[str, list[float]]:
    rows = {path.name: [number + 0.5] * num_classes for number, path in enumerate(sorted(images.rglob("*.JPEG")))}
    lines = [",".join([name, *map(str, row)]) for name, row in rows.items()]
    write(folder / "train-0.csv", "\n".join(lines[:9]) + "\n")
    write(folder / "train-1.csv", "\n".join(lines[9:]) + "\n")
    return rows


@pytest.mark.parametrize("num_workers", [1, 2])
def test_logits_from_the_walkthroughs_csv(images: Path, out: Path, tmp_path: Path, num_workers: int) -> None:
    rows = write_csv(tmp_path / "logits", images)
    run(images, out, logits=tmp_path / "logits", num_workers=num_workers)
    for name, example in examples_of(out).items():
        assert example["image/logit"].tolist() == [-np.inf, *rows[name]]
    record = open_records(out, "train").read_record(0, 0, with_logits=True)
    assert record.logits is not None and len(record.logits) == 4
    run(images, tmp_path / "zero", logits=tmp_path / "logits", background_logit=0.0)
    assert all(example["image/logit"][0] == 0 for example in examples_of(tmp_path / "zero").values())


def test_logits_that_miss_or_double_an_image(images: Path, out: Path, tmp_path: Path) -> None:
    logits = tmp_path / "logits"
    write_csv(logits, images)
    lines = (logits / "train-1.csv").read_text().splitlines()
    write(logits / "train-1.csv", "\n".join(lines[:-1]) + "\n")
    missing = lines[-1].partition(",")[0]
    with pytest.raises(LogitsError, match=rf"{missing}: no line in .*16 lines"):
        run(images, out, logits=logits)
    assert not out.exists()
    write(logits / "train-1.csv", "\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(LogitsError, match=f"{lines[0].partition(',')[0]}: has two lines"):
        run(images, tmp_path / "doubled", logits=logits)
    write(logits / "train-1.csv", "\n".join(lines) + "\n")
    write(images / "train" / CLASSES[1] / "n01440764_0.JPEG", encode_jpeg(60))
    with pytest.raises(
        LogitsError, match=r"^n01440764/n01440764_0.JPEG and n01443537/n01440764_0.JPEG of .*two images"
    ):
        run(images, tmp_path / "collision", logits=logits)


def test_logits_from_a_store_of_the_image_folder(images: Path, tmp_path: Path) -> None:
    """The store's keys are those of the raw files, the converted ones included; labels move by the background."""
    png = encode(decode_image(encode_jpeg(7)), "PNG")
    write(images / "train" / CLASSES[0] / "png.JPEG", png)
    source = open_records(images, "train")
    logits = np.random.default_rng(0).normal(size=(18, 3)).astype(np.float32)
    store = write_store(tmp_path / "store", source, logits, offset=0)
    run(images, tmp_path / "out", logits=store.path)
    examples = examples_of(tmp_path / "out")
    for row, record in enumerate(source.iter_shard(0)):
        example = examples[record.filename.rpartition("/")[2]]
        np.testing.assert_array_equal(example["image/logit"], [-np.inf, *logits[row]])
    # Classes in another order have other numbers and the same names.
    labels = write(tmp_path / "labels.txt", "\n".join(reversed(CLASSES)))
    run(images, tmp_path / "reversed", logits=store.path, labels=labels)
    examples = examples_of(tmp_path / "reversed")
    for row, record in enumerate(source.iter_shard(0)):
        example = examples[record.filename.rpartition("/")[2]]
        np.testing.assert_array_equal(example["image/logit"], [-np.inf, *logits[row][::-1]])
        assert example["image/class/label"] == 3 - record.label
    # Another teacher's store has files of the same names and sizes; its logits are others all the same.
    other = write_store(tmp_path / "other-store", source, logits + 1, offset=0)
    with pytest.raises(PlanMismatchError, match=r"the logits \(--logits\): not the same then and now"):
        run(images, tmp_path / "out", logits=other.path)


KILLED = """
import os, sys
from pathlib import Path
from teachonce.interop import convert
from teachonce.interop.config import RecordsConfig
encode, count = convert.encode_example, 0
def stop(features):
    global count
    count += 1
    if count == 11:
        os.kill(os.getpid(), 9)
    return encode(features)
convert.encode_example = stop
convert.convert_records(RecordsConfig(images=Path(sys.argv[1]), out=Path(sys.argv[2]), shards=4, num_workers=1))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, KeyboardInterrupt, MemoryError])
def test_interrupted_in_the_middle_of_a_shard(
    images: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    run(images, tmp_path / "whole")
    whole = shards_of(tmp_path / "whole")
    if how is signal.SIGKILL:
        process = subprocess.run([sys.executable, "-c", KILLED, str(images), str(out)], stderr=subprocess.DEVNULL)
        assert process.returncode == -signal.SIGKILL
    else:
        count = itertools.count(1)

        def stop(features: Any) -> bytes:
            if next(count) == 11:
                raise how
            return encode_example(features)

        with monkeypatch.context() as patch, pytest.raises(how):
            patch.setattr(convert, "encode_example", stop)
            run(images, out)
        assert not list(out.glob(".tmp-*")), "nobody is killed here, who could leave one"
    assert shards_of(out) == dict(list(whole.items())[:2])
    before = {name: (out / name).stat().st_mtime_ns for name in shards_of(out)}
    run(images, out)
    assert shards_of(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not list(out.glob(".tmp-*"))


# Workers run the top level too. Each stops in the middle of its eleventh shard, so that the kill cannot come too late.
WORKERS = """
import sys, time
from pathlib import Path
from teachonce.interop import convert
from teachonce.interop.config import RecordsConfig
encode, count = convert.encode_example, 0
def stop(features):
    global count
    count += 1
    if count == 105:
        time.sleep(600)
    return encode(features)
convert.encode_example = stop
if __name__ == "__main__":
    convert.convert_records(RecordsConfig(images=Path(sys.argv[1]), out=Path(sys.argv[2]), shards=60, num_workers=2))
"""


@pytest.mark.slow
def test_killed_with_its_workers_and_finished(out: Path, tmp_path: Path) -> None:
    for number in range(600):
        write(tmp_path / f"many/train/{number % 3}/{number}.jpg", encode_jpeg(number, 40, 30))
    script = write(tmp_path / "convert.py", WORKERS)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "many"), str(out)], start_new_session=True)
    # Ten of each worker; then each has begun one more.
    wait_until(lambda: len(list(out.glob("train-*-of-00060"))) == 20 and len(list(out.glob(".tmp-*"))) == 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("train-*-of-00060"))) == 20
    run(tmp_path / "many", out, shards=60, num_workers=2)
    run(tmp_path / "many", tmp_path / "whole", shards=60)
    assert shards_of(out) == shards_of(tmp_path / "whole")


def wait_until(holds: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


PEAK = """
import sys
from pathlib import Path
from teachonce.interop.config import RecordsConfig
from teachonce.interop.convert import convert_records
convert_records(RecordsConfig(images=Path(sys.argv[1]), out=Path(sys.argv[2]), shards=2, num_workers=1))
# Not ru_maxrss: that begins with what the forking parent had.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """400 MB of images against 4 MB: the peak may differ by one image and some listing, not by the data."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    large = encode(Image.fromarray(noise), "JPEG", quality=95)
    peaks = []
    for count in (4, 400):
        folder = tmp_path / f"images{count}/train/a"
        write(folder / "0.jpg", large)
        for number in range(1, count):
            os.link(folder / "0.jpg", folder / f"{number}.jpg")
        arguments = [str(folder.parent.parent), str(tmp_path / f"out{count}")]
        process = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(process.stdout) * 1024)
    total = sum(path.stat().st_size for path in (tmp_path / "out400").glob("train-*-of-00002"))
    assert total > 400e6 and total == pytest.approx(400 * len(large), rel=0.01)
    assert peaks[1] - peaks[0] < 20e6
    assert peaks[1] < 400e6


def test_imagenet(imagenet_sample: Path, tmp_path: Path, capsys: Any) -> None:
    """250 real images: grayscale ones keep their bytes, and every image is what the folder holds."""
    run(imagenet_sample, tmp_path / "out", shards=8, num_workers=2)
    examples = examples_of(tmp_path / "out")
    assert len(examples) == 250
    num_kept = 0
    for path in imagenet_sample.rglob("*.JPEG"):
        example = examples[path.name]
        num_kept += example["image/encoded"][0] == path.read_bytes()
        with Image.open(path) as image:
            assert image.size == (example["image/width"][0], example["image/height"][0])
        assert example["image/class/synset"][0].decode() == path.parent.name
    converted = capsys.readouterr().err
    assert num_kept == 250 or f"{250 - num_kept} images were not RGB" in converted
