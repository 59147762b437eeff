"""Files that are mapped for writing have all their bytes on the disk first."""

import ast
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.checkout import ROOT, tracked_under

from hotcold.native.errors import BudgetError
from hotcold.runtime.files.reserve import reserve


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """No file of this process may be longer, as `ulimit -f` has it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_every_block_is_there(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    reserve(paths, 1 << 20, "two files", "make room")
    assert all(path.stat().st_size == 1 << 20 for path in paths)
    assert all(path.stat().st_blocks * 512 >= 1 << 20 for path in paths)
    mapped = np.memmap(paths[0], np.float16, "r+", shape=(1 << 10, 1 << 9))
    mapped[:] = 1
    assert (tmp_path / "a").stat().st_size == 1 << 20


def test_what_a_file_holds_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    reserve([tmp_path / "a"], 4096, "a file", "make room")
    assert (tmp_path / "a").read_bytes() == b"before" + bytes(4090)
    reserve([tmp_path / "a"], 0, "nothing", "make room")


def test_a_limit_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    kept = tmp_path / "a"
    kept.write_bytes(b"before")
    with file_size_limit(1 << 16), pytest.raises(BudgetError) as caught:
        reserve([kept, tmp_path / "b"], 1 << 20, "two files", "make room")
    text = str(caught.value)
    for word in ("two files take 2.1 MB (2097152 bytes)", str(tmp_path), "MB free", "make room"):
        assert word in text
    assert "\n" not in text and caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert kept.read_bytes() == b"before"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BudgetError, match=os.strerror(number)):
        reserve([tmp_path / "a"], 1 << 20, "a file", "make room")
    assert not list(tmp_path.iterdir())


def test_no_file_is_mapped_for_writing_unreserved() -> None:
    """Wherever a file is mapped for writing, this module is used and nothing makes it anew."""
    writers = []
    for path in tracked_under("runtime", "policies", "actors", suffix=".py"):
        text = (ROOT / path).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("memmap"):
                mode = node.args[2] if len(node.args) > 2 else None
                assert isinstance(mode, ast.Constant), f"{path}:{node.lineno}: say the mode plainly"
                assert mode.value in ("r", "r+"), f"{path}:{node.lineno}: reserve the file, then r+"
                if mode.value == "r+":
                    writers.append(path)
                    assert "files.reserve import" in text, f"{path}:{node.lineno}: not reserved"
    assert writers, "nothing is mapped for writing any more: remove this test"
