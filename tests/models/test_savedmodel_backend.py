"""TensorFlow teachers: SavedModels of TensorFlow 2 and hub modules of TensorFlow 1, made here, called directly."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teachonce.errors import ConfigError, LogitsError, ModelError
from teachonce.models.classifier import load_model
from teachonce.pixels.preprocessing import Preprocessing

# Imported where it is used: merely collecting these tests should not take its seconds.
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="no TensorFlow"),
    pytest.mark.xdist_group("tensorflow"),
]

SIZE_PX = 16
NUM_CLASSES = 5
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)
MATRIX = np.random.default_rng(1).normal(size=(8, NUM_CLASSES)).astype(np.float32)

WALKTHROUGH_PREPROCESSING = {
    "geometry": "central",
    "crop_frac": 0.875,
    "interpolation": "tf1_bilinear",
    "antialias": False,
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
}


def noise_pixels(num_images: int = 3, size_px: int = SIZE_PX) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 256, (num_images, size_px, size_px, 3), np.uint8))


def direct_logits(pixels: torch.Tensor, kernel: np.ndarray = KERNEL, matrix: np.ndarray = MATRIX) -> np.ndarray:
    import tensorflow as tf

    features = tf.nn.relu(tf.nn.conv2d(pixels.numpy().astype(np.float32) / 255, kernel, 1, "VALID"))
    return tf.linalg.matmul(tf.reduce_mean(features, axis=[1, 2]), matrix).numpy()


# The module runs the same kernels in a graph, which may fuse and reorder: 72 products a pixel, 8 a class, values to 10.
TOLERANCE = 80 * 2**-24 * 10


@pytest.fixture(scope="module")
def modern_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TensorFlow 2 SavedModel with signatures: the default one, probabilities, and one of unknown size."""
    import tensorflow as tf

    class Network(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(KERNEL)
            self.matrix = tf.Variable(MATRIX)

        def compute(self, images: Any) -> Any:
            features = tf.nn.relu(tf.nn.conv2d(images, self.kernel, 1, "VALID"))
            return tf.linalg.matmul(tf.reduce_mean(features, axis=[1, 2]), self.matrix)

        @tf.function(input_signature=[tf.TensorSpec([None, SIZE_PX, SIZE_PX, 3], tf.float32, name="images")])
        def serve(self, images: Any) -> Any:
            return {"logits": self.compute(images), "other": tf.zeros([1])}

        @tf.function(input_signature=[tf.TensorSpec([None, SIZE_PX, SIZE_PX, 3], tf.float32, name="images")])
        def serve_probs(self, images: Any) -> Any:
            return {"probabilities": tf.nn.softmax(self.compute(images))}

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="bytes")])
        def serve_bytes(self, images: Any) -> Any:
            return {"scores": self.compute(tf.cast(images, tf.float32) / 255)}

    path = tmp_path_factory.mktemp("savedmodel") / "modern"
    network = Network()
    signatures = {"serving_default": network.serve, "probs": network.serve_probs, "bytes": network.serve_bytes}
    tf.saved_model.save(network, str(path), signatures=signatures)
    return path


