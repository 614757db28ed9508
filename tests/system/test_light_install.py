"""Every command where no extra is installed: it does its work, or says in one line what to install.

The second half is true of each command's first step: nothing was read or written before.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from teachonce import CropPolicy, KDDataset, OwnViews, Store, StoredLogits, open_records
from teachonce.cli.main import COMMANDS
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.storage.files import write_json
from tests.support.light_install import ALL_EXTRAS, run_hiding, teachonce_hiding
from tests.support.many_commands import Ended, run_commands
from tests.support.paths import GOLDEN
from tests.support.small_data import run_config, write_image_folder
from tests.support.small_models import write_color_shards, write_color_teacher

LIGHT = {
    "start": ["start images", "start records --out start/start.sh"],
    "records": ["records --images images --out out --shards 2"],
    "inspect": [
        "inspect records --split train",
        "inspect store",
        "inspect store --json",
        "inspect run",
    ],
    "verify": [
        "verify store --data records --teacher none --json",
        "verify store --data records --samples 0 --json",
    ],
    "merge": ["merge store --data records --out merged"],
    "upgrade": [f"upgrade {GOLDEN / 'store-v1-int8'} --out upgraded"],
    "export-logits": ["export-logits store --format csv --out csv", "export-logits store --out parquet"],
    "reindex": ["reindex --data records --out marked"],
    "copy": ["copy store copied", "copy records records-copied"],
    "status": ["status store"],
    "diff": ["diff store store"],
    "completion": ["completion bash"],
    "import": ["import csv --data records --split train --out imported"],
}
"""By command: what it does without any extra. ``import`` reads what ``export`` has written."""
HEAVY = {
    "extract": ("extract --data images --teacher timm:test_resnet --out store", "torch"),
    "verify": ("verify store --data records --teacher timm:test_resnet", "torch"),
    "inspect": ("inspect store --html --out page.html", "pages"),
    "plan": ("plan --data images --teacher timm:test_resnet", "torch"),
    "train": (
        "train --data images --student timm:test_resnet --out trained --validation-split none --batch-size 4",
        "train",
    ),
    "evaluate": ("evaluate --data images --split train --model timm:test_resnet", "torch"),
    "predict": ("predict timm:test_resnet images", "torch"),
    "export-onnx": ("export-onnx run --out student.onnx", "torch"),
    "export-weights": ("export-weights run --out student.safetensors", "torch"),
    "ablate": (
        "ablate --data images --student timm:test_resnet --teacher timm:test_resnet --out ablation "
        "--validation-split train --batch-size 4",
        "train",
    ),
    "demo": ("demo --out demo", "demo"),
    "merge": ("merge s3://bucket/store --data records --out merged", "remote"),
}
"""By command: what it cannot do without an extra, and which it asks for first."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("light")
    write_image_folder(folder / "images")
    write_color_shards(folder / "records", sizes=(9, 6))
    teacher = write_color_teacher(folder / "teacher.onnx")
    extract(ExtractConfig(data=folder / "records", teacher=teacher, out=folder / "store", device="cpu", gate_samples=0))
    preprocessing = Preprocessing(size_px=32)
    write_json(folder / "run" / "config.json", {**run_config("timm:test_resnet", preprocessing), **OF_A_RUN})
    (folder / "run" / "student.safetensors").write_bytes(b"looked for before anything that reads it is imported")
    yield folder


OF_A_RUN = {"data": "images", "split": "train", "epochs": 1, "batch_size": 8}


def test_every_command_is_here():
    assert set(LIGHT) | set(HEAVY) == set(COMMANDS)


def test_light_commands_do_their_work(folder: Path):
    """One process, as their imports are the same; each command's name is printed with its exit code."""
    commands = [words for name in LIGHT for words in LIGHT[name]]
    code = (
        "import sys; from teachonce.cli.main import main\n"
        f"for words in {commands!r}:\n"
        "    try: main(words.split())\n"
        "    except SystemExit as end: print(words, end.code, sep=' -> ')\n"
        f"print(set({ALL_EXTRAS!r}) & set(sys.modules))\n"
    )
    done = run_hiding(ALL_EXTRAS, code, folder=folder)
    ends = [line for line in done.stdout.splitlines() if " -> " in line]
    assert ends == [f"{words} -> 0" for words in commands], done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    assert len(list(folder.glob("out/train-0000?-of-00002"))) == 2
    assert len(list(folder.glob("merged/train-*-of-00002"))) == 2
    verdicts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"is_sound"')]
    assert all(verdict["is_sound"] for verdict in verdicts)
    assert [verdict["num_pixels"] > 0 for verdict in verdicts] == [True, False]


