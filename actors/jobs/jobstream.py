"""What a job's only log carries: output, messages, files and the exit code, each marked as such.

Ray keeps one text log per job, with standard output and error mixed, and returns neither files nor
an exit code before it has noticed the end of the job. So the job's side
(actors/cli/commands/job.py) wraps everything but plain output in frames of control characters, and
`hotcold submit` parses them. Both sides import this file, the job's before it is known what else
can be imported there: standard library only. Needs no port but the one that jobs are submitted
through.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

OPEN, CLOSE = "\x1e", "\x1f"  # record and unit separator: no text that people read has them
BEGIN, ERROR, FILE, EXIT = "B", "E", "F", "X"
KINDS = (BEGIN, ERROR, FILE, EXIT)
FILE_BYTES = 9_000  # of one frame; Ray hands a log over in pieces of 20,000 characters
FETCH_LIMIT = 64 << 20  # compressed


def frame(kind: str, text: str = "") -> str:
    """One frame; where it ends a line in the log, Ray hands it over at once."""
    return f"{OPEN}{kind}{text.replace(OPEN, '?').replace(CLOSE, '?')}{CLOSE}"


class Splitter:
    """Splits a log into output and frames as it comes, in whatever pieces."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """What is complete now: ("", plain output), or a frame's kind and text."""
        self._held += text
        while self._held:
            plain, opened, rest = self._held.partition(OPEN)
            if plain:
                self._held = opened + rest
                yield "", plain
            elif rest and rest[0] not in KINDS:
                self._held = rest
                yield "", opened
            else:
                body, closed, after = rest.partition(CLOSE)
                if not closed:
                    return
                self._held = after
                yield body[0], body[1:]


def pack_files(paths: list[Path]) -> bytes:
    """Files and folders as one zip, by the relative paths they were named with.

    Raises:
        ValueError: more than the limit; says what to do.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            found = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in found:
                if file.is_file():
                    archive.write(file, file.as_posix())
                if content.tell() > FETCH_LIMIT:
                    raise ValueError(
                        f"{', '.join(map(str, paths))}: more than {FETCH_LIMIT >> 20} MiB "
                        f"compressed, too much to send back; take it from {Path.cwd()} there"
                    )
    return content.getvalue()


def file_frames(content: bytes) -> Iterator[str]:
    """The frames that carry a zip."""
    for at in range(0, len(content), FILE_BYTES):
        part = base64.b64encode(content[at : at + FILE_BYTES]).decode()
        yield frame(FILE, part + "\n")


def unpack_files(parts: list[str], into: Path, allowed: list[str]) -> list[Path]:
    """Write the files of a zip that came in frames.

    Only what lies below one of the relative paths `allowed` is written. Returns the files written.

    Raises:
        ValueError: damaged, or a path that does not belong there.
    """
    content = b"".join(base64.b64decode(part, validate=False) for part in parts)
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        broken = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"what came back is damaged: {error}") from error
    if broken is not None:
        raise ValueError(f"what came back is damaged: {broken}")
    written = []
    for name in archive.namelist():
        inside = PurePosixPath(name)
        wanted = any(inside.is_relative_to(PurePosixPath(root)) for root in allowed)
        if inside.is_absolute() or ".." in inside.parts or not wanted:
            raise ValueError(f"what came back has a file {name!r} that was not asked for")
        target = into / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(archive.read(name))
        partial.replace(target)
        written.append(target)
    return written
