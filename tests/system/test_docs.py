"""What the documents print: commands that parse, code that runs, files and links that are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import teachonce
from teachonce.cli.main import parse_command
from tests.support.paths import DOCS, ROOT
from tests.support.small_data import write_shards, write_store

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "walkthrough" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]


def printed_commands(page: Path) -> list[str]:
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("teachonce ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_printed_commands_are_commands(page):
    for line in printed_commands(page):
        parse_command(shlex.split(line, comments=True)[1:])


def test_the_readme_prints_some():
    assert len(printed_commands(ROOT / "README.md")) >= 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_file_tree_names_every_room():
    """And what is below all rooms."""
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## Where things are") :]
    for path in (ROOT / "src" / "teachonce").iterdir():
        if (path / "__init__.py").exists():
            assert re.search(rf"^      {path.name}/ ", tree, flags=re.MULTILINE), path
        elif path.suffix == ".py" and path.stem != "__init__":
            assert re.search(rf"^      [ a-z]*\b{path.stem}\b", tree, flags=re.MULTILINE), path


def test_the_readmes_loop_runs(tmp_path):
    """The ten lines of the README, on a small store, with a linear student and one epoch."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    write_store(tmp_path / "store", write_shards(tmp_path / "records"))
    code = (
        block.replace("size=224", "size=8").replace("range(100)", "range(1)").replace("num_workers=8", "num_workers=0")
    )
    code = code.replace("batch_size=256", "batch_size=4")
    setup = (
        "import torch\nfrom pathlib import Path\nfrom torch.nn.functional import cross_entropy\n"
        "student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, 4))\n"
        "normalise = lambda pixels: pixels.float() / 255\n"
    )
    end = "\nassert torch.isfinite(loss) and batch['teacher_logits'].shape[1] == 4\n"
    subprocess.run([sys.executable, "-c", setup + code + end], check=True, cwd=tmp_path)


def test_version_is_that_of_the_changelog():
    assert f"## {teachonce.__version__}" in (ROOT / "CHANGELOG.md").read_text()
