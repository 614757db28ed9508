"""The pool of buffers: memory is used again when nobody holds it in whatever form, and never before."""

from __future__ import annotations

import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from teachonce.engine.buffers import MAX_BUFFERS, BufferPool


def test_an_array_has_the_shape_asked_for() -> None:
    buffers = BufferPool()
    for shape in ((4, 3), (7,), (2, 3, 4, 5), (0,), (0, 3), ()):
        array = buffers.take(shape)
        assert array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous and array.flags.writeable


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    buffers = BufferPool()
    first = buffers.take((4, 3))
    address = first.ctypes.data
    second = buffers.take((4, 3))
    assert second.ctypes.data != address
    tensor = torch.from_numpy(first)
    row = tensor[1]
    del first, tensor
    assert buffers.take((4, 3)).ctypes.data != address, "a view of a tensor of it is alive"
    del row
    assert buffers.take((4, 3)).ctypes.data == address
    assert buffers.take((2, 6)).ctypes.data == address, "another shape of this size"


def hold_rows(array: np.ndarray) -> Any:
    return array[1:][::2]


def hold_memoryview(array: np.ndarray) -> Any:
    return memoryview(array.data.cast("B"))[3:5]


def hold_array_of_memoryview(array: np.ndarray) -> Any:
    return np.frombuffer(array.data, np.uint8, 2, 4)


def hold_tensor(array: np.ndarray) -> Any:
    return torch.from_numpy(array)[:, 1:].permute(1, 0)


def hold_reshaped(array: np.ndarray) -> Any:
    return array.reshape(-1).view("<u2")


@pytest.mark.parametrize(
    "hold", [hold_rows, hold_memoryview, hold_array_of_memoryview, hold_tensor, hold_reshaped], ids=lambda f: f.__name__
)
def test_whatever_is_made_of_an_array_holds_its_memory(hold: Any) -> None:
    buffers = BufferPool()
    array = buffers.take((4, 6))
    address = array.ctypes.data
    held = hold(array)
    del array
    others = [buffers.take((4, 6)) for _ in range(3)]
    assert address not in {other.ctypes.data for other in others}
    del held
    assert buffers.take((4, 6)).ctypes.data == address


def test_a_batch_of_about_the_size_takes_the_same_memory() -> None:
    buffers = BufferPool()
    address = buffers.take((1000,)).ctypes.data
    for num_bytes in (1000, 900, 1100, 1250, 700):
        assert buffers.take((num_bytes,)).ctypes.data == address, num_bytes
    held = buffers.take((1251,))
    assert held.ctypes.data != address, "too large"
    small = buffers.take((500,))
    assert small.ctypes.data != address, "much smaller: it does not keep the large one from others"


def test_only_so_many_buffers_are_remembered() -> None:
    buffers = BufferPool()
    held = [buffers.take((2, 5)) for _ in range(2 * MAX_BUFFERS)]
    assert len({array.ctypes.data for array in held}) == 2 * MAX_BUFFERS
    assert len(buffers._buffers) == MAX_BUFFERS
    remembered = {array.ctypes.data for array in held[MAX_BUFFERS:]}
    del held
    again = [buffers.take((2, 5)) for _ in range(MAX_BUFFERS)]
    assert {array.ctypes.data for array in again} == remembered


def test_threads_never_share_a_buffer() -> None:
    buffers = BufferPool()

    def work(number: int) -> bool:
        random = np.random.default_rng(number)
        for _ in range(200):
            array = buffers.take((8, int(random.integers(12, 20))))
            value = random.integers(256)
            array[:] = value
            tensor = torch.from_numpy(array)
            del array
            if random.integers(4) == 0:
                time.sleep(0)
            if not (tensor == int(value)).all():
                return False
        return True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as often as can be, so that a race would show
    try:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(work, range(16)))
    finally:
        sys.setswitchinterval(interval)


def test_a_pool_pickles_empty() -> None:
    buffers = BufferPool()
    held = buffers.take((3, 3))
    copy = pickle.loads(pickle.dumps(buffers))
    held[:] = 1
    taken = copy.take((3, 3))
    taken[:] = 2
    assert (held == 1).all()
