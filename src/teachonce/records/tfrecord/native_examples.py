"""Where image, label and logits are in serialized Examples, found by the native library; Python does it without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.native import Buffer, addresses, lengths, load_library

FOUND = np.dtype(
    [
        ("image", np.int64, 2),
        ("filename", np.int64, 2),
        ("logits", np.int64, 2),
        ("body", np.int64, 2),
        ("splice", np.int64, 2),
        ("label", np.int64),
        ("encoded_xxh3", np.uint64),
        ("original_key", np.uint64),
        ("has_label", np.int32),
        ("has_encoded_xxh3", np.int32),
        ("has_original_key", np.int32),
        ("status", np.int32),
    ]
)
"""struct found: start and end of what an Example holds, 0 and 0 for what it does not; status 0: found. ``splice``: what
a new ``image/logit`` takes the place of. The keys are there only of a record that was rewritten."""


def find_features(payloads: Sequence[Buffer]) -> NDArray[Any] | None:
    """Where image, filename, label and logits are in serialized Examples (FOUND); None without the library."""
    library = load_library()
    if library is None:
        return None
    found = np.empty(len(payloads), FOUND)
    pointers, sizes = addresses(payloads), lengths(payloads)
    library.teachonce_find(pointers.ctypes.data, sizes.ctypes.data, len(payloads), found.ctypes.data)
    return found
