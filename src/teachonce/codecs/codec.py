"""What a codec is: a row of teacher logits becomes bytes, and comes back.

A codec is a frozen dataclass whose JSON is its entry in a store's plan. Values stay in log space: the temperature is
chosen when a student is trained, never when the logits are stored, and nothing is ever softened or renormalised.
Rows that are not finite are refused: a NaN stored once would be a NaN in every student.

Deliberately not here: the codecs (``codec_dense``, ``codec_topk``) and their names (``codec``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import LogitsError

Columns = Mapping[str, NDArray[Any]]
"""Named arrays, each with the record axis first."""


class Codec(Protocol):
    """What a codec can do; ``name`` is its entry in ``CODECS``."""

    name: ClassVar[str]

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns for logits [N, C]; raises LogitsError where one is not finite."""

    def decode_logits(self, columns: Columns, temperature: float = 1.0) -> NDArray[np.float32]:
        """Logits [N, C] whose softmax(logits / temperature) is the teacher's softened distribution, as well as known.

        A codec that keeps every class gives the same logits at every temperature. Logits decoded for one temperature
        are not to be softened at another.
        """

    def error_bound(self, columns: Columns) -> NDArray[np.float64]:
        """Largest |decoded - logit| [N, C] that the encoding into these columns can have made."""

    def compare_logits(
        self, columns: Columns, logits: NDArray[np.float32], tolerance: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(errors [N, M], allowed [N, M]): what is stored against fresh logits [N, C] of the same rows, in logits.

        The codec says what it compares, and so what M is. Where the fresh logits lie within ``tolerance`` [N] of the
        ones that were encoded, class by class, every error is at most its ``allowed``. A NaN among the logits makes an
        error of its row NaN.
        """


def check_finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits [N, C] as contiguous float32; raises LogitsError with the first row and class that is not finite."""
    logits = np.ascontiguousarray(logits, np.float32)
    finite = np.isfinite(logits)
    if not finite.all():
        row, index = np.argwhere(~finite)[0]
        raise LogitsError(
            f"teacher logit of class {index} in row {row} is {logits[row, index]}: expected a finite number; "
            "check the teacher's weights, input range and precision"
        )
    return logits
