"""Numbers that come in parts, kept in an unnamed temporary file instead of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss.errors import FileError


class Spool:
    """An array that grows on disk, in the directory for temporary files (TMPDIR). The system takes
    the file away with the last of the Spool and its arrays.

    Raises FileError where the disk refuses.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        with _told():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as self)

    def add(self, values: npt.ArrayLike) -> None:
        """Appends values, converted to the dtype."""
        with _told():
            self._file.write(np.asarray(values, self._dtype).tobytes())

    def array(self) -> npt.NDArray[Any]:
        """What was added so far, (n,), mapped: changes are the file's too."""
        with _told():
            self._file.flush()
            count = self._file.tell() // self._dtype.itemsize
            if count == 0:  # which cannot be mapped
                return np.empty(0, self._dtype)
            return np.memmap(self._file, self._dtype, "r+", shape=(count,)).view(np.ndarray)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):  # a full disk, a file that was never opened
            self._file.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        directory = tempfile.gettempdir() if tempfile.tempdir else "the temporary directory"
        raise FileError(
            f"a temporary file in {directory}: {error.strerror}; TMPDIR names another directory",
            errno=error.errno,
        ) from error
