"""Small files of a checkpoint or bundle: read whole, with a limit, as JSON, never hanging.

Used by every reader of such files. Existence, kind and size are checked here; what the contents
mean is checked by the reader.
"""

import json
from pathlib import Path
from typing import Any

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.impostors import impostor

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
        what = impostor(path) or "is missing or not a regular file; restore it"
        raise CheckpointError(f"{path} {what}")
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
        what = impostor(path)
        if what:
            raise CheckpointError(f"{path} {what}") from error
        text, hint = str(error)[:200], _slip(error)
        raise CheckpointError(f"{path} is not valid JSON ({text}); {hint}") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(data).__name__} where an object is expected; restore it"
        )
    return data


def _slip(error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return "restore the file"
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if not after:
        return "it ends in the middle, so restore the file"
    if before.endswith(",") and after[0] in "}]":
        return f"remove the comma before the {after[0]!r}"
    if after.startswith(("//", "/*", "#")):
        return "JSON has no comments, so remove them"
    if after[0] == "'" or after.startswith(("None", "True", "False")):
        return "it is a Python dict and no JSON, so write it with json.dumps"
    return "restore the file"
