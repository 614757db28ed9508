"""What the documents print: commands that parse, code that runs, and files, links and names of code that are there."""

import ast
import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import teachonce
from docs.site.build import links_of
from teachonce import Store
from teachonce.cli.main import parse_command
from teachonce.codecs.registry import CODECS
from teachonce.errors import LogitsError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from tests.support.paths import DOCS, ROOT
from tests.support.small_data import write_image_folder, write_shards, write_store
from tests.support.small_models import write_color_teacher

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "walkthrough" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
"""LOG.md is not among them: it tells of names that are gone; CHANGELOG.md of one, `export`."""


@cache
def code() -> str:
    return "\n".join(
        path.read_text()
        for folder in ("src", "tests", "benchmarks", "examples", "native", "walkthrough")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".c", ".h", ".jinja") and path != Path(__file__)
    )


@cache
def words_of_code() -> set[str]:
    return set(re.findall(r"\w+", code()))


def printed_commands(page: Path) -> list[str]:
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("teachonce ")]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_printed_commands_are_commands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in printed_commands(page):
        words = shlex.split(line, comments=True)[1:]
        if "--config" in words:
            write_options(Path(words[words.index("--config") + 1]), words[0])
        parse_command(words)


def write_options(file: Path, command: str) -> None:
    """What a printed command takes from a file: the options that it must have, but for --out."""
    options = {"data": "records", "student" if command == "train" else "teacher": "timm:resnet18"}
    file.parent.mkdir(exist_ok=True)
    lines = [f'"{name}" = "{value}"' for name, value in options.items()]
    file.write_text("\n".join(lines) if file.suffix == ".toml" else json.dumps(options))


def test_the_readme_prints_some():
    assert len(printed_commands(ROOT / "README.md")) >= 6
    assert len(printed_commands(DOCS / "quickstart.md")) >= 10


def test_the_readme_is_short_and_has_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    assert {line.split("#")[0].strip() for line in lines} >= {"make demo", "make test"}


LINKED = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("benchmarks/**/*.md")})


