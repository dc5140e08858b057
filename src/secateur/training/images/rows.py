"""A file of rows of equal length, which processes may read and write at once."""

import errno
import os
from pathlib import Path

from secateur.errors import UserError


class RowFile:
    """`rows` rows of `length` bytes, zeros until they are written; `what` names them in errors.

    Processes and loader workers may share it: a row is read and written in one piece, and whoever
    writes a row writes the same row. UserError where the file cannot be made or grow.
    """

    def __init__(self, file: Path, rows: int, length: int, what: str) -> None:
        self.file, self.rows, self.length, self.what = file, rows, length, what
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # WHY: unbuffered, so that what another process wrote is seen, and a full disk at once.
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            self._open = os.fdopen(descriptor, "r+b", buffering=0)
            self._open.truncate(rows * length)
        except OSError as error:
            raise UserError(f"{self._cannot()}: {error.strerror}.") from error

    def __reduce__(self) -> tuple[object, ...]:
        """Loader workers that do not share open files open it again."""
        return RowFile, (self.file, self.rows, self.length, self.what)

    def __getitem__(self, row: int) -> bytes:
        return os.pread(self._open.fileno(), self.length, row * self.length)

    def __setitem__(self, row: int, content: bytes) -> None:
        try:
            if os.pwrite(self._open.fileno(), content, row * self.length) < self.length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(f"{self._cannot()}: {error.strerror}.") from error

    def written(self) -> int:
        """Bytes of disk that it takes so far: rows that were never written take none."""
        return os.stat(self.file).st_blocks * 512

    def _cannot(self) -> str:
        return f"{self.what} cannot be kept in '{self.file.parent}'"
