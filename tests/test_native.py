"""The native library's file, and what is said where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import teachonce
from teachonce.native import load_library
from tests.support.paths import ROOT
from tests.support.small_data import write_shards, write_store

PACKAGE = Path(teachonce.__file__).parent
WARNING = "teachonce: warning: the native library is not used"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with the package as it is where there is no C compiler."""
    shutil.copytree(PACKAGE, tmp_path / "lib" / "teachonce", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path / "lib"


def run(lib: Path, *words: object, **environment: str) -> list[str]:
    """What a command says on stderr, with the package of a folder."""
    code = "import sys; from teachonce.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(lib)} | environment, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_one_file_serves_every_python():
    """Its name has no version of Python, and nothing of Python is in it: another one's wheel would be silently slow."""
    if load_library() is None:
        pytest.skip("the native library was not built")
    content = (PACKAGE / "_native.so").read_bytes()
    assert b"Py_" not in content and b"PyInit" not in content
    assert [path.name for path in PACKAGE.glob("_native*")] == ["_native.so"]


def test_without_it_a_command_says_so_once(copied: Path, tmp_path: Path):
    """In however many processes; the results are the same."""
    data = write_shards(tmp_path / "data", sizes=(5, 4, 3))
    store = write_store(tmp_path / "store", data)
    said = run(copied, "merge", store.path, "--data", data, "--out", tmp_path / "slow", "--num-workers", 2)
    assert [line for line in said if line.startswith(WARNING)] == [
        f"{WARNING} (it was not built; install a wheel, or install with a C compiler): reading records and rendering "
        "views are slower, results are the same; set TEACHONCE_NATIVE=0 to silence this warning"
    ]
    said = run(ROOT / "src", "merge", store.path, "--data", data, "--out", tmp_path / "fast", TEACHONCE_NATIVE="0")
    assert not any(line.startswith(WARNING) for line in said)
    for path in (tmp_path / "fast").glob("train-*"):
        assert path.read_bytes() == (tmp_path / "slow" / path.name).read_bytes()


def test_one_that_cannot_be_loaded_is_named_with_the_reason(copied: Path, tmp_path: Path):
    """As one of another platform."""
    (copied / "teachonce" / "_native.so").write_bytes(b"no library")
    data = write_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data)
    said = run(copied, "merge", store.path, "--data", data, "--out", tmp_path / "merged")
    (line,) = [line for line in said if line.startswith(WARNING)]
    assert str(copied / "teachonce" / "_native.so") in line and "reading records and rendering views are slower" in line


NO_FUNCTIONS = "void teachonce_find(void) {}"
ANOTHER_LAYOUT = "long long teachonce_layout(void) { return 3; }" + "".join(
    f"void {name}(void) {{ __builtin_trap(); }}"
    for name in ("teachonce_find", "teachonce_read_frames", "teachonce_read_numbers", "teachonce_rewrite")
)


@pytest.mark.parametrize("source", [NO_FUNCTIONS, ANOTHER_LAYOUT], ids=["no functions", "another layout"])
def test_one_built_from_other_sources_is_not_called(copied: Path, tmp_path: Path, source: str):
    """As one of an older checkout, which lacks functions, or whose structs are others."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler")
    (tmp_path / "old.c").write_text(source)
    library = copied / "teachonce" / "_native.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "old.c")], check=True)
    data = write_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data)
    said = run(copied, "merge", store.path, "--data", data, "--out", tmp_path / "merged")
    assert any("built from other sources; install again" in line for line in said if line.startswith(WARNING))


def test_views_of_a_pillow_that_cannot_be_bound_say_so(tmp_path: Path):
    """Pillow with a libjpeg that does not show its functions: the records are read natively, the views are not made."""
    code = (
        "import sys, types, warnings\n"
        "from PIL import Image\n"
        "from teachonce.native import load_library\n"
        "from teachonce.pixels import kernel\n"
        "assert load_library() is not None\n"
        "kernel.Image = types.SimpleNamespace(core=types.SimpleNamespace(__file__=sys.modules['_ctypes'].__file__))\n"
        "with warnings.catch_warnings(record=True) as found:\n"
        "    warnings.simplefilter('always')\n"
        "    assert kernel.load_kernel() is None and kernel.load_kernel() is None\n"
        "print(*(warning.message for warning in found), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("the native library is not used (Pillow's libjpeg lacks functions)")
