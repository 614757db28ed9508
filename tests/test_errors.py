"""Errors: where something is wrong is said once, and first."""

from __future__ import annotations

import pytest

from teachonce.errors import RecordError


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("the checksum differs", "shard-3: the checksum differs"),
        ("/data/shard-3 record 7: the checksum differs", "/data/shard-3 record 7: the checksum differs"),
        ("cannot be read: it is not shard-3", "shard-3: cannot be read: it is not shard-3"),
    ],
)
def test_the_place_comes_first_and_once(message: str, expected: str) -> None:
    error = RecordError(message).at("shard-3")
    assert type(error) is RecordError
    assert str(error) == expected
    assert str(error.at("shard-3")) == expected
