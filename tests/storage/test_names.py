"""Names out of files that become parts of paths."""

from __future__ import annotations

import pytest

from teachonce.errors import StoreError
from teachonce.storage.names import check_component


@pytest.mark.parametrize(
    "name", ["train", "train-00000-of-00002", "a.b", "...", ".hidden", "Größe", "a b", "a:b", "x" * 300]
)
def test_a_file_of_a_folder(name: str) -> None:
    assert check_component(name, "where", StoreError) == name


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../a", "/etc", "a\\b", "a\0b", "a\nb", "\x1b[1m", "\x7f"])
def test_what_leads_elsewhere_or_is_no_name(name: str) -> None:
    with pytest.raises(StoreError, match=r"^plan: field: ") as error:
        check_component(name, "plan: field", StoreError)
    assert str(error.value).isprintable()


def test_a_long_name_is_shown_in_part() -> None:
    with pytest.raises(StoreError) as error:
        check_component("x/" * 500, "w", StoreError)
    assert len(str(error.value)) < 250
