"""The walls of the house: layers, file lengths, what importing must not import, the public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import teachonce

PACKAGE = Path(teachonce.__file__).parent

# A file imports only from layers above it in this table; within a layer, from nothing.
LAYERS = [
    ["arena", "errors", "rng", "softmax", "versions"],
    ["batches", "classes", "config", "files", "progress", "page"],
    ["backbone_layers"],
    ["backbone_options"],
    ["backbone_blocks"],
    ["backbones"],
    ["timm_names"],
    ["timm_import"],
    ["backbone_weights"],
    [
        "config_export",
        "config_train",
        "example",
        "images",
        "launch",
        "folders",
        "codec_protocol",
        "plan_costs",
        "object_crops",
        "recipes",
        "loader",
        "native",
    ],
    ["tfrecord", "imagenet", "preprocessing", "operations", "losses", "metrics", "mixup", "runs", "ranks", "schedules"],
    ["codec_dense", "codec_topk", "views", "autoaugment", "jpeg_structure", "kernel"],
    ["pixels"],
    [
        "codec",
        "policies",
        "records",
        "model_spec",
        "report",
        "ablate_table",
        "export_table",
        "plan_picture",
        "plan_table",
    ],
    ["shard_files", "models_torch", "models_onnx", "quantise"],
    ["store_plan", "models_savedmodel"],
    ["store", "models"],
    [
        "fine_tuning",
        "logit_table",
        "guards",
        "inspect_measures",
        "inspect_records",
        "join",
        "stored_teachers",
        "memory",
    ],
    ["student", "replay", "inspect_costs", "inspect_charts"],
    ["callbacks", "dataset", "plan_measure", "inspect_store", "inspect_pictures"],
    ["training_data", "gate", "convert", "merge", "exchange", "evaluate", "export", "verify", "units", "inspect_cards"],
    ["extract", "train", "inspect_page", "export_int8"],
    ["ablate", "demo", "plan", "walkthrough", "inspect"],
    ["cli"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")
MAX_LINES = 500


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("teachonce."):
            found.add(node.module.removeprefix("teachonce."))
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("teachonce.") for alias in node.names if alias.name.startswith("teachonce.")
            }
    return found


def test_every_file_has_its_layer():
    assert sorted(RANK) == [path.stem for path in FILES]
    assert len(RANK) == sum(len(layer) for layer in LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_only_go_down(path):
    upwards = sorted(name for name in imported(path) if RANK[name] >= RANK[path.stem])
    assert not upwards, f"{path.stem} (layer {RANK[path.stem]}) imports {upwards}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(path.read_text())), "a module says what it is for"


@pytest.mark.parametrize(
    "module, forbidden",
    [
        ("cli", {"torch", "pyarrow", "ray", "tensorflow", "numpy", "timm"}),
        ("store", {"torch", "timm", "tensorflow"}),
        ("records", {"torch", "timm", "tensorflow"}),
        ("convert", {"torch", "timm", "tensorflow"}),
        ("merge", {"torch", "timm", "tensorflow"}),
        ("exchange", {"torch", "timm", "tensorflow"}),
        ("inspect", {"torch", "timm", "tensorflow", "matplotlib"}),
        ("inspect_page", {"torch", "timm", "tensorflow"}),
        ("train", {"tensorflow", "onnxruntime"}),
    ],
)
def test_what_importing_must_not_import(module, forbidden):
    code = f"import teachonce.{module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not set(loaded.split()) & forbidden


def test_the_public_names_are_there():
    assert sorted(teachonce.__all__) == teachonce.__all__
    for name in teachonce.__all__:
        assert getattr(teachonce, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = teachonce.missing


def test_nothing_names_a_machine_or_a_registry():
    folder = PACKAGE.parents[1]
    for path in [*FILES, *folder.glob("docs/*.md"), *folder.glob("*.md"), folder / "requirements.lock"]:
        text = path.read_text()
        assert "://pypi" not in text and "index-url" not in text, path
