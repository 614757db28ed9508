"""What commands print of their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.cli.output import show_verdict
from teachonce.extraction.config import VerifyConfig
from teachonce.extraction.verify import Verdict, verify
from tests.support.small_data import change_image, write_shards, write_store


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("{store}: top-1 is another; extract again", "top-1 is another; extract again"),
        ("{store}/a.arrow: block 3 is damaged; restore it", "a.arrow: block 3 is damaged; restore it"),
        ("data record 1: label 2, the store {store} has 1", "data record 1: label 2, the store has 1"),
        ("{store}-other: stays", "{store}-other: stays"),
    ],
)
def test_a_verdict_names_the_store_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: str, shown: str
) -> None:
    store = tmp_path / "store"
    config = VerifyConfig(store=store, data=tmp_path)
    assert show_verdict(Verdict(reason=reason.format(store=store), num_files=2), config) == 1
    checked = "2 files, 0 keys, top-1 of 0 blocks, pixels of 0 and logits of 0 views"
    assert capsys.readouterr().out == f"{store}: NOT sound after {checked}: {shown.format(store=store)}\n"


def test_a_store_of_other_data_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data)
    change_image(data / "train-00000-of-00002", 1)
    config = VerifyConfig(store=store.path, data=data, device="cpu")
    assert show_verdict(verify(config), config) == 1
    assert capsys.readouterr().out.count(str(store.path)) == 1
