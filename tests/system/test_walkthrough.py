"""The walkthrough's printed commands, run as printed from ``walkthrough/``, on ImageNet images where they are there."""

import csv
import hashlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import ConfigError
from teachonce.interop.imagenet import imagenet_synsets
from teachonce.models.classifier import build_student, load_model
from teachonce.models.walkthrough_weights import HUB_MODULES
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from tests.support.paths import ROOT
from tests.support.small_data import encode_jpeg
from tests.support.small_models import write_color_teacher

pytestmark = pytest.mark.xdist_group("walkthrough")

FOLDER = ROOT / "walkthrough"

# Step 1 of the seed, as printed, but for the lines that only say what follows.
AMOEBANET = "\n".join(
    [
        "LOGITS_PATH=./amoebanet_logits # replace this with yours",
        *(
            "python kd/extract_embeddings.py --data_dir=${IMAGENET_TFR_PATH} --output_dir=${LOGITS_PATH} "
            f"--gpu_to_use={part} --no_shard={part} --total_num_shard=8 {'&' if part < 7 else ''}".rstrip()
            for part in range(8)
        ),
        "python kd/extract_embeddings.py --data_dir=${IMAGENET_TFR_PATH} --output_dir=${LOGITS_PATH}_val "
        "--gpu_to_use=0 --no_shard=0 --total_num_shard=1 --n_tfrecord=128 --is_training=False",
    ]
)
EFFICIENTNET = "\n".join(
    [
        *(
            "python kd/extract_embbeddings.py --data_dir=${IMAGENET_TFR_PATH} --output_dir=${LOGITS_PATH} "
            f"--gpu_to_use={part} --no_shard={part} --total_num_shard=8 --net_name=efficientnet --offset=1 &"
            for part in range(8)
        ),
        "python kd/extract_embbeddings.py --data_dir=${IMAGENET_TFR_PATH} --output_dir=${LOGITS_PATH} --gpu_to_use=0 "
        "--no_shard=0 --total_num_shard=1 --n_tfrecord=128 --is_training=False --net_name=efficientnet --offset=1 &",
    ]
)
STEP_2 = """IMAGENET_TFR_WITH_KD_TEACHER=imagenet_kd_efficientnet # replace/your/path
LOGITS_PATH=./amoebanet_logits # replace this with yours
python datasets/build_imagenet_data.py \\
--train_directory=${IMAGENET_RAW_PATH}/train \\
--validation_directory=${IMAGENET_RAW_PATH}/validation \\
--make_train=True \\
--output_directory=${IMAGENET_TFR_WITH_KD_TEACHER} \\
--imagenet_metadata_file=datasets/imagenet_metadata.txt \\
--labels_file=datasets/imagenet_lsvrc_2015_synsets.txt \\
--bounding_box_file=datasets/imagenet_2012_bounding_boxes.csv \\
--logits_file_path=${LOGITS_PATH}"""
# The flags of the two training commands that the original publishes.
TRAIN_VANILLA = (
    "--dataset_name=imagenet --preprocessing_type=imagenet --batch_size=1024 --resnet_version=1 --resnet_size=50 "
    "--num_gpus=8 --learning_rate_decay_type=cosine --weight_decay=1e-4 --base_learning_rate=0.4 --momentum=0.9 "
    "--lr_warmup_epochs=5 --zero_gamma=True --dtype=fp16 --epochs_between_evals=5 --train_epochs=120"
)
TRAIN_ASSEMBLE = (
    "--dataset_name=imagenet --preprocessing_type=imagenet_224_256 --batch_size=1024 --mixup_type=1 "
    "--autoaugment_type=imagenet --resnet_version=2 --resnet_size=50 --use_sk_block=True --anti_alias_type=sconv "
    "--anti_alias_filter_size=3 --use_dropblock=True --num_gpus=8 --learning_rate_decay_type=cosine "
    "--weight_decay=1e-4 --base_learning_rate=0.4 --momentum=0.9 --lr_warmup_epochs=5 "
    "--zero_gamma=True --label_smoothing=0.1 --kd_temp=1 "
    "--dtype=fp16 --epochs_between_evals=10 --train_epochs=600"
)


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


