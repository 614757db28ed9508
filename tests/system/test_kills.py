"""A command that is killed between any two of its files, and given again: the same folder, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from teachonce.engine.heartbeat import WORKERS_FOLDER
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.interop.config import ImportConfig, MergeConfig, RecordsConfig, ReindexConfig, UpgradeConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.csv_files import export_csv, import_csv
from teachonce.interop.merge import merge
from teachonce.interop.reindex import reindex
from teachonce.interop.upgrade import upgrade
from teachonce.storage.local import LocalStorage
from tests.support.kills import Killed, dead_writer, everything, killed_after, temporary
from tests.support.paths import ROOT
from tests.support.small_data import write_image_folder, write_shards, write_store
from tests.support.small_models import write_color_shards, write_color_teacher


def everything_but(folder: Path, *beginnings: str) -> dict[str, bytes]:
    """``everything`` but what lies in folders whose names begin so."""
    return {name: content for name, content in everything(folder).items() if not name.startswith(beginnings)}


@contextmanager
def beginning_a_second(
    at: int, folder: Path, second: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Another process's command, as it were, from start to end while file ``at`` of ``folder`` is half written."""
    put, num_begun, begun = LocalStorage._put, 0, []

    @contextmanager
    def interrupted(storage: LocalStorage, name: str, *, overwrite: bool) -> Iterator[BinaryIO]:
        nonlocal num_begun
        is_counted = (storage.root / name).is_relative_to(folder) and not name.startswith(WORKERS_FOLDER)
        is_here, num_begun = is_counted and num_begun == at, num_begun + is_counted
        with put(storage, name, overwrite=overwrite) as file:
            if is_here and not begun:
                begun.append(name)
                second()
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "_put", interrupted)
        yield begun


def build_command(name: str, folder: Path) -> Callable[[Path], object]:
    """A command over small data, as a function of its --out."""
    if name == "records":
        images = write_image_folder(folder / "images")
        return lambda out: convert_records(RecordsConfig(images=images, out=out, shards=3, num_workers=1))
    if name.startswith("extract"):
        data, teacher = write_color_shards(folder / "data"), write_color_teacher(folder / "teacher.onnx")
        worker = "0/1" if name == "extract --worker" else None
        more = {} if worker is None else {"worker": worker}
        config = {"data": data, "teacher": teacher, "policy": "crop", "views": 2, "views_per_file": 1, "device": "cpu"}
        return lambda out: extract(ExtractConfig(**config, **more, out=out))
    if name == "upgrade":
        return lambda out: upgrade(UpgradeConfig(store=ROOT / "tests/golden/store-v2-crop", out=out))
    data = write_shards(folder / "data")
    if name == "reindex":
        return lambda out: reindex(ReindexConfig(data=data, out=out, num_workers=1))
    store = write_store(folder / "store", data)
    if name == "merge":
        return lambda out: merge(MergeConfig(store=store.path, data=data, out=out, num_workers=1))
    export_csv(store.path, folder / "csv")
    return lambda out: import_csv(ImportConfig(csv=folder / "csv", data=data, out=out))


@pytest.mark.parametrize("name", ["records", "extract", "extract --worker", "import", "merge", "upgrade", "reindex"])
def test_killed_between_any_two_files_and_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, dead = build_command(name, tmp_path), dead_writer()
    with killed_after(None, tmp_path / "whole", monkeypatch) as names:
        command(tmp_path / "whole")
    expected, others = everything(tmp_path / "whole"), everything_but(tmp_path, "whole")
    assert len(names) > 4
    for num_files in range(len(names)):
        out = tmp_path / f"killed-{num_files}"
        with pytest.raises(Killed), killed_after(num_files, out, monkeypatch):
            command(out)
        left = temporary(out, dead, names[num_files].rpartition("/")[2])
        theirs = temporary(out, name="of-a-living-process")
        command(out)
        assert not left.exists() and theirs.exists(), names[num_files]
        theirs.unlink()
        assert everything(out) == expected, f"killed before {names[num_files]}"
    assert everything_but(tmp_path, "whole", "killed-") == others, "inputs"


@pytest.mark.parametrize("name", ["records", "extract", "import", "merge", "upgrade", "reindex"])
def test_what_a_killed_run_left_goes_when_there_is_nothing_to_do(name: str, tmp_path: Path) -> None:
    command = build_command(name, tmp_path)
    command(tmp_path / "out")
    expected = everything(tmp_path / "out")
    left = temporary(tmp_path / "out", dead_writer())
    notes = tmp_path / "out/.tmp-my-notes.txt"
    notes.write_text("years of work")
    (tmp_path / "out/.tmp-x").mkdir()
    command(tmp_path / "out")
    assert not left.exists() and notes.read_text() == "years of work" and (tmp_path / "out/.tmp-x").is_dir()
    notes.unlink()
    assert everything(tmp_path / "out") == expected


@pytest.mark.filterwarnings("ignore:.*files.json was not updated")
@pytest.mark.parametrize("name", ["records", "extract", "import", "merge", "reindex"])
def test_two_at_once_and_killed_neighbors(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a second one begins and ends, the first one's files stay and the folder is the same."""
    # The first one waits for the second's end while it holds the list's lock: the second must not wait for it.
    monkeypatch.setattr("teachonce.storage.remote.file_index.LOCK_SECONDS", 0.1)
    command = build_command(name, tmp_path)
    with killed_after(None, tmp_path / "whole", monkeypatch) as names:
        command(tmp_path / "whole")
    for begun in range(len(names)):
        out = tmp_path / f"both-{begun}"
        with beginning_a_second(begun, out, lambda out=out: command(out), monkeypatch) as have_begun:
            command(out)
        assert have_begun and everything(out) == everything(tmp_path / "whole"), names[begun]
