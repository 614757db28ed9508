"""The whole way on 250 real ImageNet images with a real ImageNet teacher (EfficientNet-Lite0)."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config

from teachonce.cli.main import main
from teachonce.codecs.dense import Float16Codec, Int8Codec
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.verify import verify
from teachonce.interop.config import MergeConfig, RecordsConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.imagenet import imagenet_synsets
from teachonce.interop.merge import merge
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.training.train import train

pytestmark = pytest.mark.xdist_group("real images")  # one process makes the records and the store

NETWORK = "tf_efficientnet_lite0"
WEIGHTS = f"{NETWORK}-imagenet.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def records(imagenet_sample, folder):
    labels = folder / "labels.txt"
    labels.write_text("".join(f"{synset}\n" for synset in imagenet_synsets()))
    convert_records(RecordsConfig(images=imagenet_sample, out=folder / "records", shards=8, labels=labels))
    return folder / "records"


@pytest.fixture(scope="module")
def teacher(shared_data):
    if not (shared_data / WEIGHTS).exists():
        pytest.skip(f"no {WEIGHTS}")
    return f"timm:{NETWORK},weights={shared_data / WEIGHTS}"


@pytest.fixture(scope="module")
def store(records, teacher, folder):
    out = folder / "store"
    extract(
        ExtractConfig(
            data=records, teacher=teacher, out=out, codec="float32", gate_samples=32, expect_top1=0.85, device="cpu"
        )
    )
    return Store(out)


def all_logits(store: Store) -> np.ndarray:
    return np.concatenate([store.read_logits(shard, 0, slice(None)) for shard in range(len(store.shards))])


def test_records_hold_the_images_of_the_folder(records, imagenet_sample):
    source = open_records(records, "train")
    synsets = imagenet_synsets()
    images = {path.name: path for path in (imagenet_sample / "train").glob("*/*.JPEG")}
    seen = [record for shard in range(8) for record in source.iter_shard(shard)]
    assert len(seen) == 250 and {record.filename for record in seen} == set(images)
    for record in seen:
        assert record.encoded == images[record.filename].read_bytes()
        assert synsets[record.label - 1] == images[record.filename].parent.name


def test_top1_is_that_of_plain_timm(records, store, shared_data):
    network = timm.create_model(NETWORK, checkpoint_path=str(shared_data / WEIGHTS)).eval()
    transform = create_transform(**resolve_data_config({}, model=network))
    source = open_records(records, "train")
    seen = [record for shard in range(8) for record in source.iter_shard(shard)]
    labels = np.array([record.label - 1 for record in seen])
    stored = all_logits(store)
    assert (stored.argmax(axis=1) == labels).sum() == 224  # 89.6 %
    # Every fifth one also through the library alone: it is in all shards and in all batches of the store's.
    with torch.inference_mode():
        plain = np.stack([network(transform(decode_image(record.encoded))[None])[0].numpy() for record in seen[::5]])
    # One image a batch here, 64 there: sums in another order, a few units of the last place.
    np.testing.assert_allclose(stored[::5], plain, atol=1e-3)
    assert (stored[::5].argmax(axis=1) == plain.argmax(axis=1)).all()


def test_codecs_on_real_logits(store):
    """Total variation between softened dense and stored targets at most 0.01 for T in 1..4, in about 1,010 bytes."""
    logits = all_logits(store)
    for codec, limit, num_bytes in ((Float16Codec(), 0.002, 2004), (Int8Codec(), 0.01, 1012)):
        columns = codec.encode_logits(logits)
        assert sum(values.nbytes for values in columns.values()) == len(logits) * num_bytes
        for temperature in (1.0, 1.5, 2.0, 3.0, 4.0):
            dense, stored = (
                torch.softmax(torch.from_numpy(values).double() / temperature, dim=1)
                for values in (logits, codec.decode_logits(columns))
            )
            assert float(0.5 * (dense - stored).abs().sum(dim=1).max()) <= limit


def test_verify_merge_and_tensorflow(records, store, folder, tensorflow):
    verdict = verify(VerifyConfig(store=store.path, data=records, samples=32, device="cpu"))
    assert verdict.is_sound and verdict.num_keys == 250, verdict.reason
    merged = folder / "merged"
    merge(MergeConfig(store=store.path, data=records, out=merged, num_workers=1))
    paths = [str(merged / name) for name, _ in store.shards]
    schema = {
        "image/encoded": tensorflow.io.FixedLenFeature([], tensorflow.string),
        "image/filename": tensorflow.io.FixedLenFeature([], tensorflow.string),
        "image/class/label": tensorflow.io.FixedLenFeature([], tensorflow.int64),
        "image/logit": tensorflow.io.FixedLenFeature([1001], tensorflow.float32),
    }
    stored, names = all_logits(store), [name for shard in range(8) for name in store.read_filenames(shard)]
    rows = [tensorflow.io.parse_single_example(raw, schema) for raw in tensorflow.data.TFRecordDataset(paths)]
    assert len(rows) == 250
    for row, logits, name in zip(rows, stored, names, strict=True):
        assert row["image/filename"].numpy().decode() == name
        assert row["image/logit"].numpy()[0] == -np.inf
        np.testing.assert_array_equal(row["image/logit"].numpy()[1:], logits)
    for row in rows[:10]:
        pixels = tensorflow.io.decode_jpeg(row["image/encoded"], channels=3, dct_method="INTEGER_ACCURATE").numpy()
        np.testing.assert_array_equal(pixels, np.asarray(decode_image(row["image/encoded"].numpy())))


@pytest.mark.parametrize("source", ["records", "store"])
def test_a_short_training(records, store, folder, source):
    merged = folder / "merged-for-training"
    if not merged.exists():
        merge(MergeConfig(store=store.path, data=records, out=merged, num_workers=1))
    options = {"logits": "records", "data": merged} if source == "records" else {"store": store.path, "data": records}
    result = train(
        TrainConfig(
            student="timm:test_resnet",
            out=folder / f"run-{source}",
            validation_split=None,
            epochs=2,
            batch_size=50,
            size=64,
            lr=0.05,
            device="cpu",
            **options,
        )
    )
    assert result["epochs"] == 2 and np.isfinite(result["train_loss"])
    # Both read the same logits: the same curve, bit for bit.
    curves = [path.read_text().splitlines()[1].split(",")[3] for path in folder.glob("run-*/metrics.csv")]
    assert len(set(curves)) == 1


def test_the_gate_knows_this_teacher_with_shifted_labels(records, teacher, folder, capsys):
    words = ["extract", "--data", str(records), "--teacher", teacher, "--out", str(folder / "shifted"), "--offset", "0"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--expect-top1", "0.85", "--gate-samples", "32", "--device", "cpu"])
    assert end.value.code == 1
    assert "labels shifted by one (--offset 1)" in capsys.readouterr().err
    assert isinstance(folder, Path) and not list((folder / "shifted").glob("*.arrow"))
