"""Small files of a checkpoint or bundle: read whole, with a limit, as JSON, never hanging.

Used by every reader of such files. Existence, kind and size are checked here; what the contents
mean is checked by the reader.
"""

import json
from pathlib import Path
from typing import Any

from hotcold.native.errors import CheckpointError

JSON_LIMIT_BYTES = 256 << 20


def regular_file(path: Path) -> bool:
    """Whether path is a regular file (or a link to one): anything else could block an open()."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def file_bytes(path: Path) -> int:
    """Size of a regular file.

    Raises:
        CheckpointError: it is missing or no regular file.
    """
    if not regular_file(path):
        raise CheckpointError(f"{path} is missing or not a regular file; restore it")
    return path.stat().st_size


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: missing, unreadable, too large, not JSON, or not an object.
    """
    size = file_bytes(path)
    if size > JSON_LIMIT_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes, more than the {JSON_LIMIT_BYTES} a JSON file may have; "
            "restore the original file"
        )
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its owner") from error
    except (ValueError, RecursionError) as error:
        text = str(error)[:200]
        raise CheckpointError(f"{path} is not valid JSON ({text}); restore the file") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(data).__name__} where an object is expected; restore it"
        )
    return data