def run_printed(lines: str, folder: Path, **variables: str | Path) -> str:
    """Lines for a shell, run to the last background job in ``folder``; what they print."""
    binary = folder / "bin"
    binary.mkdir(exist_ok=True)
    (binary / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (binary / "python").chmod(0o755)
    # A part says itself that it failed: its exit code is lost behind the ampersand.
    script = "".join(f"{name}={value}\n" for name, value in variables.items()) + lines + "\nwait\n"
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": f"{binary}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def write_stand_in(folder: Path, size_px: int, num_classes: int) -> Path:
    """A SavedModel of the walkthrough's form: pixels of 0..1, logits that are linear in the mean color."""
    import tensorflow as tf

    class Network(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = tf.Variable(np.random.default_rng(size_px).normal(size=(3, num_classes)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, size_px, size_px, 3], tf.float32, name="images")])
        def serve(self, images):
            return {"logits": tf.linalg.matmul(tf.reduce_mean(images, axis=[1, 2]), self.matrix)}

    network = Network()
    tf.saved_model.save(network, str(folder), signatures={"image_classification": network.serve})
    return folder


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """A copy of ``walkthrough/`` to run in, with stand-ins for both teachers where they are looked for."""
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    write_stand_in(tmp_path / "hub" / hashlib.sha1(HUB_MODULES["amoebanet"].encode()).hexdigest(), 331, 1001)
    monkeypatch.setenv("TEACHONCE_SAVEDMODELS", str(tmp_path / "models"))
    write_stand_in(tmp_path / "models" / "efficientnet", 600, 1000)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    return Path(shutil.copytree(FOLDER, tmp_path / "walkthrough"))


@pytest.fixture(scope="module")
def raw_sample(request, tmp_path_factory):
    """20 images of the sample to train on and 6 to validate, else as many drawn ones, in ILSVRC's layout."""
    try:
        images = sorted(request.getfixturevalue("imagenet_sample").glob("train/*/*.JPEG"))[::9][:26]
    except pytest.skip.Exception:
        images = []
    folder = tmp_path_factory.mktemp("raw-sample")
    synsets = [path.parent.name for path in images] or imagenet_synsets()[:1000:40][:26] + imagenet_synsets()[1:2]
    for index, synset in enumerate(synsets):
        split = "validation" if index % 13 in (3, 6, 9) else "train"
        path = folder / split / synset / f"{synset}_{index}.JPEG"
        path.parent.mkdir(parents=True)
        path.write_bytes(images[index].read_bytes() if images else encode_jpeg(index))
    return folder


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
        "--num_gpus=0",
        "--image_size=32",
        "--num_workers=0",
    )
    assert load_model(f"run:{tmp_path}/run").num_classes == 1001


@pytest.mark.slow
def test_wrong_flags_are_one_line(tfrecords, teacher, tmp_path):
    data = f"--data_dir={tfrecords}"
    out = f"--output_dir={tmp_path}/logits"
    message = run("kd/extract_embeddings.py", data, out, f"--teacher={teacher}", "--n_tfrecord=3", code=2)
    assert "has 4 train shards, the rest would be left out" in message and len(message.splitlines()) == 1
    message = run(
        "kd/extract_embeddings.py", data, out, f"--teacher={teacher}", "--no_shard=8", "--total_num_shard=8", code=2
    )
    assert "--no_shard 8: expected 0 to 7" in message
    message = run(
        "datasets/build_imagenet_data.py", f"--output_directory={tmp_path}/o", f"--train_directory={tmp_path}", code=2
    )
    assert "expected a folder called train" in message


def test_the_commands_here_are_the_seeds(shared_data):
    seed = (shared_data.parent / "seed" / "KD-walkthrough.md").read_text()
    printed = [line.rstrip() for line in seed.splitlines()]
    for block in (AMOEBANET, EFFICIENTNET, STEP_2):
        assert not [line for line in block.splitlines() if line not in printed]
    commands = [line for line in printed if line.startswith("python")]
    assert commands == [
        line for block in (AMOEBANET, EFFICIENTNET, STEP_2) for line in block.splitlines() if line.startswith("python")
    ]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)  # eight processes at once take four minutes of two cores, where nothing else runs
