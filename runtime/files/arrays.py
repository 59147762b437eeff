"""Arrays read from files of several tensors; of the files, the last one stays open."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError


class ArrayFiles:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self._open: tuple[Path, io.BufferedReader] | None = None

    def read(self, path: Path, begin: int, out: NDArray[Any], name: str) -> None:
        """Fill an array with the bytes of tensor `name` that begin there.

        Raises:
            CheckpointError: the file ended early or cannot be read.
        """
        try:
            if self._open is None or self._open[0] != path:
                self.close()
                self._open = (path, path.open("rb"))
            file = self._open[1]
            file.seek(begin)
            got = file.readinto(out.reshape(-1).view(np.uint8).data) if out.size else 0
        except OSError as error:
            raise CheckpointError(
                f"cannot read {path}: {error.strerror}; check the disk"
            ) from error
        if got != out.nbytes:
            raise CheckpointError(
                f"{path} ended inside tensor {name}; it changed while it was read, try again"
            )

    def close(self) -> None:
        """Close the open file; reading again reopens it."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