@cache
def headings_of(page: Path) -> set[str]:
    """What a code host calls the headings of a page: in links behind #."""
    found: list[str] = []
    for line in re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).splitlines():
        if heading := re.fullmatch(r"#+ (.+)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)


def broken_links(page: Path, text: str) -> list[str]:
    """Links and pictures of a page that lead to no file of the repository, or to no heading of the page that it is."""
    broken = []
    for path, heading in links_of(text):
        target = (page.parent / path).resolve() if path else page
        # A folder is shown by a code host and by no site.
        if not target.is_file() or not target.is_relative_to(ROOT):
            broken.append(path)
        elif heading and target.suffix == ".md" and heading not in headings_of(target):
            broken.append(f"{path}#{heading}")
    return broken


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_links_lead_to_a_file_and_a_heading(page: Path):
    assert not broken_links(page, page.read_text())


def test_wrong_links_are_seen():
    page = DOCS / "guide" / "imagenet-editions.md"
    right = """[a](views.md) [b](../design.md#the-seams) [c](#what-to-do) <img src="../images/gains-dark.svg">
    `[no](link.md)` [web](https://example.org/x#y)
[ref]: ../../examples/read_store.py"""
    assert not broken_links(page, right)
    wrong = """[a](nowhere.md) [b](../design.md#nothing) [c](#nothing) ![d](no.png) [e](../../benchmarks)
<source srcset="../images/no.svg">
[ref]: ../../no.py"""
    assert broken_links(page, wrong) == [
        "nowhere.md",
        "../design.md#nothing",
        "#nothing",
        "no.png",
        "../../benchmarks",
        "../images/no.svg",
        "../../no.py",
    ]


def missing_paths(text: str) -> set[str]:
    """Files and folders of code that a text names and that are not there: from the root, the package, or the tests."""
    folders = re.findall(r"(?<![\w/.-])(?:src|tests|benchmarks|examples|native|walkthrough|docs)/[\w./-]*", text)
    files = re.findall(r"(?<![\w/.*>-])(?:[\w-]+/)+[\w-]+\.(?:py|c|h)\b", text)
    bases = (ROOT, ROOT / "src" / "teachonce", ROOT / "tests", ROOT / "walkthrough")
    named = {path.rstrip(".") for path in [*folders, *files]}
    return {path for path in named if not any((base / path).exists() for base in bases)}


def missing_names(text: str) -> set[str]:
    """Modules and names of this package, and benchmarks, that a text names and that are not there."""
    imports = re.findall(r"from (teachonce[\w.]*) import ([\w, ]+)", text)
    dotted = {f"{module}.{name}" for module, names in imports for name in re.findall(r"\w+", names)}
    dotted.update(re.findall(r"(?<![\w/.-])(?:teachonce|benchmarks)(?:\.\w+)+", text))
    return {name for name in dotted if not _is_there(name)}


def _is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        # Or a key that the code writes into files.
        return f'"{name}"' in code()
    return True


def unknown_words(text: str) -> set[str]:
    """Identifiers between backticks, such as snake_case and CamelCase, that occur nowhere in the code."""
    words = re.findall(r"(?<!`)`(\w+)(?:\(\))?`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    named = {word for word in words if re.search(r"[a-z0-9]_\w|[a-z][A-Z]", word)}
    return named - words_of_code()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    assert not missing_paths(text) | missing_names(text) | unknown_words(text)


def test_wrong_names_are_seen():
    right = """`src/teachonce/codecs/topk.py`, `codecs/topk.py`, native/views.c, `system/test_docs.py::test_a`.
    `tests/views`, `python -m benchmarks.kd`, `teachonce.store.plan.Plan`, `teachonce.interop`, `render_views`, `int8`.
    `tests/<package>/test_<module>.py`, from teachonce import Store, StoredLogits"""
    assert not missing_paths(right) | missing_names(right) | unknown_words(right)
    assert missing_paths("`src/teachonce/codec_topk.py` tests/test_units.py") == {
        "src/teachonce/codec_topk.py",
        "tests/test_units.py",
    }
    assert missing_paths("`codecs/codec_topk.py`, in tests/views_of.") == {"codecs/codec_topk.py", "tests/views_of"}
    assert "teachonce.imagenet" in missing_names("from teachonce.imagenet import imagenet_synsets")
    assert missing_names("from teachonce import Store, Storage") == {"teachonce.Storage"}
    assert missing_names("`teachonce.interop.imagenets`, python -m benchmarks.units") == {
        "teachonce.interop.imagenets",
        "benchmarks.units",
    }
    assert unknown_words("`StoredTeachers`, `take_" + "part()`") == {"StoredTeachers", "take_part"}


def test_the_file_tree_names_every_room():
    """And what is below all rooms."""
    design = (DOCS / "design.md").read_text()
    tree = design[design.index("## Where things are") : design.index("## The packages")]
    for path in (ROOT / "src" / "teachonce").iterdir():
        if (path / "__init__.py").exists():
            assert re.search(rf"^      {path.name}/ ", tree, flags=re.MULTILINE), path
        elif path.suffix == ".py" and path.stem != "__init__":
            assert re.search(rf"^      [ a-z_]*\b{path.stem}\b", tree, flags=re.MULTILINE), path


def test_the_readmes_loop_runs(tmp_path):
    """The ten lines of the README, on a small store, with a linear student and one epoch."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    data, teacher = (
        write_image_folder(tmp_path / "pictures", num_classes=4),
        write_color_teacher(tmp_path / "teacher.onnx"),
    )
    views = {"policy": "crop", "views": 2, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=tmp_path / "store", **views))
    code = (
        block.replace("size=224", "size=8").replace("range(100)", "range(1)").replace("num_workers=8", "num_workers=0")
    )
    code = code.replace("batch_size=256", "batch_size=4")
    setup = (
        "import torch\nfrom torch.nn.functional import cross_entropy\n"
        "student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, 4))\n"
        'device = "cpu"\n'
    )
    end = "\nassert torch.isfinite(loss) and batch['teacher_logits'].shape[1] == 4\n"
    subprocess.run([sys.executable, "-c", setup + code + end], check=True, cwd=tmp_path)


def test_the_guides_codec_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a module of its own through a store, and within the bound that it gives."""
    code, program = re.findall(r"```python\n(.*?)```", (DOCS / "guide" / "extending.md").read_text(), flags=re.DOTALL)
    (tmp_path / "fixed.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    codec = importlib.import_module("fixed").FixedPointCodec
    monkeypatch.setitem(CODECS, "fixed", codec)
    assert 'CODECS["fixed"] = FixedPointCodec' in program
    logits = np.random.default_rng(0).normal(0, 3, (8, 3)).astype(np.float32)
    write_store(tmp_path / "store", write_shards(tmp_path / "data"), logits, codec="fixed")
    store = Store(tmp_path / "store")
    assert store.codec == codec(num_classes=3)
    columns = store.read_columns(0, 0)
    read = store.read_logits(0, 0, np.arange(len(columns["steps"])))
    assert (np.abs(read - logits[: len(read)]) <= store.codec.error_bound(columns)).all()
    tensors = {"steps": torch.from_numpy(columns["steps"].copy())}
    assert store.codec.decode_tensor(tensors).tolist() == read.tolist()
    with pytest.raises(LogitsError):
        store.codec.encode_logits(np.full((1, 3), np.nan, np.float32))


def test_what_the_guide_extends_is_on_the_page_of_interfaces():
    """Whatever is not named there is private."""
    page = (DOCS / "reference" / "api" / "interfaces.md").read_text()
    shown = {
        module: members and {name.strip() for name in members.split(",")}
        for module, members in re.findall(
            r"^::: (\S+)\n(?:    .*\n)*?(?:      members: \[(.*)\]\n|\n)", page, re.MULTILINE
        )
    }
    used = {
        (node.module, alias.name)
        for block in re.findall(r"```python\n(.*?)```", (DOCS / "guide" / "extending.md").read_text(), flags=re.DOTALL)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("teachonce.codecs")
        for alias in node.names
    }
    assert ("teachonce.codecs.dense", "DenseCodec") in used and ("teachonce.codecs.registry", "CODECS") in used
    for module, name in used:
        assert module in shown and (not shown[module] or name in shown[module]), (module, name)


def test_the_small_networks_of_the_guide_are_those_of_timm():
    """As many parameters and multiplications as it says."""
    text = (DOCS / "guide" / "deploying.md").read_text()
    rows = re.findall(r"^\| `timm:(\w+)`.*? \| ([\d.]+) M \| ([\d.]+) G \|", text, re.MULTILINE)
    assert len(rows) == 9
    for name, millions, billions in rows:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=1000).eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counted:
                model(torch.zeros(1, 3, 224, 224))
        found = sum(parameter.numel() for parameter in model.parameters())
        assert (f"{found / 1e6:.1f}", f"{counted.get_total_flops() / 2e9:.2f}") == (millions, billions), name


def test_version_is_that_of_the_changelog():
    assert f"## {teachonce.__version__}" in (ROOT / "CHANGELOG.md").read_text()
