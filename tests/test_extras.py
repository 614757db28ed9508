"""The one line that a missing extra is, and that its table is that of pyproject.toml."""

from __future__ import annotations

import pickle
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from teachonce.errors import MissingExtraError
from teachonce.extras import EXTRAS, missing_extras, require
from tests.support.light_install import ALL_EXTRAS, run_hiding
from tests.support.paths import ROOT

DISTRIBUTIONS = {"sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
"""By module: what it is installed by, where that has another name."""


def read_pyproject() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By extra ("" for none): the names of its distributions, and the other extras that it takes in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own, taken = {}, {}
    for extra, requirements in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        extras = [match[1].split(",") for item in requirements if (match := re.match(r"teachonce\[(.*)\]", item))]
        taken[extra] = {name for names in extras for name in names}
        own[extra] = {re.split(r"[\[><=]", item)[0] for item in requirements if not item.startswith("teachonce[")}
    return own, taken


def test_the_table_is_that_of_pyproject():
    own, taken = read_pyproject()
    assert {name: {DISTRIBUTIONS.get(module, module) for module in EXTRAS[name]} for name in EXTRAS} == {
        name: names for name, names in own.items() if name in EXTRAS
    }
    assert set(own) == {"", *EXTRAS, "all", "dev", "examples"}
    assert taken["all"] == set(EXTRAS) and not own["all"]
    assert taken["dev"] == {"all"}


def test_every_import_of_the_package_is_a_dependency():
    """Of this package's own modules: what they import is the standard library's, in the base or in an extra."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        found |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    installed = packages_distributions()
    imported = {name for name in found if name in installed and name != "teachonce"}
    own, _ = read_pyproject()
    base = {"PIL" if name == "pillow" else name for name in own[""]}
    # triton comes with torch; the others are used where somebody installed them.
    assert imported - base - set(ALL_EXTRAS) <= {"triton", "tensorflow_hub", "boto3"}


@pytest.mark.parametrize(("extra", "module"), [(extra, name) for extra, names in EXTRAS.items() for name in names])
def test_what_is_missing_is_one_line_with_the_command(extra: str, module: str):
    expected = f"students needs {module}, which is not installed: pip install 'teachonce[{extra}]'"
    with pytest.raises(MissingExtraError, match=re.escape(expected)) as found, missing_extras("students"):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert isinstance(found.value, ImportError)
    assert str(pickle.loads(pickle.dumps(found.value))) == expected


@pytest.mark.parametrize("name", ["torch.no_such_part", "no_such_library", None])
def test_what_is_no_extra_or_broken_stays_what_it_is(name: str | None):
    with pytest.raises(ModuleNotFoundError) as found, missing_extras("students"):
        raise ModuleNotFoundError("No module", name=name)
    assert type(found.value) is ModuleNotFoundError


def test_require_imports_nothing(tmp_path: Path):
    code = "import sys; from teachonce.extras import require; require('torch', 'lightning', purpose='x')\n"
    assert (
        run_hiding((), code + "assert not {'torch', 'lightning'} & set(sys.modules)", folder=tmp_path).returncode == 0
    )
    hidden = run_hiding(("lightning",), code, folder=tmp_path)
    assert hidden.stderr.splitlines()[-1].endswith(
        "MissingExtraError: x needs lightning, which is not installed: pip install 'teachonce[train]'"
    )


def test_a_library_of_no_extra_has_its_own_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("teachonce.extras.find_spec", lambda name: None)
    expected = "--logger wandb needs wandb, which is not installed: pip install wandb"
    with pytest.raises(MissingExtraError, match=f"^{expected}$"):
        require("wandb", purpose="--logger wandb")


def test_require_finds_what_is_there():
    require("torch", "sklearn", purpose="these tests")


def test_public_names_say_what_is_missing(tmp_path: Path):
    """Every name of the package without any extra: it is there, or one line says which extra it needs."""
    code = (
        "import teachonce\n"
        "for name in teachonce.__all__:\n"
        "    try: exec(f'from teachonce import {name}'); print(name)\n"
        "    except ImportError as error: print(name, type(error).__name__, error, sep=': ')\n"
    )
    done = run_hiding(ALL_EXTRAS, code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    needed = {line.partition(":")[0]: line for line in lines if ":" in line}
    assert set(needed) == {
        *("evaluate", "export_run", "kd_loss", "load_model", "register_models", "train"),
    }
    for name, line in needed.items():
        pattern = rf"{name}: MissingExtraError: teachonce\.{name} needs \w+, which is not installed: pip install '.*'"
        assert re.fullmatch(pattern, line), line
    assert needed["kd_loss"].endswith("needs torch, which is not installed: pip install 'teachonce[torch]'")
