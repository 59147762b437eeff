"""Text files as token windows: nothing lost, nothing twice, whatever the piece and window sizes."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotcold.native.errors import ConfigError
from hotcold.runtime.text import windows
from hotcold.runtime.text.windows import spread_windows, token_windows

BOS = 1


class Letters:
    """A tokenizer of one id a character, <s> first, and an end id if asked for."""

    def __init__(self, end: bool = False) -> None:
        self.tail = [2] if end else []

    def encode(self, text: str) -> list[int]:
        return [BOS, *(ord(c) + 10 for c in text), *self.tail]


def write(folder: Path, *texts: str | bytes) -> list[Path]:
    paths = [folder / f"{index}.txt" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return paths


def cut(paths: list[Path], context: int, limit: int | None = None) -> list[list[int]]:
    return [window for window, _ in token_windows(paths, Letters(), context, limit)]


def text_of(found: list[list[int]]) -> str:
    return "".join(chr(i - 10) for window in found for i in window[1:])


def test_every_window_starts_with_bos_and_none_spans_files(tmp_path: Path) -> None:
    found = cut(write(tmp_path, "abcdefg", "", "hi"), 4)
    assert [text_of([window]) for window in found] == ["abc", "def", "g", "hi"]
    assert all(window[0] == BOS for window in found)


def test_what_the_template_puts_behind_a_text_is_dropped(tmp_path: Path) -> None:
    found = list(token_windows(write(tmp_path, "abcde"), Letters(end=True), 4))
    assert text_of([window for window, _ in found]) == "abcde"


@given(
    texts=st.lists(
        st.text(st.sampled_from("ab \n\r\u00e9\u20ac\U0001f600"), max_size=60), max_size=3
    ),
    context=st.integers(2, 9),
    piece=st.integers(1, 9),
    limit=st.none() | st.integers(2, 60),
)
def test_pieces_and_windows_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    context: int,
    piece: int,
    limit: int | None,
) -> None:
    paths = write(tmp_path_factory.mktemp("texts"), *texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "CHUNK_BYTES", piece)
        found = cut(paths, context, limit)
    whole = cut(paths, context)
    assert text_of(whole) == "".join(texts)
    assert all(2 <= len(window) <= context for window in found)
    total = sum(map(len, whole))
    if limit is None or limit >= total:
        assert found == whole
    else:
        flat = [i for window in whole for i in window]
        got = [i for window in found for i in window]
        assert got == flat[: len(got)]
        assert limit - 1 <= len(got) <= limit  # a window of <s> alone is not worth a run


def test_read_bytes_grow_to_the_size_of_all_files(tmp_path: Path) -> None:
    paths = write(tmp_path, "abc\n" * 50_000, "d" * 1000)
    read = [count for _, count in token_windows(paths, Letters(), 1000)]
    assert read == sorted(read) and read[0] < read[-1] == 201_000


@pytest.mark.parametrize("before", [0, 5, windows.CHUNK_BYTES - 1, 3 * windows.CHUNK_BYTES + 1])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82", b"\xe2\x82x"])
def test_bad_bytes_are_named_with_their_offset(tmp_path: Path, before: int, bad: bytes) -> None:
    (path,) = write(tmp_path, b"x" * before + bad)
    with pytest.raises(ConfigError) as caught:
        cut([path], 100)
    assert f"{path} is not UTF-8" in str(caught.value)
    assert f"0x{bad[0]:02x} at offset {before};" in str(caught.value)


def test_no_room_for_text(tmp_path: Path) -> None:
    paths = write(tmp_path, "abc")
    for context, limit in ((1, None), (8, 1), (0, None), (8, 0)):
        with pytest.raises(ConfigError, match="no room for text"):
            cut(paths, context, limit)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=str(path)):
            cut([path], 8)


def test_a_line_without_an_end_is_still_cut(tmp_path: Path) -> None:
    text = "x" * (6 * windows.CHUNK_BYTES)
    found = cut(write(tmp_path, text), 1 << 20)
    assert text_of(found) == text


# ---- windows spread over a long text -------------------------------------------------------------


class Words:
    """Each word is the number it spells; 1 goes first."""

    def encode(self, text: str) -> list[int]:
        return [1, *(int(word) if word.isdigit() else 0 for word in text.split())]


def test_spread_windows_come_from_all_over(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(" ".join(f"{number:06d}" for number in range(20_000)))
    found = spread_windows([path], Words(), 16, 160)
    assert found == spread_windows([path], Words(), 16, 160)
    assert [len(window) for window in found] == [16] * 10
    assert [len(window) for window in spread_windows([path], Words(), 16, 40)] == [16, 16, 8]
    assert [len(window) for window in spread_windows([path], Words(), 16, 9)] == [9]
    for index, window in enumerate(found):
        assert window[0] == 1
        assert window[2] == window[1] + 1, "words are cut"
        assert window[1] == pytest.approx((index + 0.5) * 2000, abs=5)


def test_a_short_text_is_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(" ".join(str(number) for number in range(100, 130)))
    assert sum(spread_windows([path], Words(), 16, 160), []).count(129) == 1


def test_spread_windows_refuse_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"1 2 3 \xff " * 5000)
    with pytest.raises(ConfigError, match="not UTF-8"):
        spread_windows([path], Words(), 16, 160)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="no text"):
        spread_windows([path], Words(), 16, 160)
