"""Fine-tuning: what is taken over from a run, what is new, what is refused; and a training that starts from one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from teachonce.errors import ConfigError, ModelError, PlanMismatchError
from teachonce.evaluation.config import EvaluateConfig, ExportOnnxConfig
from teachonce.evaluation.evaluate import evaluate
from teachonce.evaluation.int8 import export_int8, int8_path
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.models.classifier import build_student
from teachonce.models.fine_tuning import open_initial_run, start_from
from teachonce.models.spec import parse_model_spec
from teachonce.models.torch_backend import small_layer
from teachonce.records.class_table import hash_classes
from teachonce.runs.metrics import read_metrics
from teachonce.runs.run import Run
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.evaluation.test_onnx_export import write_run
from tests.support.small_data import write_digits
from tests.support.trainings import train_until_killed
from tests.training.test_train import config, tensor_bytes

RESNET = "timm:test_resnet"
NUM_CLASSES = 5  # of write_run


def begin(run: Path, spec: str, num_classes: int, *, size_px: int = 64, classes_hash: str | None = None):
    """(the student as it was built, as it starts, the phrase)."""
    torch.manual_seed(3)
    parsed = parse_model_spec(spec)
    student = build_student(parsed, num_classes, size_px=size_px)
    fresh = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    phrase = start_from(
        student,
        open_initial_run(run, parsed),
        parsed,
        num_classes=num_classes,
        size_px=size_px,
        classes_hash=classes_hash,
    )
    return fresh, student.state_dict(), phrase


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("fine-tuning") / "run")


def test_equal_classes_are_the_runs_weights_to_the_bit(run: Path) -> None:
    _, weights, phrase = begin(run, RESNET, NUM_CLASSES)
    stored = load_file(run / "student.safetensors")
    assert weights.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in weights.items())
    assert phrase == "all weights are reused, including the last layer"


@pytest.mark.parametrize(
    "spec, head",
    [
        (RESNET, {"fc.weight", "fc.bias"}),
        ("timm:test_vit", {"head.weight", "head.bias"}),
        ("torchvision:squeezenet1_1", {"classifier.1.weight", "classifier.1.bias"}),
        ("torchvision:mobilenet_v3_small", {"classifier.3.weight", "classifier.3.bias"}),
        # Two heads, which a rule of "the last layer" would miss.
        ("timm:efficientformerv2_s0", {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}),
    ],
)
def test_only_the_head_is_new_for_another_class_count(tmp_path: Path, spec: str, head: set[str]) -> None:
    run = write_run(tmp_path / "run", spec)
    fresh, weights, phrase = begin(run, spec, 7)
    stored = load_file(run / "student.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(tensor, small_layer(fresh)[name] if name in head else stored[name]), name
    assert head <= weights.keys()
    assert phrase.startswith("new last layer (") and all(name in phrase for name in head)
    assert "the run has 5 classes, this data 7" in phrase


def test_as_many_other_classes_get_a_new_head(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    old, new = hash_classes("abcde"), hash_classes("fghij")
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**content, "classes_hash": old}))
    stored = load_file(run / "student.safetensors")
    for classes_hash, is_new in [(new, True), (old, False), (None, False)]:
        fresh, weights, phrase = begin(run, RESNET, NUM_CLASSES, classes_hash=classes_hash)
        assert torch.equal(weights["fc.weight"], (small_layer(fresh) if is_new else stored)["fc.weight"])
        assert torch.equal(weights["fc.weight"], stored["fc.weight"]) is not is_new
        assert ("its 5 classes have different names" in phrase) == is_new


def test_the_order_of_classes_counts() -> None:
    assert hash_classes(["a", "b"]) != hash_classes(["b", "a"])
    assert hash_classes(("a", "b")) == hash_classes(["a", "b"])


def test_finding_the_head_draws_nothing_from_the_trainings_generator(run: Path) -> None:
    torch.manual_seed(3)
    build_student(RESNET, 7, size_px=64)
    expected = torch.rand(1)
    begin(run, RESNET, 7)
    assert torch.equal(torch.rand(1), expected)


def test_another_size_is_said_or_refused(tmp_path: Path) -> None:
    _, _, phrase = begin(write_run(tmp_path / "resnet"), RESNET, NUM_CLASSES, size_px=96)
    assert phrase.endswith("trained at 64 px, now at 96")
    with pytest.raises(ModelError, match=r"pos_embed .* it was trained at 64 px: give --size 64$") as caught:
        begin(write_run(tmp_path / "vit", "timm:test_vit"), "timm:test_vit", NUM_CLASSES, size_px=96)
    assert "classes=" not in str(caught.value) and "architecture" not in str(caught.value)


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a timm:test_resnet, expected the timm:test_vit of --student; give"):
        open_initial_run(run, parse_model_spec("timm:test_vit"))
    with pytest.raises(ConfigError, match=r"has no config\.json; expected the folder of a finished run"):
        open_initial_run(tmp_path, parse_model_spec(RESNET))
    weights = run / "student.safetensors"
    with pytest.raises(ConfigError, match=rf"is a file.*give --student {RESNET},weights={weights}"):
        open_initial_run(weights, parse_model_spec(RESNET))
    with pytest.raises(ConfigError, match=r"has weights=, which also sets the initial weights; give only one of them"):
        open_initial_run(run, parse_model_spec(f"{RESNET},weights={weights}"))
    with pytest.raises(ConfigError, match=r"has pretrained="):
        open_initial_run(run, parse_model_spec(f"{RESNET},pretrained=1"))
    with pytest.raises(ConfigError, match=r"--init .*: expected another folder than --out"):
        config(tmp_path, run, init=run)


def test_a_network_with_options_is_the_same_only_with_them(tmp_path: Path) -> None:
    spec = "timm:tf_resnet50,num_filters=4,embedding_size=12,zero_gamma=1"
    run = write_run(tmp_path / "run", spec)
    # Where weights begin is no matter of the network.
    _, weights, phrase = begin(run, spec.removesuffix(",zero_gamma=1"), 7)
    assert phrase.startswith("new last layer (fc.weight, fc.bias)")
    assert torch.equal(
        weights["embedding.linear.weight"], load_file(run / "student.safetensors")["embedding.linear.weight"]
    )
    with pytest.raises(
        ConfigError, match=r"embedding_size=12.* expected the .*global_pool=gem of --student; give the same"
    ):
        open_initial_run(run, parse_model_spec(f"{spec},global_pool=gem"))


@pytest.mark.parametrize("content", ["{}", '{"student": 3}', "[]"])
def test_a_run_that_is_damaged(run: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "student.safetensors").write_bytes((run / "student.safetensors").read_bytes())
    with pytest.raises(ModelError, match="train again"):
        open_initial_run(tmp_path, parse_model_spec(RESNET))


def split_digits(folder: Path) -> tuple[Path, Path]:
    """Digits 0 to 4 and digits 5 to 9, as two data sets of five classes."""
    whole = write_digits(folder / "whole", num_train=160, num_validation=80)
    parts = folder / "low", folder / "high"
    for path in sorted(whole.glob("*/*")):
        target = parts[int(path.name) >= 5] / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return parts


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(data of digits 0 to 4, of 5 to 9, a run on the first with pixels of its own)."""
    folder = tmp_path_factory.mktemp("halves")
    low, high = split_digits(folder)
    train(config(low, folder / "low-run", student=f"{RESNET},mean=0.5,std=0.25,interpolation=bicubic", epochs=2))
    return low, high, folder / "low-run"


