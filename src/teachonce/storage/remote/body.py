"""What is written to an object before it is put: kept in memory while it is small, then in a file without a name."""

from __future__ import annotations

import io
import mmap
import tempfile
from typing import Any, BinaryIO, cast

from teachonce.errors import TeachonceError

MEMORY_BYTES = 32 << 20
"""Kept in memory; a job writes one file at a time."""


class Body(io.RawIOBase):
    """A file to write to; its bytes are taken with ``content``. ``failure``: why nothing can be written any more."""

    def __init__(self, where: str, raises: type[TeachonceError]) -> None:
        self.failure: TeachonceError | None = None
        self._where = where
        self._raises = raises
        self._file: BinaryIO = io.BytesIO()
        self._is_on_disk = False

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """All of ``data``."""
        data = memoryview(data).cast("B")
        try:
            if not self._is_on_disk and self._file.tell() + len(data) > MEMORY_BYTES:
                self._move_to_disk()
            self._file.write(data)
        except OSError as error:
            failure = self._raises(
                f"{self._where}: cannot be written: {error.strerror or error} in the temporary folder "
                f"{tempfile.gettempdir()}; free space there, or set TMPDIR to another folder"
            )
            self.failure = self.failure or failure
            raise failure from error
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def content(self) -> memoryview:
        """All that was written."""
        if not self._is_on_disk:
            return cast(io.BytesIO, self._file).getbuffer()
        self._file.flush()
        return memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))

    def as_file(self) -> BinaryIO:
        """All that was written, from its beginning."""
        self._file.seek(0)
        return self._file

    def discard(self) -> None:
        """Discard what was written. Libraries close the file that they wrote to, before it is put."""
        if self._is_on_disk:
            self._file.close()
        self._file = io.BytesIO()

    def _move_to_disk(self) -> None:
        memory, position = cast(io.BytesIO, self._file), self._file.tell()
        # Without a name: a kill leaves nothing.
        self._file = cast(BinaryIO, tempfile.TemporaryFile(prefix="teachonce-"))  # noqa: SIM115
        self._is_on_disk = True
        self._file.write(memory.getbuffer())
        self._file.seek(position)
