"""The frames of a TFRecord file, checked while its bytes pass by on their way to somewhere else."""

from __future__ import annotations

from pathlib import Path

from crc32c import crc32c

from teachonce.records.tfrecord.framing import (
    FOOTER,
    FOOTER_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    check_header,
    check_not_empty,
    damaged,
    mask_crc,
    truncated,
)


class FrameCheck:
    """The frames of a file whose bytes pass by, in pieces of any size: checksums, and ``index`` as a writer's.

    ``path`` is what errors name. Both methods raise RecordError as ``read_tfrecords``.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.index: list[tuple[int, int]] = []
        self._path = path
        self._num_bytes = num_bytes
        self._offset = 0
        self._part = bytearray()
        """Of the header or the footer that is being read."""
        self._length = -1
        self._left = 0
        """Of the payload; the length is below 0 where a header comes next."""
        self._crc = 0

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        view, at = memoryview(data), 0
        while at < len(view):
            if self._left:
                taken = view[at : at + self._left]
                self._crc = crc32c(taken, self._crc)
                self._left -= len(taken)
                at += len(taken)
                continue
            wanted = (HEADER_BYTES if self._length < 0 else FOOTER_BYTES) - len(self._part)
            self._part += view[at : at + wanted]
            at += min(wanted, len(view) - at)
            if len(self._part) == (HEADER_BYTES if self._length < 0 else FOOTER_BYTES):
                self._end_part()

    def finish(self) -> None:
        """There are no more bytes."""
        if self._part or self._length >= 0:
            raise truncated(self._path, len(self.index), self._offset, f"the file ends at byte {self._num_bytes}")
        check_not_empty(self._path, self._offset)

    def _end_part(self) -> None:
        row = len(self.index)
        if self._length < 0:
            self._length = check_header(self._path, row, self._offset, bytes(self._part), self._num_bytes)
            self._left, self._crc = self._length, 0
        else:
            if mask_crc(self._crc) != FOOTER.unpack(self._part)[0]:
                raise damaged(self._path, row, self._offset)
            size = self._length + FRAME_BYTES
            self.index.append((self._offset, size))
            self._offset += size
            self._length = -1
        self._part.clear()
