"""Export: the written file answers as PyTorch does, or it is not written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from teachonce.cli.main import main
from teachonce.errors import CheckError, ConfigError
from teachonce.evaluation import onnx_export as export
from teachonce.evaluation.config import PreprocessingPlace
from teachonce.evaluation.onnx_export import check_onnx, check_safetensors, export_run
from teachonce.models.classifier import build_student, load_model
from teachonce.pixels.preprocessing import Preprocessing, normalize
from teachonce.records.class_table import hash_classes
from tests.support.paths import DOCS
from tests.support.small_data import run_config

pytestmark = [pytest.mark.usefixtures("onnx_exports"), pytest.mark.xdist_group("onnx")]

NUM_CLASSES = 5
PREPROCESSING = Preprocessing(size_px=64, resize_px=70, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def write_run(run: Path, spec: str = "timm:test_resnet", *, seed: int = 0) -> Path:
    """A run's folder, as far as it matters here, with a student whose batch norms have seen something."""
    torch.manual_seed(seed)
    student = build_student(spec, NUM_CLASSES, size_px=PREPROCESSING.size_px)
    with torch.no_grad():
        student(torch.randn(8, 3, PREPROCESSING.size_px, PREPROCESSING.size_px))
    run.mkdir(parents=True, exist_ok=True)
    save_file(student.state_dict(), run / "student.safetensors")
    config = run_config(spec, PREPROCESSING, num_classes=NUM_CLASSES, offset=1)
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    pytest.importorskip("onnxruntime")
    out = run.parent / "student.onnx"
    export_run(run, "onnx", out)
    return out


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run whose classes have names, and its two forms of export."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("named")
    run = write_named_run(folder / "run", (*NAMES, "goat"))
    for place in get_args(PreprocessingPlace):
        export_run(run, "onnx", folder / f"{place}.onnx", preprocessing=place)
    return {"run": run} | {place: folder / f"{place}.onnx" for place in ("outside", "inside")}


def noise_pixels(num_images: int) -> torch.Tensor:
    size_px = PREPROCESSING.size_px
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (num_images, size_px, size_px, 3), np.uint8))


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_onnx_answers_as_pytorch_at_any_batch_size(run: Path, exported: Path, num_images: int) -> None:
    import onnxruntime

    student = load_model(f"run:{run}")
    pixels = noise_pixels(num_images)
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": normalize(pixels, PREPROCESSING).numpy()})
    # Some 12 layers, each rounding sums of up to a few hundred products to 2^-24 of values near 1.
    np.testing.assert_allclose(logits, student.logits(pixels), rtol=0, atol=12 * 2**-24 * 16)


def documented_lines(place: str) -> str:
    """The program of the guide, for a file with the preprocessing outside or inside."""
    text = (DOCS / "guide" / "deploying.md").read_text()
    (program,) = re.findall(r"```python\n(import json\n.*?)```", text, flags=re.DOTALL)
    (inside,) = re.findall(r"```python\n(    pixels = .*?)```", text, flags=re.DOTALL)
    assert "import teachonce" not in program and "from teachonce" not in program, "without the package"
    if place == "inside":
        begin, end = program.index("    pixels = "), program.index("    probs = ")
        program = program[:begin] + inside + program[end:]
    return program