@pytest.fixture(scope="module")
def hub_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TF1 hub module: variables, a graph for inference without tags and one for training, two signatures."""
    import tensorflow as tf

    path = tmp_path_factory.mktemp("hub") / "module"
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(path))
    for tags in ([], ["train"]):
        with tf.Graph().as_default(), v1.Session() as session:
            images = v1.placeholder(tf.float32, [None, SIZE_PX, SIZE_PX, 3], name="images")
            kernel = v1.get_variable("kernel", initializer=KERNEL if not tags else np.zeros_like(KERNEL))
            matrix = v1.get_variable("matrix", initializer=MATRIX)
            features = tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "VALID"))
            pooled = tf.reduce_mean(features, axis=[1, 2])
            logits = tf.linalg.matmul(pooled, matrix)
            define = v1.saved_model.signature_def_utils.predict_signature_def
            signatures = {
                "default": define({"images": images}, {"default": logits}),
                "image_classification": define({"images": images}, {"default": logits, "features": pooled}),
                "image_feature_vector": define({"images": images}, {"default": pooled}),
            }
            session.run(v1.global_variables_initializer())
            if not tags:
                builder.add_meta_graph_and_variables(session, tags=tags, signature_def_map=signatures)
            else:
                builder.add_meta_graph(tags=tags, signature_def_map=signatures)
    builder.save()
    (path / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return path


def test_modern_model_gives_the_logits_of_a_direct_call(modern_model: Path) -> None:
    classifier = load_model(f"savedmodel:{modern_model}")
    pixels = noise_pixels()
    np.testing.assert_allclose(classifier.logits(pixels), direct_logits(pixels), rtol=0, atol=TOLERANCE)
    assert classifier.preprocessing == Preprocessing(size_px=SIZE_PX, **WALKTHROUGH_PREPROCESSING)
    assert (classifier.num_classes, classifier.default_offset) == (NUM_CLASSES, None)


def test_hub_module_gives_the_logits_of_a_direct_call(hub_module: Path) -> None:
    pixels = noise_pixels()
    classifier = load_model(f"savedmodel:{hub_module}")
    np.testing.assert_allclose(classifier.logits(pixels), direct_logits(pixels), rtol=0, atol=TOLERANCE)
    assert classifier.preprocessing == Preprocessing(size_px=SIZE_PX, **WALKTHROUGH_PREPROCESSING)
    chosen = load_model(f"savedmodel:{hub_module},signature=default")
    assert torch.equal(chosen.logits(pixels), classifier.logits(pixels))


def test_walkthrough_teachers(hub_module: Path, modern_model: Path) -> None:
    pixels = noise_pixels()
    for name, folder, offset, classes in [("amoebanet", hub_module, 0, 1001), ("efficientnet", modern_model, 1, 1000)]:
        with pytest.raises(ModelError, match=f"has {NUM_CLASSES} classes, expected {classes}"):
            load_model(f"{name},weights={folder},size={SIZE_PX}")
        classifier = load_model(f"{name},weights={folder},size={SIZE_PX},classes={NUM_CLASSES}")
        assert classifier.default_offset == offset
        assert classifier.preprocessing == Preprocessing(size_px=SIZE_PX, **WALKTHROUGH_PREPROCESSING)
        np.testing.assert_allclose(classifier.logits(pixels), direct_logits(pixels), rtol=0, atol=TOLERANCE)


def test_a_folder_of_savedmodels(modern_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise_pixels()
    monkeypatch.setenv("TEACHONCE_SAVEDMODELS", str(tmp_path))
    for name, offset in [("amoebanet", 0), ("efficientnet", 1)]:
        shutil.copytree(modern_model, tmp_path / name)
        classifier = load_model(f"{name},size={SIZE_PX},classes={NUM_CLASSES}")
        assert classifier.default_offset == offset
        assert classifier.preprocessing == Preprocessing(size_px=SIZE_PX, **WALKTHROUGH_PREPROCESSING)
        np.testing.assert_allclose(classifier.logits(pixels), direct_logits(pixels), rtol=0, atol=TOLERANCE)


def test_size_of_a_walkthrough_teacher_is_known(modern_model: Path) -> None:
    classifier = load_model(f"amoebanet,weights={modern_model},signature=bytes,range=byte,classes={NUM_CLASSES}")
    assert classifier.preprocessing.size_px == 331


def test_uint8_signature_and_chosen_size(modern_model: Path) -> None:
    spec = f"savedmodel:{modern_model},signature=bytes,range=byte"
    with pytest.raises(ConfigError, match="has no fixed input size; give size="):
        load_model(spec)
    pixels = noise_pixels(size_px=20)
    classifier = load_model(f"{spec},size=20")
    np.testing.assert_allclose(classifier.logits(pixels), direct_logits(pixels), rtol=0, atol=TOLERANCE)


def test_probabilities_are_refused_or_taken_back_to_logits(modern_model: Path) -> None:
    spec = f"savedmodel:{modern_model},signature=probs"
    with pytest.raises(ModelError, match="outputs are probabilities"):
        load_model(spec)
    pixels = noise_pixels()
    expected = torch.from_numpy(direct_logits(pixels)).log_softmax(dim=1)
    np.testing.assert_allclose(load_model(f"{spec},probs=1").logits(pixels), expected, rtol=2**-22, atol=TOLERANCE)


def test_hash_is_of_the_files_not_of_their_path(modern_model: Path, hub_module: Path, tmp_path: Path) -> None:
    first = load_model(f"savedmodel:{modern_model}").weights_sha256
    shutil.copytree(modern_model, tmp_path / "copy")
    assert load_model(f"savedmodel:{tmp_path / 'copy'}").weights_sha256 == first
    assert load_model(f"savedmodel:{hub_module}").weights_sha256 != first


def test_nan(tmp_path: Path) -> None:
    import tensorflow as tf

    class Broken(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, SIZE_PX, SIZE_PX, 3], tf.float32, name="images")])
        def serve(self, images: Any) -> Any:
            return {"logits": tf.reduce_sum(images, axis=[1, 2]) * float("nan")}

    broken = Broken()
    tf.saved_model.save(broken, str(tmp_path), signatures={"serving_default": broken.serve})
    with pytest.raises(LogitsError, match="NaN"):
        load_model(f"savedmodel:{tmp_path}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("signature=serve", "no signature 'serve'; give signature= one of bytes, probs, serving_default"),
        ("output=x", "no output 'x'; give output= one of logits, other"),
        ("input=x", "no input 'x'; give input= one of images"),
        ("output=other", "expected .2, classes"),
        ("size=12", "does not run on 12 x 12 pixels"),
    ],
)
def test_what_does_not_fit(modern_model: Path, options: str, message: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        load_model(f"savedmodel:{modern_model},{options}")


def test_model_without_signatures(tmp_path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ConfigError, match="no signature; export it with signatures"):
        load_model(f"savedmodel:{tmp_path}")


def test_damaged_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ModelError, match="saved_model"):
        load_model(f"savedmodel:{tmp_path}")


def run_python(program: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own that finds modules in these folders first."""
    pytest.importorskip("triton")
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture
def empty_tensorflow(tmp_path: Path) -> Path:
    """A folder with a ``tensorflow`` without an LLVM, for who looks only at what has been imported: seconds less."""
    (tmp_path / "tensorflow.py").touch()
    return tmp_path


