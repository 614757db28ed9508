"""Sequences whose items are made when they are asked for."""

import pytest

from teachonce.on_demand import OnDemand


def test_it_is_a_sequence_whose_items_are_made_when_asked_for() -> None:
    made: list[int] = []

    def square(index: int) -> int:
        made.append(index)
        return index * index

    squares = OnDemand(5, square)
    assert len(squares) == 5 and made == []
    assert squares[3] == 9 and squares[-1] == 16 and made == [3, 4]
    assert squares[1::2] == [1, 9] and list(squares) == [0, 1, 4, 9, 16]
    assert squares == [0, 1, 4, 9, 16] and squares == OnDemand(5, square)
    assert squares != [0, 1] and squares != 5 and 9 in squares
    for index in (5, -6):
        with pytest.raises(IndexError):
            squares[index]
    with pytest.raises(TypeError, match="unhashable"):
        hash(squares)
