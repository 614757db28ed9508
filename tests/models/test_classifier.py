"""Models by SPEC: each backend gives the logits of a direct call, and what does not fit is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from teachonce.errors import ConfigError, LogitsError, ModelError
from teachonce.models.classifier import Classifier, build_student, load_model, resolve_device
from teachonce.models.spec import parse_model_spec
from teachonce.models.torch_backend import _library_names, build_module, load_weights, make_timms_layer_small
from teachonce.pixels.decode import decode_image
from teachonce.pixels.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalize
from teachonce.training.data import student_preprocessing
from tests.support.small_data import run_config

NUM_CLASSES = 7
SIZE_PX = 32


def noise_pixels(num_images: int = 3, size_px: int = SIZE_PX) -> torch.Tensor:
    rng = np.random.default_rng(size_px)
    return torch.from_numpy(rng.integers(0, 256, (num_images, size_px, size_px, 3), np.uint8))


@pytest.fixture(scope="module")
def resnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-18 with few classes, whose batch norms have seen something."""
    torch.manual_seed(0)
    module = build_student("torchvision:resnet18", NUM_CLASSES)
    with torch.no_grad():
        module(torch.randn(8, 3, SIZE_PX, SIZE_PX))
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(module.state_dict(), path)
    return path


def resnet_spec(path: Path, *options: str) -> str:
    return ",".join([f"torchvision:resnet18,weights={path},classes={NUM_CLASSES},size={SIZE_PX}", *options])


def test_torchvision_logits_are_those_of_a_direct_call(resnet_weights: Path) -> None:
    import torchvision

    classifier = load_model(resnet_spec(resnet_weights))
    module = torchvision.models.resnet18(num_classes=NUM_CLASSES).eval()
    module.load_state_dict(load_file(resnet_weights))
    module.to(memory_format=torch.channels_last)
    pixels = noise_pixels()
    with torch.inference_mode():
        images = torchvision.transforms.functional.normalize(
            pixels.permute(0, 3, 1, 2).contiguous().float() / 255, IMAGENET_MEAN, IMAGENET_STD
        )
        expected = module(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(classifier.logits(pixels), expected)
    assert classifier.num_classes == NUM_CLASSES and classifier.default_offset is None
    # torchvision's preset of ResNet-18's default weights is 224 of 256; size=32 keeps the proportion.
    assert classifier.preprocessing == Preprocessing(size_px=32, resize_px=36)
    assert classifier.module is not None and not classifier.module.training


def test_a_loss_keeps_the_logits_for_its_backward_pass(resnet_weights: Path) -> None:
    """As that of a loop of one's own does, with a teacher beside the student."""
    teacher = load_model(resnet_spec(resnet_weights))
    student = nn.Linear(3 * SIZE_PX * SIZE_PX, NUM_CLASSES)
    pixels = noise_pixels()
    teacher_logits = teacher.logits(pixels)
    assert not teacher_logits.is_inference() and not teacher_logits.requires_grad
    nn.functional.mse_loss(student(pixels.flatten(1).float() / 255), teacher_logits).backward()
    assert student.weight.grad is not None and teacher.module is not None
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


def test_weights_hash_is_of_the_values_not_of_the_file(resnet_weights: Path, tmp_path: Path) -> None:
    weights = load_file(resnet_weights)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "w.pth")
    first = load_model(resnet_spec(resnet_weights))
    assert load_model(resnet_spec(tmp_path / "w.pth")).weights_sha256 == first.weights_sha256
    weights["fc.bias"][3] += 1e-6
    save_file(weights, tmp_path / "other.safetensors")
    assert load_model(resnet_spec(tmp_path / "other.safetensors")).weights_sha256 != first.weights_sha256


