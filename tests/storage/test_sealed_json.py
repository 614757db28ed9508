"""Sealed JSON: what is read is what was written, to the bit, and the first of several writers wins."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from teachonce.errors import CheckError, StoreError
from teachonce.storage.files import open_storage
from teachonce.storage.sealed_json import read_sealed, sealed_bytes, write_sealed

VALUE = {"name": 'Größe "x"\n', "list": [1, 2.5, None, True], "object": {"xxh3": "0" * 32}, "empty": []}
NAME = "a.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_sealed(open_storage(tmp_path), NAME, VALUE)
    return tmp_path / NAME


def read(path: Path) -> tuple[dict[str, Any], str]:
    return read_sealed(open_storage(path.parent), path.name, StoreError, "do this")


def test_what_was_written_is_read(path: Path) -> None:
    value, seal = read(path)
    assert value == VALUE and list(value) == list(VALUE)
    raw = path.read_bytes()
    assert json.loads(raw) == VALUE | {"xxh3": seal} and raw.endswith(f'"xxh3": "{seal}"\n}}\n'.encode())
    assert len(raw) - raw.rindex(seal.encode()) == 32 + len('"\n}\n')
    # The specification: the hash of the bytes with zeros in its place, which is the last of its kind.
    at = raw.rindex(seal.encode())
    assert xxhash.xxh3_128_hexdigest(raw[:at] + b"0" * 32 + raw[at + 32 :]) == seal


@given(
    st.dictionaries(
        st.text().filter(lambda name: name != "xxh3"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_any_object_comes_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    try:
        content = sealed_bytes(value)
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON could not hold either
        return
    (folder / NAME).write_bytes(content)
    assert read(folder / NAME)[0] == value


def test_every_flipped_bit_is_refused(path: Path) -> None:
    good = path.read_bytes()
    for at in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
            with pytest.raises(StoreError) as error:
                read(path)
            line = str(error.value)
            assert line.startswith(f"{path}: ") and line.endswith("; do this") and "\n" not in line, (at, bit)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("2.5", "2.50"),
        lambda text: text.replace('\n "', '\n  "'),
        lambda text: json.dumps(json.loads(text)),
        lambda text: json.dumps(json.loads(text), indent=1) + "\n",
        lambda text: text.replace('"empty": []', '"empty": [1]'),
        lambda text: "",
        lambda text: "{}",
        lambda text: text[text.rindex('"xxh3"') - 1 :],
    ],
)
def test_every_edit_is_refused(path: Path, change: Any) -> None:
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text), newline="")
    with pytest.raises(StoreError, match=rf"{NAME}: (does not end with its hash|its bytes have the hash)"):
        read(path)


def test_what_is_sealed_and_still_no_object(tmp_path: Path) -> None:
    for body, message in ((b"[1,", "is not JSON"), (b'["', "is not JSON")):
        text = body + b'"xxh3": "' + b"0" * 32 + b'"\n}\n'
        seal = xxhash.xxh3_128_hexdigest(text).encode()
        (tmp_path / NAME).write_bytes(text.replace(b"0" * 32, seal))
        with pytest.raises(StoreError, match=message):
            read(tmp_path / NAME)


def test_the_class_of_the_error_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=rf"{NAME}: cannot be read: No such file or directory; then"):
        read_sealed(open_storage(tmp_path), NAME, CheckError, "then")


def test_the_first_writer_wins(path: Path) -> None:
    before = path.read_bytes()
    write_sealed(open_storage(path.parent), NAME, {"other": 1})
    assert path.read_bytes() == before


def test_of_many_at_once_one_wins_and_is_whole(tmp_path: Path) -> None:
    def write(number: int) -> dict[str, Any]:
        write_sealed(open_storage(tmp_path), NAME, {"number": number, "more": "x" * 5000})
        return read(tmp_path / NAME)[0]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(write, range(32)))
    assert all(value == found[0] for value in found)


def test_what_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    """With a hash that holds."""
    content = b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b',\n"xxh3": "' + b"0" * 32 + b'"\n}\n'
    seal = xxhash.xxh3_128_hexdigest(content).encode()
    (tmp_path / NAME).write_bytes(content.replace(b"0" * 32, seal))
    with pytest.raises(StoreError, match=r"a\.json: is not JSON: nested more than 64 deep; do this"):
        read(tmp_path / NAME)
