"""One component of a path, and nothing that leads out of its folder."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.errors import ConfigError, StoreError
from teachonce.storage.names import check_component

HOSTILE = [
    *("", ".", "..", "/", "/etc/passwd", "../x", "../../x", "a/b", "a/", "train/../..", "./train", "a//b"),
    *("..\\x", "a\\b", "C:\\x", "\\\\host\\x", "a\0", "\0", "a\nb", "a\r", "\x1b[2J", "a\x7f", "a\x85b"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_leads_elsewhere_is_refused_in_one_line(name):
    with pytest.raises(StoreError, match=r"^plan\.json: split: .*expected the name of one file") as found:
        check_component(name, "plan.json: split", StoreError)
    assert "\n" not in str(found.value) and "\0" not in str(found.value) and "\x1b" not in str(found.value)


@pytest.mark.parametrize(
    "name", ["train", "a b", "-x", "...", "..a", "a..", "n01440764", "Übung", "a:b", "train-0.csv"]
)
def test_plain_names_are_given_back(name):
    assert check_component(name, "split", ConfigError) == name


def test_a_long_name_is_cut_in_the_message():
    with pytest.raises(ConfigError) as found:
        check_component("x/" * 10_000, "split", ConfigError)
    assert len(str(found.value)) < 250


@given(st.text(max_size=8) | st.text(alphabet="./\\a\0", max_size=6))
def test_whatever_passes_stays_in_its_folder(name):
    try:
        check_component(name, "name", ConfigError)
    except ConfigError:
        return
    path = Path("/folder") / name
    assert path.parent == Path("/folder") and path.name == name
