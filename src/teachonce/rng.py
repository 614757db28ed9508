"""The one place where random generators are made.

A generator is a function of (seed, key...): never of worker, rank, batch size or order, and never of ``seed + epoch``
(streams of neighboring seeds would overlap). The parts are hashed to a 128-bit Philox key, so that distinct tuples
give independent streams. NumPy promises no stability of streams across its versions; therefore what is drawn is
stored (see ``views``), never the seed alone.
"""

from __future__ import annotations

import struct

import numpy as np
import xxhash


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """A generator for this (seed, key...); integers may be any 64-bit value, signed or not."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, *key)))


def derive_seed(seed: int, *key: int | str) -> int:
    """A 63-bit integer from (seed, key...), for libraries that need their own seed."""
    return _digest(seed, *key) >> 65


def _digest(*parts: int | str) -> int:
    # Each part is written with its type and length, so that ("ab", "c") and ("a", "bc") differ.
    packed = bytearray()
    for part in parts:
        if isinstance(part, str):
            text = part.encode()
            packed += b"s" + struct.pack("<Q", len(text)) + text
        else:
            packed += b"i" + struct.pack("<Q", int(part) & 0xFFFF_FFFF_FFFF_FFFF)
    return xxhash.xxh3_128_intdigest(bytes(packed))
