"""Fixtures that several test files share: the real data, where it is there."""

from __future__ import annotations

import itertools
import os
import signal
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.support import blank_curves

blank_curves.install()

# A shell that starts the tests in the background has them, and the programs that they start, ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Small tensors on a busy machine: threads that spin while they wait for a core cost ten times what they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# TensorFlow and Triton (PyTorch's) each bring an LLVM. In this order they get along; in the other one the second ends
# the process, as soon as a test imports torchvision after another one imported TensorFlow.
with suppress(ImportError):
    import triton  # noqa: F401

# Shapes and dtypes in signatures are checked wherever a test calls these modules.
install_import_hook(["teachonce.losses"], "beartype.beartype")

# A busy machine is no failure; the number of examples bounds the time.
settings.register_profile("teachonce", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("teachonce")

# What would outlast a crash of the machine is not tested, and a wait for the disk is 5 ms a file and another a folder.
os.fsync = lambda fd: None  # type: ignore[assignment]

_TESTS = itertools.count()

REPOSITORY = Path(__file__).resolve().parents[1]

# The list of the machine's fonts takes seconds to make and depends on nothing here, so it alone is kept.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))


@pytest.hookimpl(tryfirst=True)  # xdist looks at these marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module, or TensorFlow, run in one process: each would make it for itself."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
        shares = any(definitions[-1].scope == "module" for definitions in fixtures.values())
        if item.get_closest_marker("xdist_group") is not None:
            continue
        # Most modules' own fixtures are made within a second, TensorFlow is imported in seven.
        if "tensorflow" in fixtures:
            item.add_marker(pytest.mark.xdist_group("tensorflow"))
        elif shares:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Curves are drawn with ink for the tests that look at them."""
    blank_curves.choose(item)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for what fixtures of the session read."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty, of this test alone: nothing is read from the real one or written to it."""
    # By a number of our own: pytest would list all folders of earlier tests to find one.
    folder = session_cache / "of tests" / str(next(_TESTS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (TEACHONCE_SHARED_DATA, else ../shared/data beside the repository), or a skip."""
    folder = Path(os.environ.get("TEACHONCE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def imagenet_sample(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/SYNSET/*.JPEG: 250 ImageNet images, one a class."""
    archive = shared_data / "imagenet-sample.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {shared_data}")
    folder = tmp_path_factory.mktemp("imagenet-sample")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def tensorflow() -> Any:
    """The module, imported only by the tests that compare with it: that takes seconds."""
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="session")
def exporter() -> Any:
    from tests.support.onnx_exports import OnceForEachNetwork

    return OnceForEachNetwork(pytest.importorskip("torch").onnx.export)


@pytest.fixture(scope="module")
def onnx_exports(exporter: Any) -> Iterator[None]:
    """PyTorch's exporter runs once for each network, for all modules of the group "onnx" that ask for this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.onnx.export", exporter)
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 96 training and 48 validation images of handwritten digits, 16 px."""
    from tests.support.small_data import write_digits

    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits_store(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store (policy center) over ``digits``."""
    from teachonce.records.discovery import open_records
    from tests.support.small_data import teacher_logits, write_store

    source = open_records(digits, "train")
    path = tmp_path_factory.mktemp("store") / "digits"
    write_store(path, source, teacher_logits(source), offset=0)
    return path


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of an S3 server in this process."""
    from tests.support.object_stores import start_moto

    with start_moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ceph's S3 server, or a skip. Its tests are slow ones of the group "gateway", so that there is one server."""
    from tests.support.object_stores import start_gateway

    with start_gateway(tmp_path_factory.mktemp("rgw") / "server", 19104) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an account of Azurite, Microsoft's emulator of Azure's blobs, or a skip."""
    from tests.support.object_stores import start_azurite

    with start_azurite(tmp_path_factory.mktemp("azurite") / "server") as endpoint:
        yield endpoint