@pytest.mark.parametrize("place", ["outside", "inside"])
@pytest.mark.parametrize("size", [(200, 131), (90, 305), (64, 64)])
def test_the_documented_lines_prepare_a_picture_as_the_evaluation_does(
    named: dict[str, Path], size: tuple[int, int], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.jpg", quality=95)
    (tmp_path / "student.onnx").write_bytes(named[place].read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "picture.jpg"])
    found: dict[str, Any] = {}
    exec(documented_lines(place), found)
    pixels = PREPROCESSING.apply(Image.open(tmp_path / "picture.jpg").convert("RGB"))
    logits = load_model(f"run:{named['run']}").logits(torch.from_numpy(np.asarray(pixels))[None])
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_documented_program_predicts_where_nothing_else_is_installed(
    named: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an environment of its own, with numpy, onnxruntime and Pillow alone."""
    python = fresh_environment(tmp_path / "venv", "numpy", "onnxruntime", "pillow")
    for index, size in enumerate([(200, 131), (90, 305), (64, 64), (300, 200)]):
        picture = np.random.default_rng(index).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
        Image.fromarray(picture).resize(size).save(tmp_path / f"{index}.jpg")
    pictures = sorted(map(str, tmp_path.glob("*.jpg")))
    for place in get_args(PreprocessingPlace):
        program = tmp_path / place / "program.py"
        program.parent.mkdir()
        program.write_text(documented_lines(place))
        (program.parent / "student.onnx").write_bytes(named[place].read_bytes())
        done = subprocess.run([python, "-I", program, *pictures], cwd=program.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with pytest.raises(SystemExit):
            main(["predict", str(named[place]), *pictures, "--top", "1", "--device", "cpu"])
        expected = capsys.readouterr().out.splitlines()
        found = done.stdout.splitlines()
        assert [line.rpartition(" ")[0] for line in found] == [line.rpartition(" ")[0] for line in expected]
        for one, two in zip(found, expected, strict=True):
            assert float(one.rpartition(" ")[2]) == pytest.approx(float(two.rpartition(" ")[2]), abs=1.01e-4)


def fresh_environment(folder: Path, *packages: str) -> Path:
    """The Python of a new environment with these packages, or a skip where there is no index to install from."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    done = subprocess.run([*install, *packages], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"cannot install {' '.join(packages)} here: {done.stderr.strip().splitlines()[-1]}")
    return python


def test_onnx_file_needs_no_options_as_a_teacher(exported: Path) -> None:
    classifier = load_model(f"onnx:{exported}")
    assert classifier.preprocessing == PREPROCESSING
    assert (classifier.default_offset, classifier.num_classes) == (1, NUM_CLASSES)


def test_onnx_of_another_student_does_not_pass_the_check(exported: Path, tmp_path: Path) -> None:
    other = load_model(f"run:{write_run(tmp_path, seed=1)}")
    with pytest.raises(CheckError, match=r"differ from PyTorch's by .*expected at most .*nothing was written"):
        check_onnx(other, exported)


def test_smallest_change_of_a_weight_that_matters_does_not_pass_the_check(run: Path, exported: Path) -> None:
    student = load_model(f"run:{run}")
    check_onnx(student, exported)
    assert student.module is not None
    with torch.no_grad():
        student.module.get_parameter("fc.bias")[2] += 1e-4
    with pytest.raises(CheckError):
        check_onnx(student, exported)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["timm:test_vit", "timm:test_efficientnet", "torchvision:squeezenet1_0"])
def test_other_architectures(tmp_path: Path, spec: str) -> None:
    pytest.importorskip("onnxruntime")
    export_run(write_run(tmp_path / "run", spec), "onnx", tmp_path / "student.onnx")
    assert load_model(f"onnx:{tmp_path / 'student.onnx'}").num_classes == NUM_CLASSES


def test_safetensors_are_the_weights_with_their_preprocessing(run: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    out = tmp_path / "folder" / "student.safetensors"
    export_run(run, "safetensors", out)
    weights, original = load_file(out), load_file(run / "student.safetensors")
    assert weights.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights.items())
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert Preprocessing.from_json(json.loads(metadata["teachonce.preprocessing"])) == PREPROCESSING
    assert metadata["teachonce.offset"] == "1"
    # A plain library reads them: the file is a checkpoint of the architecture.
    teacher = load_model(f"timm:test_resnet,weights={out},classes={NUM_CLASSES},size=64")
    assert teacher.num_classes == NUM_CLASSES


def test_other_safetensors_do_not_pass_the_check(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path, seed=1)
    with pytest.raises(CheckError, match="other logits; nothing was written"):
        check_safetensors(load_model(f"run:{run}"), run, other / "student.safetensors")