def test_every_printed_command_runs(raw_sample, printed):
    """Records without logits, both teachers in eight parts side by side, records with logits, the student."""
    variables = {"IMAGENET_RAW_PATH": raw_sample, "IMAGENET_TFR_PATH": printed / "tfrecords"}
    plain = STEP_2.replace(" \\\n--logits_file_path=${LOGITS_PATH}", "").replace(
        "imagenet_kd_efficientnet", "tfrecords"
    )
    said = run_printed(plain, printed, **variables)
    assert "--train_shards 1024: " in said and "has 20 images, so 20 shards" in said
    assert "--validation_shards 128: " in said and "has 6 images, so 6 shards" in said
    assert len(list((printed / "tfrecords").glob("train-*-of-00020"))) == 20

    for teacher, step_1, width, background in [
        ("amoebanet", AMOEBANET, 1001, None),
        ("efficientnet", EFFICIENTNET, 1000, -np.inf),
    ]:
        logits = printed / "amoebanet_logits"
        said = run_printed(step_1, printed, **variables, LOGITS_PATH="./amoebanet_logits")
        assert "--n_tfrecord 128: " in said and "Traceback" not in said
        # The seed puts EfficientNet's validation logits beside those of train, AmoebaNet's into a folder of their own.
        validation = logits.with_name("amoebanet_logits_val") if teacher == "amoebanet" else logits
        rows = read_rows(logits, "train") | read_rows(validation, "validation")
        assert len(list(logits.glob("train-*.csv"))) == 8 and set(map(len, rows.values())) == {width}
        assert set(rows) == {path.name for path in raw_sample.glob("*/*/*")}

        out = printed / f"imagenet_kd_{teacher}"
        run_printed(STEP_2.replace("imagenet_kd_efficientnet", out.name), printed, **variables)
        for split in ("train", "validation"):
            source = open_records(out, split)
            for shard in range(len(source.shards)):
                record = source.read_record(shard, 0, with_logits=True)
                expected = rows[record.filename]
                assert len(record.logits) == 1001
                np.testing.assert_array_equal(record.logits[1001 - width :], np.array(expected, np.float32))
                assert background is None or record.logits[0] == background
        for folder in (logits, logits.with_name("amoebanet_logits_val")):
            shutil.rmtree(folder, ignore_errors=True)

    # Step 3 by the original's own command, cut down to what a machine without GPUs does in a minute.
    small = "--num_gpus=0 --dtype=fp32 --batch_size=10 --train_epochs=1 --epochs_between_evals=1 --lr_warmup_epochs=0"
    small += " --preprocessing_type=imagenet_064 --num_workers=0"
    line = f"python main_classification.py --data_dir={out} --model_dir=run {TRAIN_ASSEMBLE} {small}"
    run_printed(line, printed)
    assert load_model(f"run:{printed}/run").num_classes == 1001


def read_rows(folder, split) -> dict[str, list[str]]:
    return {
        row[0]: row[1:] for path in folder.glob(f"{split}-*.csv") for row in csv.reader(path.read_text().splitlines())
    }


