"""What a codec is: a row of teacher logits becomes bytes, and comes back.

A codec is a frozen dataclass that derives from ``Codec``; its JSON, the name and the fields, is its entry in a store's
plan. To add one: a module with the class, and its entry in ``registry.CODECS``; a field called ``num_classes`` or ``k``
is filled by ``build_codec``. That is enough to write it, read it and train from it; with its name in
``options.CodecName`` the command line offers it. ``tests/codecs/test_registry.py`` tests one end to end.

A codec that keeps every class derives from ``dense.DenseCodec``, which has ``compare_logits``. The arithmetic of
``decode_tensor`` goes into ``on_device``, where torch is imported inside the functions: stores are read without it.

Values stay in log space: the temperature is chosen when a student is trained, never when the logits are stored, and
nothing is ever softened or renormalized. Rows that are not finite are refused: a NaN stored once would be a NaN in
every student.

Deliberately not included: the codecs (``dense``, ``topk``) and their names (``registry``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.softmax import soften
from teachonce.errors import LogitsError, StoreError
from teachonce.storage.strict_json import json_values

if TYPE_CHECKING:
    from torch import Tensor

Columns = Mapping[str, NDArray[Any]]
"""Named arrays, each with the record axis first."""


class Codec(ABC):
    """What a codec can do. One that keeps every class is dense, one that keeps K likely ones is sparse."""

    name: ClassVar[str]
    """Its entry in ``CODECS``."""

    @property
    def num_kept(self) -> int | None:
        """K: the classes that a row keeps; None: every class."""
        return None

    @property
    def num_tail(self) -> int:
        """The classes that a row does not keep, whose logits are an estimate for one temperature; 0: there are none."""
        return 0

    @property
    def promised_temperatures(self) -> tuple[float, float] | None:
        """Least and largest temperature of a softmax for which the codec says how near it is; None: any.

        ``promise`` says how near, and at which of them. It holds for any number of classes; beyond these temperatures
        what was set apart as having no mass has some, and the more classes there are the more.
        """
        return None

    @property
    def promise(self) -> str:
        """What holds at ``promised_temperatures``, as a phrase."""
        return "every class within its error bound"

    def variation_bound(self, columns: Columns, temperature: float) -> NDArray[np.float64]:
        """Proven bound [N] of the total variation, at ``temperature``, between what was encoded and what is decoded.

        With q = softmax(decoded / T), e = ``error_bound`` / T and dense probabilities q w / sum(q w), where w lies in
        exp(-e)..exp(e), it is at most sum(q (exp(e) - 1)) / sum(q exp(-e)); and 1 where a class has no bound.
        """
        probs = soften(self.decode_logits(columns, temperature), temperature)
        errors = self.error_bound(columns) / temperature
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            bound = (probs * np.expm1(errors)).sum(axis=1) / (probs * np.exp(-errors)).sum(axis=1)
        return np.where(np.isnan(bound), 1.0, np.minimum(bound, 1.0))

    @abstractmethod
    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns for logits [N, C]; raises LogitsError where one is not finite."""

    @abstractmethod
    def decode_logits(self, columns: Columns, temperature: float = 1.0) -> NDArray[np.float32]:
        """Logits [N, C] whose softmax(logits / temperature) is the teacher's softened distribution, as well as known.

        A codec that keeps every class gives the same logits at every temperature. Logits decoded for one temperature
        are not to be softened at another. Raises StoreError for columns that ``check_columns`` refuses.
        """

    @abstractmethod
    def decode_tensor(self, columns: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """``decode_logits`` of columns that are tensors: [N, C], float32, on their device.

        The same bits for a dense codec, within float32's rounding for a sparse one
        (tests/codecs/test_on_device.py). What a device would not refuse is for ``check_columns`` to find before.
        """

    @abstractmethod
    def error_bound(self, columns: Columns) -> NDArray[np.float64]:
        """Largest |decoded - logit| [N, C] that the encoding into these columns can have made."""

    @abstractmethod
    def compare_logits(
        self, columns: Columns, logits: NDArray[np.float32], tolerance: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(errors [N, M], allowed [N, M]): what is stored against fresh logits [N, C] of the same rows, in logits.

        The codec says what it compares, and so what M is. Where the fresh logits lie within ``tolerance`` [N] of the
        ones that were encoded, class by class, every error is at most its ``allowed``. A NaN among the logits makes an
        error of its row NaN.
        """

    def check_columns(self, columns: Columns) -> None:
        """Raise StoreError for values that no encoder writes and that could not be decoded."""
        return

    def check_values(self, columns: Columns) -> None:
        """Raise StoreError, with the row, for values of a block that no encoder writes; done once, as it is first read.

        What ``check_columns`` looks for, and numbers that are not finite: a NaN would be one in every student.
        """
        self.check_columns(columns)

    def kept_classes(self, columns: Columns) -> NDArray[np.intp] | None:
        """Class indices [N, K] of the classes that each row keeps; None: every class."""
        return None

    def to_json(self) -> dict[str, Any]:
        """The codec as its entry in a plan: name and parameters; ``registry.codec_from_json`` is the inverse."""
        return {"name": self.name, **json_values(self)}


def require_rows(is_sound: NDArray[np.bool_], name: str, values: NDArray[Any], expected: str) -> None:
    """Raise StoreError with the first row that is not sound, [N] or [N, width], and its value of a column."""
    if not is_sound.all():
        row = int(np.argwhere(~is_sound)[0][0])
        shown = str(values[row].tolist())[:80]
        raise StoreError(f"row {row}: {name} {shown}, expected {expected}: damaged")


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