def test_timm_model_with_its_own_preprocessing(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("test_vit", num_classes=NUM_CLASSES).eval()
    save_file(module.state_dict(), tmp_path / "vit.safetensors")
    classifier = load_model(f"timm:test_vit,weights={tmp_path}/vit.safetensors,classes={NUM_CLASSES}")
    config = timm.data.resolve_model_data_config(module)
    size_px = config["input_size"][1]
    pixels = noise_pixels(2, size_px)
    with torch.inference_mode():
        expected = module(normalize(pixels, classifier.preprocessing))
    # In channels-last, as on every CPU, some processors' convolutions sum in another order.
    torch.testing.assert_close(classifier.logits(pixels), expected, rtol=0, atol=1e-5)
    assert classifier.preprocessing == Preprocessing(
        size_px=size_px,
        resize_px=int(size_px / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )
    reference = timm.data.create_transform(**config, is_training=False)
    image = decode_image(encode_noise_image(90, 61))
    ours = normalize(torch.from_numpy(classifier.preprocessing.apply(image))[None], classifier.preprocessing)[0]
    assert torch.equal(ours, reference(image))


def encode_noise_image(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_real_squeezenet_is_plain_torchvision_on_real_images(shared_data: Path, imagenet_sample: Path) -> None:
    # Every tenth image, bit for bit; tests/test_real_images.py has all of them through the whole extraction.
    import torchvision
    from PIL import Image
    from torchvision import transforms

    path = shared_data / "squeezenet1_0-imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    classifier = load_model(f"torchvision:squeezenet1_0,weights={path},size=227,resize=256")
    module = torchvision.models.squeezenet1_0(weights=None).eval()
    module.load_state_dict(load_file(path))
    module.to(memory_format=torch.channels_last)
    reference = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(227),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    synsets = sorted(item.name for item in (imagenet_sample / "train").iterdir())
    files = sorted(imagenet_sample.glob("train/*/*"))[::10]
    # The sample has every fourth class of the sorted synsets.
    labels = [4 * synsets.index(file.parent.name) for file in files]
    ours, theirs = [], []
    for start in range(0, len(files), 25):
        batch = files[start : start + 25]
        pixels = [classifier.preprocessing.apply(decode_image(file.read_bytes())) for file in batch]
        ours.append(classifier.logits(torch.from_numpy(np.stack(pixels))))
        images = []
        for file in batch:
            with Image.open(file) as image:
                images.append(reference(image.convert("RGB")))
        with torch.inference_mode():
            theirs.append(module(torch.stack(images).contiguous(memory_format=torch.channels_last)))
    our_logits, their_logits = torch.cat(ours), torch.cat(theirs)
    assert torch.equal(our_logits, their_logits)
    top1 = (our_logits.argmax(dim=1) == torch.tensor(labels)).float().mean()
    # 62 % on all 1,000 of these images; three standard errors of those looked at here.
    assert abs(top1 - 0.62) < 3 * (0.62 * 0.38 / len(files)) ** 0.5


def test_student_is_fresh_in_training_mode_and_a_function_of_the_seed() -> None:
    torch.manual_seed(3)
    first = build_student("timm:test_resnet", 5)
    torch.manual_seed(3)
    second = build_student("timm:test_resnet", 5)
    assert first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_student_of_another_input_size() -> None:
    for spec in ("timm:test_vit", "torchvision:resnet18"):
        student = build_student(spec, 5, size_px=96).eval()
        assert student(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


@pytest.mark.parametrize("has_auxiliary", [False, True])
def test_inception_takes_its_input_as_torchvisions_own_weights_want_it(tmp_path: Path, has_auxiliary: bool) -> None:
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.inception_v3(
        weights=None, num_classes=5, init_weights=False, aux_logits=has_auxiliary, transform_input=True
    ).eval()
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    classifier = load_model(f"torchvision:inception_v3,weights={tmp_path}/w.safetensors,classes=5,size=75")
    pixels = noise_pixels(2, 75)
    with torch.inference_mode():
        assert torch.equal(classifier.logits(pixels), module(normalize(pixels, classifier.preprocessing)))
    # A student that begins with these weights says the same of the same pixels, with its own mean and std.
    spec = parse_model_spec(f"torchvision:inception_v3,weights={tmp_path}/w.safetensors")
    student, own = build_student(spec, 5, size_px=75).eval(), student_preprocessing(spec, 75, 75)
    with torch.inference_mode():
        torch.testing.assert_close(student(normalize(pixels, own)), classifier.logits(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_student_has_one_output_even_where_torchvision_has_more(name: str) -> None:
    student = build_student(f"torchvision:{name}", 5)
    assert student(torch.randn(2, 3, 96, 96)).shape == (2, 5)


def test_a_student_wants_the_pixels_of_its_librarys_weights() -> None:
    for name, mean in (
        ("torchvision:efficientnet_v2_l", 0.5),
        ("torchvision:resnet18", 0.485),
        ("timm:vit_base_patch16_224", 0.5),
    ):
        assert student_preprocessing(parse_model_spec(name), 32, 32).mean[0] == mean


def test_a_student_begins_with_the_part_of_a_file_that_is_named(resnet_weights: Path, tmp_path: Path) -> None:
    weights = load_file(resnet_weights)
    both = {
        f"{part}.{name}": tensor + scale
        for part, scale in (("student", 0), ("teacher", 1))
        for name, tensor in weights.items()
    }
    save_file(both, tmp_path / "both.safetensors")
    spec = parse_model_spec(f"torchvision:resnet18,weights={tmp_path}/both.safetensors,part=student")
    student_preprocessing(spec, 32, 32)
    with pytest.warns(UserWarning, match="teacher"):
        student = build_student(spec, NUM_CLASSES)
    assert torch.equal(student.state_dict()["fc.weight"], weights["fc.weight"])


def test_student_from_weights_of_other_classes_keeps_all_but_the_last_layer(resnet_weights: Path) -> None:
    with pytest.warns(
        UserWarning,
        match=r"new last layer \(fc.weight, fc.bias\), because the weights have 7 classes instead of 4",
    ):
        student = build_student(f"torchvision:resnet18,weights={resnet_weights}", 4)
    weights = load_file(resnet_weights)
    own = student.state_dict()
    assert own["fc.weight"].shape[0] == 4
    # Small, whatever the architecture draws: the first loss is that of knowing nothing.
    assert own["fc.weight"].std() == pytest.approx(0.01, rel=1e-3) and not own["fc.bias"].any()
    assert all(torch.equal(own[name], weights[name]) for name in weights if not name.startswith("fc."))


def test_new_last_layers_of_timm_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm puts the head itself where it downloads weights of other classes; an EfficientNet's is large."""
    student = build_student("timm:tf_efficientnet_lite0", 10)
    assert student.state_dict()["classifier.weight"].std() > 0.1
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    monkeypatch.setattr("teachonce.models.torch_backend._create_timm", lambda *args, **options: student)
    with pytest.warns(UserWarning, match=r"new last layer \(classifier.weight, classifier.bias\), because the weights"):
        build_student("timm:tf_efficientnet_lite0,pretrained=1", 10)
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert changed == {"classifier.weight"} and not student.state_dict()["classifier.bias"].any()
    assert student.state_dict()["classifier.weight"].std() == pytest.approx(0.01, rel=1e-3)


def test_a_network_of_which_no_last_layer_is_known() -> None:
    student = build_student("timm:test_resnet", 10)
    student.pretrained_cfg = {"num_classes": 5, "classifier": None}
    with pytest.raises(ModelError, match="timm does not say which layer of this network is the last one"):
        make_timms_layer_small(student)


def test_student_from_weights_of_its_classes_warns_nobody(resnet_weights: Path) -> None:
    student = build_student(f"torchvision:resnet18,weights={resnet_weights}", NUM_CLASSES)
    weights = load_file(resnet_weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in student.state_dict().items())


def test_student_from_weights_of_another_architecture(resnet_weights: Path) -> None:
    with pytest.raises(ModelError, match="do not fit"):
        build_student(f"torchvision:resnet34,weights={resnet_weights}", NUM_CLASSES)


@pytest.mark.parametrize("spec", ["onnx:x.onnx", "run:x", "amoebanet,weights=x"])
def test_student_must_be_an_architecture(spec: str) -> None:
    with pytest.raises(ConfigError, match="a student must be timm:NAME"):
        build_student(spec, 5)


def test_run_is_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(1)
    student = build_student("timm:test_vit", 5, size_px=96).eval()
    preprocessing = Preprocessing(size_px=96, resize_px=110)
    write_run(tmp_path, student, "timm:test_vit", preprocessing, offset=1)
    classifier = load_model(f"run:{tmp_path}")
    pixels = noise_pixels(2, 96)
    with torch.inference_mode():
        expected = student(normalize(pixels, preprocessing))
    torch.testing.assert_close(classifier.logits(pixels), expected, rtol=0, atol=1e-5)  # as above
    assert (classifier.default_offset, classifier.num_classes) == (1, 5)
    assert classifier.preprocessing == preprocessing


def write_run(run: Path, student: nn.Module, spec: str, preprocessing: Preprocessing, offset: int = 0) -> None:
    save_file(student.state_dict(), run / "student.safetensors")
    (run / "config.json").write_text(json.dumps(run_config(spec, preprocessing, offset=offset)))


def test_damaged_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_model(f"run:{tmp_path}")
    write_run(tmp_path, build_student("timm:test_resnet", 5), "timm:test_resnet", Preprocessing(size_px=32))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="is not from a run"):
        load_model(f"run:{tmp_path}")


def test_bf16_autocast_stays_close(resnet_weights: Path) -> None:
    pixels = noise_pixels()
    exact = load_model(resnet_spec(resnet_weights)).logits(pixels)
    rounded = load_model(resnet_spec(resnet_weights), precision="bf16").logits(pixels)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    # bfloat16 has 8 bits: each of the 18 convolutions rounds its input, its weights and its output to 2^-9 of their
    # size; were all these errors of one sign, 3 * 18 * 2^-9 = 11 % of the largest logit.
    assert (exact - rounded).abs().max() < 0.11 * exact.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_gpu_gives_the_logits_of_the_cpu(resnet_weights: Path, compile: bool) -> None:
    pixels = noise_pixels(16)
    exact = load_model(resnet_spec(resnet_weights)).logits(pixels)
    classifier = load_model(resnet_spec(resnet_weights), device="cuda", compile=compile)
    assert classifier.channels_last and classifier.logits(pixels).is_cuda
    # As verify allows; TF32's 11 bits would be ten times further out.
    np.testing.assert_allclose(
        classifier.collect_logits(classifier.logits(pixels)), exact, rtol=0, atol=2**-12 * exact.abs().max()
    )
    half = load_model(resnet_spec(resnet_weights), device="cuda", precision="bf16", compile=compile).logits(pixels)
    assert (exact - half.cpu()).abs().max() < 0.11 * exact.abs().max()


@pytest.mark.parametrize(("name", "message"), [("gpu", "expected auto"), ("cuda:99", "sees"), ("meta", "sees")])
def test_device_that_is_not_there(name: str, message: str) -> None:
    assert resolve_device("cpu").type == "cpu" and resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


# --- What does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet10", "timm has no 'resnet10'; did you mean resnet"),
        ("timm:resnet18.no_such_tag", "cannot"),
        ("torchvision:resnet5", "torchvision has no classifier 'resnet5'; did you mean resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier"),
        ("torchvision:resnet18,weights=/nowhere/w.pth", "/nowhere/w.pth: no such file"),
        ("torchvision:resnet18,pretrained=0", "a teacher needs weights"),
        ("torchvision:resnet18,classes=5", "needs weights"),
        ("onnx:/nowhere/m.onnx", "no file /nowhere/m.onnx"),
        ("savedmodel:/nowhere", "has no saved_model.pb"),
        ("amoebanet", r"its weights cannot be downloaded .*give weights=DIR"),
        ("efficientnet", r"its weights cannot be downloaded .*give weights=DIR"),
    ],
)
def test_spec_of_nothing(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a network the hub's client tries again for a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((ConfigError, ModelError), match=message):
        load_model(spec)


def test_weights_of_another_architecture(resnet_weights: Path) -> None:
    with pytest.raises(
        ModelError, match=r"\d+ of \d+ tensors missing \(layer1\.2\.conv1\.weight, .*\.\.\.\); .*trained with"
    ):
        load_model(f"torchvision:resnet34,weights={resnet_weights},classes={NUM_CLASSES}")
    with pytest.raises(ModelError, match=r"fc.weight \[7, 512\] instead of \[1000, 512\].*add classes=7"):
        load_model(f"torchvision:resnet18,weights={resnet_weights}")


class Malicious:
    """What an attacker pickles: reading it back makes a folder."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.evidence),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_would_execute_code_does_not(tmp_path: Path, legacy: bool) -> None:
    evidence = tmp_path / "executed"
    content = {"state_dict": {"fc.bias": torch.zeros(3)}, "extra": Malicious(evidence)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    for name in ("evil.pth", "plain.pkl"):
        if name == "plain.pkl":
            (tmp_path / name).write_bytes(pickle.dumps(Malicious(evidence)))
        with pytest.raises(ModelError, match=r"execute code, so it is refused|that holds only tensors"):
            load_model(resnet_spec(tmp_path / name))
    assert not evidence.exists()
    # The same file does execute when read carelessly: the test would notice.
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert evidence.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights",
        b"PK\x03\x04 broken",
        b"\x10\0\0\0\0\0\0\0{broken safetensors",
        # Texts that are opcodes of a pickle: IndexError, struct.error, KeyError.
        b"synset\nsynset\n",
        b"G.",
        b"J.",
        b"q.",
        b"hello this is text\n",
    ],
)
def test_file_without_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ModelError, match="weights"):
        load_weights(tmp_path / "weights")


def test_a_text_that_begins_as_any_pickle(tmp_path: Path) -> None:
    for opcode in range(256):
        (tmp_path / "weights").write_bytes(bytes([opcode]) + b".")
        with pytest.raises(ModelError, match="weights"):
            load_weights(tmp_path / "weights")


@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:resnet18"])
@pytest.mark.parametrize("folder", ["/", ".", "{tmp}"])
def test_a_folder_as_weights(tmp_path: Path, spec: str, folder: str) -> None:
    folder = folder.format(tmp=tmp_path)
    with pytest.raises(ConfigError, match=f"^weights={folder}: is a folder; expected safetensors or a PyTorch"):
        load_model(f"{spec},weights={folder}")


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "found nothing"), ([1], "found a list"), ({"epoch": 3}, "a dictionary with 'epoch'")],
)
def test_checkpoint_without_weights(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message):
        load_weights(tmp_path / "w.pth")


def test_checkpoint_of_timms_training_script(tmp_path: Path) -> None:
    import argparse

    content = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "state_dict": {"fc.bias": torch.zeros(3)},
        "state_dict_ema": {"fc.bias": torch.ones(3)},
    }
    torch.save(content, tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth")["fc.bias"].tolist() == [1, 1, 1]


def test_nan_weights(resnet_weights: Path, tmp_path: Path) -> None:
    weights = load_file(resnet_weights)
    weights["fc.weight"][2] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(LogitsError, match="NaN or infinite logits for 2 of 2 images"):
        load_model(resnet_spec(tmp_path / "nan.safetensors"))


def test_nan_that_comes_later(resnet_weights: Path) -> None:
    classifier = load_model(resnet_spec(resnet_weights))
    pixels = noise_pixels().float()
    pixels[1, 0, 0, 0] = float("inf")
    with pytest.raises(LogitsError, match="for 1 of 3 images"):
        classifier.collect_logits(classifier.logits(pixels))


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"pretrained weights cannot be downloaded .*give weights=FILE"):
        load_model("timm:test_resnet")


def test_size_that_does_not_fit(tmp_path: Path) -> None:
    student = build_student("torchvision:resnet18", 5)
    save_file(student.state_dict(), tmp_path / "resnet.safetensors")
    save_file(build_student("torchvision:alexnet", 5).state_dict(), tmp_path / "alexnet.safetensors")
    with pytest.raises(ConfigError, match=r"torchvision cannot build it \(AssertionError: Input shape indivisible"):
        load_model(f"torchvision:vit_b_32,weights={tmp_path}/alexnet.safetensors,size=50")
    with pytest.raises(ConfigError, match=r"torchvision cannot build it \(AssertionError: Input shape indivisible"):
        build_student("torchvision:vit_b_32", 5, size_px=50)
    with pytest.raises(ModelError, match=r"does not run on 16 x 16 pixels .*check size="):
        load_model(f"torchvision:alexnet,weights={tmp_path}/alexnet.safetensors,classes=5,size=16")


def test_a_float32_teacher_stays_float32_within_anothers_autocast():
    """An online teacher is asked inside the student's training step."""
    seen = []
    linear = torch.nn.Linear(3 * 4 * 4, 5)

    def forward(images):
        answer = linear(images.flatten(1))
        seen.append(answer.dtype)
        return answer

    teacher = Classifier(
        spec="test",
        num_classes=5,
        preprocessing=Preprocessing(size_px=4),
        default_offset=None,
        weights_sha256="",
        device=torch.device("cpu"),
        forward=forward,
    )
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        teacher.logits(pixels)
    assert seen == [torch.float32]


def test_timm_tells_an_edition_of_imagenet_by_its_classes() -> None:
    """Its own weights cannot be fetched here: what is asked of the module is their class count."""
    spec = parse_model_spec("timm:test_resnet")
    names = _library_names(spec, build_module(spec, 1000))
    assert names is not None and (len(names), names[0], names[281]) == (1000, "tench, Tinca tinca", "tabby, tabby cat")
    assert _library_names(spec, build_module(spec, 10)) is None
    elsewhere = parse_model_spec("timm:test_resnet,weights=w.safetensors")
    assert _library_names(elsewhere, build_module(spec, 1000)) is None


def test_a_backbone_is_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features would be stored as the logits of as many classes."""
    backbone = timm.create_model("test_resnet", num_classes=0)
    monkeypatch.setattr("teachonce.models.torch_backend._create_timm", lambda *_, **__: backbone)
    with pytest.raises(ModelError, match=r"timm:test_resnet: has no last layer: what it returns are features"):
        load_model("timm:test_resnet")
