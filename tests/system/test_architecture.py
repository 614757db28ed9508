"""The walls of the house: the import line, cycles, sizes, what importing must not import, the public names."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import teachonce
from tests.support.paths import ROOT

PACKAGE = Path(teachonce.__file__).parent

# What belongs to no room, and is below all of them.
FOUNDATION = [
    *("errors", "extras", "lazy", "llvm", "native", "on_demand"),
    *("rng", "suggestions", "terminal", "versions"),
]
# A room imports only from rooms before it. The bars are the install line: what a user must install to import it.
LINE = [
    # numpy, pyarrow, xxhash, crc32c and msgspec are enough up to here,
    # options above the storage alone, as a path among them may be an address;
    *("storage", "options", "engine", "pages", "codecs", "views", "records", "store"),
    # with Pillow up to here,
    *("pixels", "data", "runs", "interop", "inspection"),
    # with torch and its libraries up to here;
    *("losses", "models", "extraction", "evaluation"),
    # Lightning,
    "training",
    # and tyro.
    "cli",
]
BARS = {
    "store": {"PIL", "torch", "tyro", "matplotlib", "rich", "jinja2"},
    "inspection": {"torch", "torchvision", "timm", "tyro", "matplotlib", "lightning", "jinja2"},
    "evaluation": {"lightning", "tyro", "tensorflow", "onnxruntime", "ray"},
    "training": {"tyro", "tensorflow", "onnxruntime", "ray"},
    "cli": {"tensorflow", "onnxruntime", "ray"},
}
"""By the last room before each bar: what importing every module up to there must not bring in."""
MAX_LINES = 500
MAX_MODULES = 14

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def dotted_name(node: ast.expr) -> str:
    """``a.b`` of what reads so, and of other expressions only what follows their last part: ``.b`` of ``f().b``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported_modules(path: Path, code: str | None = None) -> set[str]:
    """Our modules that a file imports anywhere and in whatever form: inside functions, for types, relative, by name."""
    package = ("teachonce", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text() if code is None else code)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and dotted_name(node.func).endswith(("import_module", "__import__")):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "teachonce":
                # A module, a name in a module, or a name that a room gives out (then: the room).
                known = [".".join(parts[1:end]) for end in (len(parts), len(parts) - 1)]
                found.add(next((item for item in known if item in MODULES), known[-1] or known[0]))
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """What each module imports. Not at import: every worker that collects the tests would read the whole package."""
    return {name: imported_modules(path) for name, path in MODULES.items()}


def rank(module: str) -> int:
    room = module.partition(".")[0]
    # ``python -m teachonce`` stands on top.
    return LINE.index(room) if room in LINE else len(LINE) if room == "__main__" else -1


def test_every_form_of_import_is_seen():
    path = PACKAGE / "store" / "store.py"
    for code in (
        "import teachonce.data.dataset",
        "import teachonce.data.dataset as d",
        "from teachonce.data import dataset",
        "from teachonce.data.dataset import KDDataset",
        "from ..data import dataset",
        "from ..data.dataset import KDDataset",
        "def f():\n    from importlib import import_module\n    import_module('teachonce.data.dataset')",
        "from teachonce.data import KDDataset",
    ):
        assert {name.partition(".")[0] for name in imported_modules(path, code)} == {"data"}, code
    assert imported_modules(path, "from .plan import Plan") == {"store.plan"}
    assert imported_modules(path, "from teachonce import KDDataset") == {"KDDataset"}


def test_every_module_has_its_place():
    assert sorted({name.partition(".")[0] for name in MODULES}) == sorted([*FOUNDATION, *LINE, "__main__"])
    assert all(path.is_file() for path in MODULES.values())