def test_a_training_that_starts_from_a_run(halves, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, high, low_run = halves
    tuned = config(high, tmp_path / "tuned", init=low_run, epochs=1)
    result = train(tuned)
    said = capsys.readouterr().err
    assert (
        f"tuned: starts from {low_run}: new last layer (fc.weight, fc.bias): its 5 classes have different names" in said
    )
    resolved = json.loads((tuned.out / "config.json").read_text())
    assert resolved["init"] == str(low_run)
    assert len(resolved["init_weights_sha256"]) == 64
    # Pixels are those that the weights were made for.
    assert resolved["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert resolved["preprocessing"]["interpolation"] == "bicubic"
    assert train(tuned) == result, "the same command finds the run finished"
    assert "starts from" not in capsys.readouterr().err

    other = config(high, tmp_path / "other", init=low_run, epochs=1, student=f"{RESNET},mean=0.4")
    with pytest.warns(
        UserWarning, match=r"mean \(0.4, 0.4, 0.4\) instead of \(0.5, 0.5, 0.5\), a different input than the"
    ):
        train(other)

    plain = config(high, tmp_path / "tuned", epochs=1)
    with pytest.raises(PlanMismatchError, match=r"the weights to start from \(--init, .*\): none now"):
        train(plain)


def test_the_start_is_the_runs_network(halves, tmp_path: Path) -> None:
    """At a learning rate that changes nothing, the same data gives the run's own validation figures."""
    low, _, low_run = halves
    frozen = config(low, tmp_path / "frozen", init=low_run, epochs=1, lr=1e-30, weight_decay=0.0, bn_momentum=1e-30)
    result, before = train(frozen), Run(low_run).result
    assert before is not None
    assert (result["top1"], result["top5"]) == (before["top1"], before["top5"])
    assert result["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-6)


def test_a_run_that_moved_is_the_same_run(halves, tmp_path: Path) -> None:
    _, high, low_run = halves
    result = train(config(high, tmp_path / "tuned", init=low_run, epochs=1))
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "student.safetensors"):
        (moved / name).write_bytes((low_run / name).read_bytes())
    assert train(config(high, tmp_path / "tuned", init=moved, epochs=1)) == result


@pytest.mark.slow
def test_the_whole_path_of_the_page(halves, tmp_path: Path) -> None:
    """docs/guide/fine-tuning.md, tiny: teacher and student fine-tuned, KD between them, the student in integers."""
    pytest.importorskip("onnxruntime")
    low, high, low_run = halves
    spec = f"{RESNET},mean=0.5,std=0.25,interpolation=bicubic"
    train(config(low, tmp_path / "start", student=spec, init=low_run, epochs=10))
    train(config(high, tmp_path / "teacher", init=tmp_path / "start", epochs=20))
    views = tmp_path / "views"
    extract(
        ExtractConfig(
            data=high, teacher=f"run:{tmp_path / 'teacher'}", out=views, policy="crop", views=5, flip_prob=0.0,
            crop_scale=(0.7, 1.0), device="cpu",
        )
    )  # fmt: skip
    options = {"data": high, "student": RESNET, "init": tmp_path / "start", "store": views, "kd_temp": 2.0}
    shared = {"size": 16, "eval_crop_frac": 1.0, "batch_size": 32, "lr": 0.05, "device": "cpu", "epochs": 20}
    result = train(TrainConfig(out=tmp_path / "student", **options, **shared))
    assert result["top1"] > 0.4, "five classes: chance is 0.2"
    out = tmp_path / "student.onnx"
    found = export_int8(ExportOnnxConfig(run=tmp_path / "student", int8=True, data=high, store=views, out=out))
    assert found.float32.top1 == pytest.approx(result["top1"])
    again = evaluate(EvaluateConfig(data=high, model=f"onnx:{int8_path(out)}", device="cpu"))
    assert again["top1"] == pytest.approx(found.int8.top1)
    assert found.int8.agreement_teacher is not None and found.int8.agreement_teacher > 0.4


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_same(halves, tmp_path: Path) -> None:
    _, high, low_run = halves
    whole = config(high, tmp_path / "whole", init=low_run, epochs=4)
    killed = config(high, tmp_path / "killed", init=low_run, epochs=4)
    train_until_killed(killed, epoch=2, batch_index=1)
    assert len(read_metrics(killed.out)) == 2
    assert Run(killed.out).result is None
    train(killed)
    train(whole)
    assert tensor_bytes(killed.out / "student.safetensors") == tensor_bytes(whole.out / "student.safetensors")