@pytest.mark.slow
def test_tensorflow_before_teachonce_ends_no_process() -> None:
    """All that would load Triton, with the real TensorFlow; by what else it is kept out, the next test has."""
    code = (
        "import tensorflow; import teachonce; import torchvision, timm, lightning, torch; torch._dynamo; "
        "from teachonce.models.classifier import build_student; build_student('timm:test_resnet', 5); print('alive')"
    )
    done = run_python(code)
    assert done.returncode == 0 and done.stdout == "alive\n", done.stderr
    assert done.stderr.count("tensorflow was imported before Triton") == 1
    assert "import triton before tensorflow" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import tensorflow; import teachonce",
        "import tensorflow; from teachonce.models.classifier import load_model",
        "import torch; import tensorflow; from teachonce import Store",
        "import teachonce; import tensorflow; teachonce.StoredViews",
        "from teachonce.models.classifier import build_student as b; import tensorflow; call(b, 'nothing:x', 5)",
        "from teachonce.models.classifier import load_model; import tensorflow; call(load_model, 'nothing:x')",
    ],
)
def test_triton_is_kept_out_where_tensorflow_was_first(imports: str, empty_tensorflow: Path) -> None:
    code = f"""
def call(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        assert "nothing" in str(error), error

{imports}
try:
    import triton
except ImportError:
    print("kept out")
"""
    done = run_python(code, empty_tensorflow)
    assert done.returncode == 0 and done.stdout == "kept out\n", done.stderr
    assert done.stderr.count("tensorflow was imported before Triton") == 1


# The last one as after torchvision, which imports Triton.
@pytest.mark.parametrize(
    "imports",
    [
        "import triton, tensorflow, teachonce.models.classifier",
        "import teachonce.models.classifier",
        "import triton, teachonce",
    ],
)
def test_otherwise_triton_is_left_alone(imports: str, empty_tensorflow: Path) -> None:
    code = f"{imports}; import triton; print(triton.__name__)"
    done = run_python(code, empty_tensorflow)
    assert (done.returncode, done.stdout) == (0, "triton\n"), done.stderr
    assert "before Triton" not in done.stderr


def test_pytorch_can_load_the_rest_of_itself_after_tensorflow(modern_model: Path) -> None:
    # Without Triton loaded first, its import, as by torchvision, ends the process: two LLVMs that do not get along.
    program = (
        "from teachonce.models.classifier import load_model; "
        f"load_model('savedmodel:{modern_model}'); import triton; print(triton.__name__)"
    )
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "triton\n"), done.stderr[-2000:]
