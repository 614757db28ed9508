"""Build wheel and sdist, check names and tags, install each and use it without torch; ``--full``: the demo too."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from teachonce.extras import EXTRAS
from tests.support.paths import GOLDEN, ROOT

TAG = "manylinux2014_x86_64"
GLIBC_MINOR = 17
"""The tag's: glibc 2.17 is what the library may ask for; auditwheel says what it does ask for."""
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
STORE = GOLDEN / "store-v3-int8"
USE = f"""
import sys, warnings
warnings.simplefilter("error")
from teachonce import Store, __version__
from teachonce.pixels.kernel import describe_decoder, load_kernel
assert load_kernel() is not None, describe_decoder()
print(sys.version.split()[0], describe_decoder(), Store({str(STORE)!r}).num_records, "records", sep=", ")
try:
    from teachonce import kd_loss
except ImportError as error:
    assert str(error).endswith("pip install 'teachonce[torch]'"), error
else:
    raise AssertionError("torch was installed with the base")
"""


def main() -> None:
    """Exit code 1 with the output of the first step that fails."""
    parser = argparse.ArgumentParser(prog="tests.release", description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder for wheel and sdist, emptied first")
    parser.add_argument("--full", action="store_true", help="the wheel with all extras too, and the demo")
    options = parser.parse_args()
    try:
        wheel, sdist = build(options.dist.absolute())
        for python in find_pythons():
            for artifact in (wheel, sdist):
                use_light(artifact, python)
        if options.full:
            use_all(wheel)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))}: exit code {error.returncode}\n{error.stdout or ''}")


def build(dist: Path) -> tuple[Path, Path]:
    """(wheel, sdist); the wheel is built from the sdist, so that lacks nothing."""
    shutil.rmtree(dist, ignore_errors=True)
    is_manylinux = platform.system() == "Linux" and platform.machine() == "x86_64"
    tag = [f"--config-setting=--build-option=--plat-name={TAG}"] if is_manylinux else []
    run(_tool("uv"), "build", "--quiet", "--out-dir", dist, *tag, ROOT)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    run(_tool("twine"), "check", "--strict", wheel, sdist)
    if is_manylinux:
        assert wheel.name.endswith(f"-py3-none-{TAG}.whl"), wheel.name
        found = run(_tool("auditwheel"), "show", wheel).replace("\n", " ")
        match = re.search(r'consistent with the following platform tag: "manylinux_2_(\d+)_x86_64"', found)
        assert match is not None and int(match[1]) <= GLIBC_MINOR, found
    for path in (wheel, sdist):
        print(f"{path}: {path.stat().st_size:,} bytes", flush=True)
    return wheel, sdist


def find_pythons() -> Iterator[str]:
    """Those of ``PYTHONS`` that this machine has; the others are named."""
    for version in PYTHONS:
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        candidates = [f"python{version}", *map(str, pyenv.glob(f"{version}.*/bin/python"))]
        found = [path for path in candidates if shutil.which(path) and _is_python(path)]
        if found:
            yield found[0]
        else:
            print(f"Python {version} is not on this machine: not tried", flush=True)


def _is_python(path: str) -> bool:
    """Whether it runs: a shim of pyenv is there for versions that are not switched on."""
    return subprocess.run([path, "-c", "import ssl"], capture_output=True).returncode == 0


def use_light(artifact: Path, python: str) -> None:
    """Install it alone into an empty environment: help, a store, the kernel, and the line that names an extra."""
    with tempfile.TemporaryDirectory() as folder:
        bin_folder = install(artifact, python, Path(folder))
        packages = run(_tool("uv"), "pip", "list", "--quiet", "--python", bin_folder / "python")
        names = {line.split()[0] for line in packages.splitlines()[2:]}
        assert not names & {"scikit-learn", *(name for modules in EXTRAS.values() for name in modules)}, names
        run(bin_folder / "teachonce", "--help", cwd=folder)
        assert f"{STORE}" in run(bin_folder / "teachonce", "inspect", STORE, cwd=folder)
        used = run(bin_folder / "python", "-c", USE, cwd=folder)
        print(f"{artifact.name}: {len(names)} packages, Python {used.strip()}", flush=True)


def use_all(wheel: Path) -> None:
    """Install it with every extra, and run the demo from there."""
    with tempfile.TemporaryDirectory() as folder:
        bin_folder = install(Path(f"{wheel}[all]"), sys.executable, Path(folder))
        subprocess.run([bin_folder / "teachonce", "demo", "--out", "demo"], cwd=folder, env=clean(), check=True)


def install(requirement: Path, python: str, folder: Path) -> Path:
    """The ``bin`` of a new environment in ``folder`` that holds ``requirement``."""
    environment = folder / "environment"
    run(_tool("uv"), "venv", "--quiet", "--python", python, environment)
    run(_tool("uv"), "pip", "install", "--quiet", "--python", environment / "bin" / "python", requirement)
    return environment / "bin"


def run(*words: object, cwd: str | None = None) -> str:
    """The output of a command that must end with 0."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command, cwd=cwd, env=clean(), check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout


def clean() -> dict[str, str]:
    """The environment without what would let this checkout in."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _tool(name: str) -> Path:
    return Path(sys.executable).with_name(name)


if __name__ == "__main__":
    main()