def test_a_dataset_yields_arrays(folder: Path):
    """The pixels and logits that a training with torch gets, without it; tensors say what to install."""
    code = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from teachonce import CropPolicy, KDDataset, OwnViews, Store, StoredLogits, open_records\n"
        "logits = StoredLogits([Store('store')], temperature=2.0)\n"
        "dataset = KDDataset(open_records(Path('records'), 'train'), OwnViews(CropPolicy()), logits, size=16)\n"
        "loader = dataset.batches(batch_size=4, epoch=1, num_workers=2)\n"
        "batches = list(loader.as_numpy())\n"
        "joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}\n"
        "np.savez('arrays.npz', **joined)\n"
        f"print(set({ALL_EXTRAS!r}) & set(sys.modules))\n"
        "try: next(iter(loader))\n"
        "except ImportError as error: print(error)\n"
    )
    done = run_hiding(ALL_EXTRAS, code, folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "set()",
        "a batch of tensors (as_numpy() has NumPy arrays) needs torch, which is not installed: "
        "pip install 'teachonce[torch]'",
    ]
    logits = StoredLogits([Store(folder / "store")], temperature=2.0)
    dataset = KDDataset(open_records(folder / "records", "train"), OwnViews(CropPolicy()), logits, size=16)
    batches = list(dataset.batches(batch_size=4, epoch=1))
    with np.load(folder / "arrays.npz") as found:
        assert set(found) == set(batches[0]) == {"pixels", "labels", "indices", "teacher_logits"}
        for name in found:
            np.testing.assert_array_equal(found[name], np.concatenate([batch[name].numpy() for batch in batches]))


def test_heavy_commands_say_what_to_install(folder: Path, tmp_path: Path):
    """One process, as above; the folder is looked at after each."""
    for name in ("images", "records", "store", "run"):
        shutil.copytree(folder / name, tmp_path / name)
    before = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    for (words, extra), done in zip(
        HEAVY.values(), commands_hiding_all(tmp_path, *(words for words, _ in HEAVY.values())), strict=True
    ):
        assert done.returncode == 2, (words, done.stderr)
        assert not done.stdout, words
        assert len(done.stderr.splitlines()) == 1, (words, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith("teachonce: "), words
        assert line.endswith(f"which is not installed: pip install 'teachonce[{extra}]'"), (words, line)
        assert done.files == before, words


def test_help_needs_no_extra(tmp_path: Path):
    for name, done in zip(
        ["", *COMMANDS], commands_hiding_all(tmp_path, "--help", *(f"{name} --help" for name in COMMANDS)), strict=True
    ):
        assert done.returncode == 0, (name, done.stderr)
        assert f"usage: teachonce {name}".rstrip() in done.stdout, name


def commands_hiding_all(folder: Path, *commands: str) -> list[Ended]:
    run = functools.partial(run_hiding, ALL_EXTRAS, folder=folder)
    return run_commands(run, [words.split() for words in commands])


@pytest.mark.slow
def test_a_training_asks_for_its_report_before_it_begins(folder: Path, tmp_path: Path):
    """Torch and Lightning are there; what is needed only at the end is asked for at the start."""
    shutil.copytree(folder / "images", tmp_path / "images")
    for words, module, extra in (
        (HEAVY["train"][0], "jinja2", "pages"),
        (HEAVY["plan"][0] + " --out plan", "matplotlib", "pages"),
        (HEAVY["ablate"][0], "scipy", "train"),
    ):
        done = teachonce_hiding((module,), *words.split(), folder=tmp_path)
        assert done.returncode == 2, done.stderr
        assert f" needs {module}, which is not installed: pip install 'teachonce[{extra}]'" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["images"]