def test_imports_only_go_down():
    """Across rooms; what a room's modules owe each other is free of cycles."""
    wrong = []
    for module, imported in graph().items():
        room = module.partition(".")[0]
        # The package itself gives out what lies above: only its version may be asked for.
        unknown = {name for name in imported if name.partition(".")[0] not in [*FOUNDATION, *LINE, "__version__"]}
        if unknown:
            wrong.append(f"{module} imports {sorted(unknown)} from teachonce itself")
        upwards = {name for name in imported if name.partition(".")[0] != room and rank(name) >= max(rank(module), 0)}
        if upwards:
            wrong.append(f"{module} imports {sorted(upwards)}")
    assert not wrong, "\n".join(wrong)


def test_imports_have_no_cycles():
    tuple(graphlib.TopologicalSorter(graph()).static_order())


def test_modules_can_be_read_in_one_sitting():
    wrong = []
    for module, path in MODULES.items():
        text = path.read_text()
        if len(text.splitlines()) > MAX_LINES:
            wrong.append(f"{module} has {len(text.splitlines())} lines; at most {MAX_LINES}")
        if not ast.get_docstring(ast.parse(text)):
            wrong.append(f"{module} does not say what it is for")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ROOMS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_says_what_it_is_for(folder):
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert 1 <= len(modules) <= MAX_MODULES
    text = (folder / "__init__.py").read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert 1 <= len(docstring.splitlines()) <= 5
    names = getattr(sys.modules.get("teachonce") and __import__(_dotted(folder), fromlist=["_"]), "__all__", [])
    # A name beside a module of that name would be one or the other, depending on what was imported before.
    assert not set(names) & {path.stem for path in folder.iterdir()}


def _dotted(folder: Path) -> str:
    return ".".join(("teachonce", *folder.relative_to(PACKAGE).parts))


def names_for_types(code: str) -> dict[str, str]:
    """The names that an ``__init__.py`` imports under TYPE_CHECKING as themselves, with their modules."""
    return {
        alias.name: node.module
        for block in ast.walk(ast.parse(code))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname == alias.name
    }


def names_given_out(code: str, package: str) -> dict[str, str]:
    """The names of the dictionary that an ``__init__.py`` gives to ``exports``, with their modules."""
    return {
        name: f"{package}.{home}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "exports"
        for name, home in ast.literal_eval(node.args[1]).items()
    }


