"""The card of a store: what it says, whose license it keeps, and that it is nothing to readers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from teachonce.cli.main import main, parse_command
from teachonce.extraction.extract import extract
from teachonce.store.begin import begin_store
from teachonce.store.card import CARD_NAME, render_card, write_card
from teachonce.store.manifests import finalize_store
from teachonce.store.plan_files import read_plan
from teachonce.store.store import Store
from tests.support.kills import everything
from tests.support.small_data import write_store
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.small_stores import fill, make_plan

IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM6")


def make_store(path: Path, num_views: int = 3) -> Store:
    fill(path, begin_store(path, make_plan(num_views=num_views), views_per_file=2))
    finalize_store(path)
    return Store(path)


def test_what_it_says(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    write_card(store, "MIT; research only")
    card = (store.path / CARD_NAME).read_text()
    hits = sum(sum(store.read_hits(shard, group) or []) for shard in (0, 1) for group in ((0, 1), (2, 2)))
    for expected in (
        "# 8 records x 3 views: logits of `timm:x`",
        "| teacher | `timm:x`, 7 classes, weights with SHA-256 `ab`, computed in `float32` |",
        "| its license and terms | MIT; research only |",
        "| data | split `train`, 8 records in 2 shards, 8 labels; the teacher's first class is label 1 |",
        "| views | 3 a record, drawn by `crop (",
        f"| codec | `int8 (power 1.5)`, {store.num_bytes() / 24:,.0f} bytes a view |",
        f"| accuracy | top-1 {hits / 24:.4f} of the stored logits, over all views |",
        f"| bytes | {store.num_bytes():,} |",
        "| made by | `python 3` on `cpu` |",
        f"fingerprint: {store.fingerprint}\n",
    ):
        assert expected in card
    # The same store anywhere has the same card.
    other = make_store(tmp_path / "other")
    write_card(other, "MIT; research only")
    assert everything(other.path) == everything(store.path)
    # Its commands are commands.
    (block,) = re.findall(r"```bash\n(.*?)```", card, flags=re.DOTALL)
    for line in block.splitlines():
        parse_command(line.split()[1:])


def test_the_license_stays(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store").path
    write_card(Store(path))
    assert "not given" in (path / CARD_NAME).read_text() and "teacher_license" not in (path / CARD_NAME).read_text()
    text = 'Apache-2.0, "as is"\nno | warranty ![x](y.png) <img src=y>\x1b[2J'
    write_card(Store(path), text)
    card = (path / CARD_NAME).read_text()
    assert json.loads(re.findall(r"^teacher_license: (.*)$", card, flags=re.MULTILINE)[0]) == text
    assert "![x]" not in card.partition("---\n#")[2] and "<img" not in card.partition("---\n#")[2].replace("\\<img", "")
    assert "\x1b" not in card
    before = (path / CARD_NAME).stat().st_mtime_ns
    write_card(Store(path))
    assert (path / CARD_NAME).stat().st_mtime_ns == before
    write_card(Store(path), "MIT")
    assert '\nteacher_license: "MIT"\n' in f"\n{(path / CARD_NAME).read_text()}"
    # More views: renewed, with the license.
    plan = begin_store(path, make_plan(num_views=6), views_per_file=2)
    fill(path, plan)
    finalize_store(path)
    write_card(Store(path))
    card = (path / CARD_NAME).read_text()
    assert "8 records x 6 views" in card and 'teacher_license: "MIT"' in card


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'teacher_license: "\\ud8"\nfingerprint: 12', b"# mine"])
def test_a_card_that_somebody_edited(content: bytes, tmp_path: Path) -> None:
    path = make_store(tmp_path / "store").path
    (path / CARD_NAME).write_bytes(content)
    before = read_plan(path), Store(path).fingerprint
    assert Store(path).check_files() == 7
    write_card(Store(path))
    assert (path / CARD_NAME).read_text() == render_card(Store(path), None)
    assert (read_plan(path), Store(path).fingerprint) == before


def test_accuracy_that_is_not_known(tmp_path: Path) -> None:
    plan = make_plan(num_views=2)
    mixed = plan.policy | {"mix": {"mixup_alpha": 0.2, "cutmix_alpha": 0.0, "prob": 1.0, "cutmix_prob": 0.5}}
    store = make_store(tmp_path / "store", num_views=2)
    object.__setattr__(store.plan, "policy", mixed)
    store.policy, _ = store.plan.read_policy()
    assert "accuracy | not given: views are mixed" in render_card(store, None)


def test_extract_writes_it_and_no_image(tmp_path: Path) -> None:
    data = write_color_shards(tmp_path / "data")
    teacher = write_color_teacher(tmp_path / "teacher.onnx")
    words = ["--data", str(data), "--teacher", teacher, "--out", str(tmp_path / "store"), "--device", "cpu"]
    words += ["--policy", "crop", "--gate-samples", "0"]
    assert extract(parse_command(["extract", *words, "--views", "1", "--teacher-license", "CC-BY 4.0"]))
    first = (tmp_path / "store" / CARD_NAME).read_text()
    assert "| its license and terms | CC-BY 4.0 |" in first
    assert extract(parse_command(["extract", *words, "--views", "2"]))
    second = (tmp_path / "store" / CARD_NAME).read_text()
    assert "x 2 views" in second and "CC-BY 4.0" in second and second != first
    # A store that was complete before there were cards gets one, and the terms can be given later.
    (tmp_path / "store" / CARD_NAME).unlink()
    before = everything(tmp_path / "store")
    assert extract(parse_command(["extract", *words, "--views", "2", "--teacher-license", "CC-BY 4.0"]))
    after = everything(tmp_path / "store")
    assert after.pop(CARD_NAME).decode() == second and after == before
    for name, content in after.items():
        assert name.endswith((".json", ".arrow"))
        assert not any(start in content for start in IMAGE_STARTS[:2]), name
    assert "![" not in second and "<img" not in second


def test_import_writes_it(tmp_path: Path) -> None:
    data = write_color_shards(tmp_path / "data")
    write_store(tmp_path / "store", data, num_classes=4, offset=0)
    for words in (
        ["export-logits", str(tmp_path / "store"), "--format", "csv", "--out", str(tmp_path / "csv")],
        [
            "import",
            str(tmp_path / "csv"),
            "--data",
            str(data),
            "--out",
            str(tmp_path / "again"),
            "--teacher-license",
            "X",
        ],
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
    card = (tmp_path / "again" / CARD_NAME).read_text()
    assert "| its license and terms | X |" in card and "logits of `csv`" in card


def test_it_needs_no_torch() -> None:
    code = "import sys, teachonce.store.card; print('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
