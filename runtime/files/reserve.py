"""Room on the disk for files that are mapped for writing, taken before the first byte is written.

A mapping of a file that the disk has no room for kills its writer by SIGBUS, without a word, at
some later store. A reserved file has all its blocks: what is missing is said at once.
"""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from hotcold.native.errors import BudgetError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit on a file's size


def reserve(paths: Sequence[Path], n_bytes: int, what: str, way_out: str) -> None:
    """Give every file so many bytes on the disk; what a file holds already stays.

    `what` they are and the `way_out` are for the message.

    Raises:
        BudgetError: the disk is too full; files made here are gone again.
        OSError: the folder cannot be written.
    """
    made: list[Path] = []
    try:
        for path in paths:
            if not path.exists():
                made.append(path)
            with path.open("ab") as file:
                if n_bytes:
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        if error.errno not in NO_ROOM:
            raise
        check_room(paths[0].parent, n_bytes * len(paths), what, way_out, str(error.strerror))


def check_room(folder: Path, n_bytes: int, what: str, way_out: str, error: str = "") -> None:
    """Refuse a disk without room for so many bytes.

    The folder need not be there. `what` and `way_out` are for the message; with an `error`,
    what the disk said already, it is refused in any case.

    Raises:
        BudgetError: need, what is free, and the way out.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if error or free < n_bytes:
        raise BudgetError(
            f"{what} take {n_bytes / 1e6:.1f} MB ({n_bytes} bytes) in {folder}, whose disk has "
            f"{free / 1e6:.1f} MB free{error and f' ({error})'}; {way_out}"
        )