@pytest.mark.parametrize("format", ["onnx", "safetensors"])
def test_nothing_is_written_where_the_check_fails(
    run: Path, tmp_path: Path, format: Literal["onnx", "safetensors"], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The encoder writes another student than the one that is checked, as a broken exporter would.
    other = load_model(f"run:{write_run(tmp_path / 'other', seed=1)}")
    encode = getattr(export, f"_to_{format}")
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        assert other.module is not None
        fc_bias = other.module.get_parameter("fc.bias").detach().numpy()
        monkeypatch.setattr(export, "_to_onnx", lambda student: with_other_weight(encode(student), "fc.bias", fc_bias))
    else:
        monkeypatch.setattr(export, "_to_safetensors", lambda student: encode(other))
    out = tmp_path / "out" / "student"
    with pytest.raises(CheckError):
        export_run(run, format, out)
    assert not out.parent.exists()


def with_other_weight(content: bytes, name: str, array: np.ndarray) -> bytes:
    """An ONNX file with one weight changed: to export a second network takes seconds."""
    import onnx

    model = onnx.load_from_string(content)
    (weight,) = (item for item in model.graph.initializer if item.name == name)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return model.SerializeToString()


def test_output_that_exists_is_kept(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.onnx"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        export_run(run, "onnx", out)
    assert out.read_text() == "mine"


def test_what_is_to_be_overwritten_is_when_the_new_file_is_checked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "student.safetensors"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="is a folder; give a file with --out"):
        export_run(run, "safetensors", tmp_path, overwrite=True)
    with monkeypatch.context() as patch, pytest.raises(CheckError):
        patch.setattr(export, "check_safetensors", refuse)
        export_run(run, "safetensors", out, overwrite=True)
    assert out.read_text() == "mine"
    export_run(run, "safetensors", out, overwrite=True)
    assert load_file(out).keys() == load_file(run / "student.safetensors").keys()


def test_the_best_epochs_weights_are_exported(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"epoch=best': has no checkpoints/best\.safetensors"):
        export_run(copied, "safetensors", tmp_path / "a.safetensors", epoch="best")
    weights = load_file(run / "student.safetensors")
    best = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    (copied / "checkpoints").mkdir(exist_ok=True)
    save_file(best, copied / "checkpoints" / "best.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["export-weights", str(copied), "--out", str(tmp_path / "a.safetensors"), "--epoch", "best"])
    assert end.value.code == 0
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in best.items())


def refuse(*_: object) -> None:
    raise CheckError("it answers otherwise")


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        export_run(tmp_path, "safetensors", tmp_path / "out")


def test_the_documented_lines_load_the_weights_into_plain_timm(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "guide" / "deploying.md").read_text()
    (lines,) = re.findall(r"```python\n(import timm\n.*?)```", text, flags=re.DOTALL)
    assert "teachonce" not in lines, "without the package"
    export_run(run, "safetensors", tmp_path / "student.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(lines.replace("num_classes=10", f"num_classes={NUM_CLASSES}"), names)
    student, pixels = load_model(f"run:{run}"), noise_pixels(3)
    with torch.inference_mode():
        images = normalize(pixels, student.preprocessing).contiguous(memory_format=torch.channels_last)
        logits = names["model"].to(memory_format=torch.channels_last)(images)
    assert torch.equal(logits, student.logits(pixels))
    assert f'"size_px": {PREPROCESSING.size_px}' in capsys.readouterr().out


def write_named_run(run: Path, names: tuple[str, ...], texts: tuple[str, ...] | None = None) -> Path:
    write_run(run)
    content = json.loads((run / "config.json").read_text())
    content |= {"class_names": list(names), "classes_hash": hash_classes(names), "class_texts": texts}
    (run / "config.json").write_text(json.dumps(content))
    return run


NAMES = ("cat", "dog", "eel, electric", "fox")
"""Of the five outputs the last one has no name in the data."""


@pytest.mark.parametrize("format", ["onnx", "safetensors"])
def test_the_names_of_classes_go_along(tmp_path: Path, format: Literal["onnx", "safetensors"]) -> None:
    run = write_named_run(tmp_path / "run", NAMES)
    out = tmp_path / "out" / f"student.{format}"
    if format == "onnx":
        pytest.importorskip("onnxscript")
    export_run(run, format, out)
    assert (out.parent / "labels.txt").read_text() == "cat\ndog\neel, electric\nfox\n5\n"
    if format == "onnx":
        exported = load_model(f"onnx:{out}")
        assert (exported.class_names, exported.classes_hash) == (NAMES, hash_classes(NAMES))
    else:
        from safetensors import safe_open

        with safe_open(out, "pt") as file:
            assert json.loads(file.metadata()["teachonce.classes"]) == list(NAMES)
    # Another export of the same classes shares the file.
    export_run(run, "safetensors", out.with_name("again.safetensors"))


def test_classes_are_called_as_evaluation_calls_them(tmp_path: Path) -> None:
    """Of ImageNet: texts and not WordNet ids, which stay what classes are compared by."""
    pytest.importorskip("onnxscript")
    texts = ("crane (cat)", "crane (dog)", "eel", "fox")
    run = write_named_run(tmp_path / "run", NAMES, texts)
    export_run(run, "onnx", tmp_path / "student.onnx")
    assert (tmp_path / "labels.txt").read_text().splitlines() == [*texts, "5"]
    exported = load_model(f"onnx:{tmp_path / 'student.onnx'}")
    assert (exported.class_names, exported.class_texts) == (NAMES, texts)
    for model in (exported, load_model(f"run:{run}")):
        assert [model.class_name(output) for output in range(5)] == [*texts, "5"]


def test_a_run_without_names_writes_no_labels(run: Path, tmp_path: Path) -> None:
    export_run(run, "safetensors", tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    # Another model's would be taken for its own; the user's own is not removed.
    (tmp_path / "labels.txt").write_text("mine\n")
    with pytest.warns(UserWarning, match=r"labels.txt: has class names, and those of a.safetensors are not known"):
        export_run(run, "safetensors", tmp_path / "a.safetensors", overwrite=True)
    assert (tmp_path / "labels.txt").read_text() == "mine\n"


def test_a_labels_file_of_other_classes_is_kept(tmp_path: Path) -> None:
    run = write_named_run(tmp_path / "run", NAMES)
    (tmp_path / "labels.txt").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"labels.txt: has 1 class names, expected the 5 of this model"):
        export_run(run, "safetensors", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists() and (tmp_path / "labels.txt").read_text() == "mine\n"
    export_run(run, "safetensors", tmp_path / "a.safetensors", overwrite=True)
    assert (tmp_path / "labels.txt").read_text().splitlines()[:4] == list(NAMES)