@pytest.fixture
def main_classification(monkeypatch):
    """The script of step 3 as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "main_classification", raising=False)
    import main_classification

    return main_classification


def translate(module, words, tmp_path) -> TrainConfig:
    flags = module.build_parser().parse_args([f"--data_dir={tmp_path}", f"--model_dir={tmp_path}/run", *words])
    module.check_flags(flags)
    return module.build_config(flags)


@pytest.mark.parametrize("recipe, words", [("vanilla_resnet50", TRAIN_VANILLA), ("assemble_resnet50", TRAIN_ASSEMBLE)])
def test_the_published_training_commands_are_the_recipes(main_classification, recipe, words, tmp_path):
    """Option by option; the recipes compute in bf16 and evaluate every few epochs, which needs validation records."""
    found = translate(main_classification, words.split(), tmp_path)
    own = {"num_classes": 1001, "num_workers": 2, "validation_split": None, "validation_epochs": 1, "recipe": None}
    own |= {"precision": "fp16", "channels_last": False, "lr_batch": None, "kd_temp": found.kd_temp}
    own |= {"student": found.student, "devices": 8}
    expected = TrainConfig.from_recipe(recipe, data=tmp_path, out=tmp_path / "run", **own | {"recipe": recipe})
    differing = {
        name: (getattr(found, name), value)
        for name, value in vars(expected).items()
        if getattr(found, name) != value and name != "recipe"
    }
    assert not differing and expected.lr == 0.4
    narrow = ",num_filters=8"
    named = build_student(TrainConfig.from_recipe(recipe, data=tmp_path, out=tmp_path).student + narrow, 5)
    assert build_student(found.student + narrow, 5).options == named.options


def test_without_flags_the_originals_defaults_hold(main_classification, tmp_path):
    config = translate(main_classification, [], tmp_path)
    assert (config.student, config.kd_temp, config.logits) == ("timm:tf_resnet50", 0, None)
    assert (config.lr, config.schedule, config.decay_epochs, config.decay_rate) == (0.01, "exponential", 2, 0.94)
    assert (config.batch_size, config.weight_decay, config.epochs, config.warmup_epochs) == (32, 4e-5, 90, 0)
    assert (config.bn_momentum, config.momentum, config.size, config.eval_sides_px) == (0.003, 0.9, 224, (224, 256))


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--preprocessing_type=imagenet_224_256a", {"size": 224, "eval_size": 256, "eval_resize": 257}),
        ("--preprocessing_type=imagenet_160a", {"size": 160, "eval_size": None, "eval_resize": 161}),
        ("--mixup_type=2", {"mixup_type": 2, "mixup_alpha": 0.2}),
        ("--learning_rate_decay_type=polynomial --end_learning_rate=0.001", {"min_lr": 0.001, "decay_epochs": 2}),
        (
            "--learning_rate_decay_type=piecewise --piecewise_lr_boundary_epochs=2,4 --piecewise_lr_decay_rates=1,.1,0",
            {"boundary_epochs": (2, 4), "boundary_rates": (1, 0.1, 0)},
        ),
        ("--bn_momentum=0.966 --num_gpus=0", {"bn_momentum": 0.034, "device": "cpu", "devices": 1}),
        (
            "--resnet_size=101 --use_se_block --nouse_sk_block --pool_type=gem --embedding_size=8 --no_downsample",
            {"student": "timm:tf_resnet101,use_se=1,embedding_size=8,global_pool=gem,use_last_downsample=0"},
        ),
        (
            "--anti_alias_type=max,proj,sconv --anti_alias_filter_size=5 --pretrained_model_checkpoint_path=a/m.ckpt-1",
            {"student": "timm:tf_resnet50,anti_alias=proj/sconv,anti_alias_filter=5,weights=a/m.ckpt-1"},
        ),
        ("--clean=False --eval_only=False --train_regex=train-*", {}),
    ],
)
def test_flags_of_the_original(main_classification, words, expected, tmp_path):
    config = translate(main_classification, words.split(), tmp_path)
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_last_checkpoint_of_a_folder(main_classification, tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\nall_model_checkpoint_paths: "x"\n')
    assert main_classification.find_checkpoint(tmp_path) == tmp_path / "model.ckpt-7"
    with pytest.raises(ConfigError, match="no checkpoint is named there"):
        main_classification.find_checkpoint(FOLDER)


def test_flags_that_keep_house_are_named(main_classification, tmp_path, capsys):
    translate(main_classification, ["--keep_checkpoint_max=0", "--ratio_fine_eval=0.9"], tmp_path)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "without effect here: --keep_checkpoint_max (the last checkpoint and the best weights are kept)"
    )
    assert "--ratio_fine_eval (" in said


@pytest.mark.parametrize(
    "words, message",
    [
        ("--clean", "--clean=True: nothing is deleted here"),
        ("--eval_only=True", "teachonce evaluate"),
        ("--autoaugment_type=good", "--autoaugment_type=good: expected imagenet; it is the only learned policy here"),
        ("--resnet_size=18", "--resnet_size=18: expected 50 or 101 or 152 or 200; the original has no blocks"),
        ("--pool_type=flatten", "--pool_type=flatten: expected gap or gem"),
        ("--dataset_name=SOP", "retrieval"),
        ("--logit_type=arc_margin", "retrieval and metric learning"),
        ("--preprocessing_type=inception_331", "expected imagenet, imagenet_224_256"),
        ("--batch_size=10 --num_gpus=3", "expected a multiple of --num_gpus 3"),
        ("--training_random_crop=False", "--training_random_crop=False: training without random crops is not here"),
    ],
)
def test_what_has_no_meaning_here_is_one_line(main_classification, words, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        translate(main_classification, words.split(), tmp_path)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_nothing_is_written_where_one_split_cannot_be(raw_sample, tmp_path):
    """The validation split alone is no set of records."""
    images = shutil.copytree(raw_sample, tmp_path / "raw")
    synset = next((images / "train").iterdir())
    synset.rename(synset.with_name("n99999999"))
    message = run(
        "datasets/build_imagenet_data.py",
        f"--train_directory={images}/train",
        f"--validation_directory={images}/validation",
        f"--output_directory={tmp_path}/out",
        code=1,
    )
    assert "class n99999999 is not among the 1000" in message
    assert not list((tmp_path / "out").glob("validation-*"))


def test_a_part_whose_gpu_is_not_there_uses_the_cpu(monkeypatch):
    find_device = runpy.run_path(str(FOLDER / "kd" / "extract_embeddings.py"))["find_device"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [find_device(name) for name in ("0", "1", "7", "")] == ["cuda:0", "cuda:1", "cpu", "cpu"]


def test_evaluations_need_not_divide_the_epochs(main_classification, tfrecords, tmp_path):
    """The original's last cycle is shorter then; here a divisor is taken."""
    words = ["--train_epochs=25", "--epochs_between_evals=10", f"--data_dir={tfrecords}"]
    assert translate(main_classification, words, tmp_path).validation_epochs == 5