@pytest.mark.parametrize("folder", [PACKAGE, *ROOMS], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_type_checker_sees_the_names_that_a_room_gives_out(folder):
    """A name is listed twice, for type checkers and for ``exports``; one list would otherwise be forgotten."""
    code = (folder / "__init__.py").read_text()
    given_out = names_given_out(code, _dotted(folder))
    assert names_for_types(code) == given_out
    assert sorted(given_out) == getattr(__import__(_dotted(folder), fromlist=["_"]), "__all__", [])


def test_the_names_that_a_room_gives_out_are_there():
    """With a sentence of their own; what a dataclass has without one is its signature."""
    wrong = []
    for folder in (PACKAGE, *ROOMS):
        if not names_given_out((folder / "__init__.py").read_text(), ""):
            continue
        room = __import__(_dotted(folder), fromlist=["_"])
        if not room.__all__:
            wrong.append(f"{_dotted(folder)}.__all__ is empty")
        for name in room.__all__:
            found = getattr(room, name)
            if callable(found) and (not found.__doc__ or found.__doc__.startswith(f"{name}(")):
                wrong.append(f"{_dotted(folder)}.{name} has no sentence of its own")
    assert not wrong, "\n".join(wrong)


def test_the_import_line_is_the_install_line():
    """Importing everything up to a bar brings nothing in that stands behind it.

    One process, as what was imported up to a bar is imported up to the next: from bar to bar it says what it has.
    """
    ends = {last: LINE.index(last) for last in BARS}
    assert list(ends.values()) == sorted(ends.values())
    begins = dict(zip(ends, (-2, *ends.values()), strict=False))
    steps = [[f"teachonce.{name}" for name in MODULES if begins[bar] < rank(name) <= ends[bar]] for bar in BARS]
    assert sum(map(len, steps)) == sum(rank(name) <= max(ends.values()) for name in MODULES) and all(steps)
    code = (
        f"import importlib, json, sys\nfor names in {steps}:\n"
        "    for name in names: importlib.import_module(name)\n"
        "    print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # What a library prints when it is imported is none of the lines.
    loaded = [set(json.loads(line)) for line in done.stdout.splitlines() if line.startswith('["')]
    wrong = {bar: sorted(names & BARS[bar]) for bar, names in zip(BARS, loaded, strict=True) if names & BARS[bar]}
    assert not wrong, "up to a bar is imported what stands behind it"


def test_the_command_line_answers_without_what_runs_the_commands():
    code = "import teachonce.cli.main, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not set(loaded.split()) & {"torch", "pyarrow", "ray", "tensorflow", "numpy", "timm", "PIL"}


# fmt: off
PATH_METHODS = {
    "open", "read_bytes", "read_text", "write_bytes", "write_text", "iterdir", "glob", "rglob", "stat", "lstat",
    "exists", "is_file", "is_dir", "is_symlink", "mkdir", "unlink", "rename", "rmdir", "touch", "chmod",
    "hardlink_to", "symlink_to", "samefile",
}
"""Methods of Path that look at what is under it. ``replace`` is one too, told from str's by its one argument."""
FILE_MODULES = {
    "os": {
        "open", "listdir", "scandir", "walk", "stat", "lstat", "fstat", "read", "pread", "preadv", "write", "pwrite",
        "fdopen", "access", "remove", "unlink", "rename", "replace", "link", "symlink", "mkdir", "makedirs", "rmdir",
        "removedirs", "truncate", "utime", "chmod",
    },
    "os.path": {"exists", "lexists", "isfile", "isdir", "islink", "getsize", "getmtime", "samefile"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"},
    "np": {"load", "save", "savez", "savez_compressed", "memmap", "fromfile", "loadtxt", "savetxt"},
    "pa": {"memory_map", "OSFile", "input_stream", "output_stream"},
    "mmap": {"mmap"},
    "ElementTree": {"parse"},
    "tempfile": {"TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile", "mkdtemp", "mkstemp"},
    "glob": {"glob", "iglob"},
}
# fmt: on
"""By module, under the names that it has here: its functions that touch files. shutil.copyfileobj takes open files."""
NO_FILES = {"Image", "webbrowser"}
"""What has an ``open`` of its own: Pillow's is given bytes."""

ALLOWED_FILES = {
    # What this package or another one brings along: no path of the user's.
    "native": {"exists": "whether the native library was built"},
    "interop.imagenet": {"is_file": "timm's tables, in the folder of timm"},
    "records.containers.tar_index": {"open": "tarfile's, over a file that the storage opened"},
    # What the machine says of itself.
    "engine.machine": {"read_text": "/proc and the cgroups"},
    "extraction.planning.busy": {"read_text": "/proc/stat"},
    "cli.main": {"os.open": "/dev/null instead of an output that nobody reads any more"},
    # Scratch folders, of this process alone, for libraries that read and write files themselves.
    "evaluation.onnx_export": {"write_bytes": "what ONNX Runtime is to read back"},
    "evaluation.int8": {
        "write_bytes": "the same files, with the preprocessing inside",
        "read_bytes": "what ONNX Runtime's quantizer wrote",
        "stat": "its size",
    },
    "evaluation.quantize": {"unlink": "what ONNX Runtime's quantizer left there"},
    # Libraries that open what Storage.local_path gives them.
    "models.assembled_resnet.tf_weights": {"np.load": "an .npz, by numpy"},
    # Appended to while it is written, which no file of a storage is.
    "cli.ablate": {"mkdir": "the trainings' logs", "open": "a training's log"},
}
"""By module: what it may do to files past the storage, and to which."""


def file_accesses(code: str) -> dict[str, int]:
    """Calls in a module that touch files by themselves, with the line of one of them."""
    found = {}
    tree = ast.parse(code)
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(node.func, ast.Name):
            module, name = imported.get(node.func.id, ("builtins", node.func.id))
            if (module, name) == ("builtins", "open") or name in FILE_MODULES.get(module, ()):
                found[name] = node.lineno
        elif isinstance(node.func, ast.Attribute):
            owner, name = dotted_name(node.func.value), node.func.attr
            is_path_replace = name == "replace" and len(node.args) == 1 and not node.keywords
            if owner in FILE_MODULES:
                if name in FILE_MODULES[owner]:
                    found[f"{owner}.{name}"] = node.lineno
            elif owner not in NO_FILES and (name in PATH_METHODS or is_path_replace):
                found[name] = node.lineno
    return found


def test_every_direct_access_to_files_is_seen():
    for code in (
        "open('a')",
        "path.open('rb')",
        "(folder / 'a').read_text()",
        "[p for p in path.iterdir()]",
        "path.replace(other)",
        "os.open('a', 0)",
        "os.path.exists('a')",
        "shutil.rmtree('a')",
        "pa.memory_map('a')",
        "np.load('a')",
        "from os import scandir\nscandir('a')",
        "from tempfile import TemporaryDirectory as Folder\nFolder()",
    ):
        assert file_accesses(code), code
    for code in (
        "text.replace('a', 'b')",
        "dataclasses.replace(config, a=1)",
        "shutil.copyfileobj(a, b)",
        "Image.open(io.BytesIO(b''))",
        "os.path.splitext('a')",
        "storage.read('a'), storage.has('a'), storage.put('a')",
        "def open(a): ...",
    ):
        assert not file_accesses(code), code


def test_files_are_touched_through_the_storage():
    """Else an object store would not do where a folder does. What ALLOWED_FILES lists, and nothing more."""
    wrong = []
    for module in (name for name in MODULES if not name.startswith("storage.")):
        found = file_accesses(MODULES[module].read_text())
        allowed = ALLOWED_FILES.get(module, {})
        direct = sorted(f"{name} (line {line})" for name, line in found.items() if name not in allowed)
        if direct:
            wrong.append(f"{module} touches files itself: {direct}; use teachonce.storage")
        if gone := sorted(set(allowed) - set(found)):
            wrong.append(f"{module}: {gone} is listed and not there any more")
    assert not wrong, "\n".join(wrong)


def test_the_public_names_are_there():
    assert sorted(teachonce.__all__) == teachonce.__all__
    # What is imported on first use too, for those who look or complete.
    assert dir(teachonce) == teachonce.__all__
    for name in teachonce.__all__:
        assert getattr(teachonce, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = teachonce.missing


def test_tests_mirror_the_rooms():
    """A test file has the name and the place of the module that it tests, or lies in tests/system.

    Where one would be too long, what part of the module a further one tests follows the name: test_kernel_bad_input.
    """

    def modules(path: Path) -> list[Path]:
        words = path.stem.split("_")[1:]
        return [PACKAGE / path.parent / f"{'_'.join(words[:end])}.py" for end in range(1, len(words) + 1)]

    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    strangers = [path for path in tests if path.parts[0] != "system" and not any(map(Path.exists, modules(path)))]
    assert not strangers


def test_nothing_names_a_machine_or_a_registry():
    for path in [*MODULES.values(), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("*.lock")]:
        text = path.read_text()
        assert "://pypi" not in text and "index-url" not in text, path


def test_everything_is_printed_through_the_terminal():
    """Else a name from a file reaches the terminal as it is."""
    wrong = [
        f"{module}, line {call.lineno}"
        for module, path in MODULES.items()
        if module != "terminal"
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    ]
    assert not wrong, "\n".join(wrong)
