"""Images and lines of a CSV, one to one: every image has exactly one line, and every line exactly one image.

Counting both is not enough: two images of one basename and a line of a foreign image make the same count, and one image
would get the logits of another. The CSV knows images by basename, so a basename that two images share is refused: which
of them would its line be for?

It is the one check of ``import`` and of ``records --logits``; 8 bytes a line, whatever the names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from teachonce.errors import LogitsError
from teachonce.interop.csv_lines import CsvLines


class LineClaims:
    """Which image each line is for, recorded as the images are read; ``data`` is how messages name their location.

    ``name_of`` gives the file name of an image by its number, for messages.
    """

    def __init__(self, lines: CsvLines, data: object, name_of: Callable[[int], str]) -> None:
        self._lines = lines
        self._data = data
        self._name_of = name_of
        self._image_of = np.full(len(lines), -1, np.int64)

    def claim(self, filenames: Sequence[str], first: int) -> None:
        """Note the lines of the images ``first``, ``first + 1``, ...

        Raises LogitsError with the image that has no line, or with two images that share a basename.
        """
        lines = self._lines.find_all(filenames)
        order = np.argsort(lines, kind="stable")
        again = np.flatnonzero(np.diff(lines[order]) == 0)
        if len(again):
            raise self._shared(filenames[order[again[0]]], filenames[order[again[0] + 1]])
        taken = np.flatnonzero(self._image_of[lines] >= 0)
        if len(taken):
            image = int(self._image_of[lines[taken[0]]])
            raise self._shared(self._name_of(image), filenames[taken[0]])
        self._image_of[lines] = np.arange(first, first + len(filenames))

    def check_all(self) -> None:
        """Raise LogitsError with a line that no image has claimed."""
        left = np.flatnonzero(self._image_of < 0)
        if len(left):
            name, _ = self._lines.read(int(left[0]))
            raise LogitsError(
                f"{self._lines.describe(int(left[0]))} ({name}): a line for an image that {self._data} does not "
                f"have ({len(left)} of {len(self._lines)} lines are such): the CSV is of other data; give the CSV "
                "of this data"
            )

    def _shared(self, first: str, second: str) -> LogitsError:
        return LogitsError(
            f"{first} and {second} of {self._data}: two images have the same basename, by which the CSV "
            "identifies images; rename one, or give a store"
        )
