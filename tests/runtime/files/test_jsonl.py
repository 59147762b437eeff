"""JSON lines: texts as they are; lines without one are counted, never silently taken for one."""

import json
from pathlib import Path

import pytest

from hotcold.native.errors import ConfigError
from hotcold.runtime.files import jsonl
from hotcold.runtime.files.jsonl import Skipped, documents, is_jsonl
from hotcold.runtime.text.windows import spread_windows, token_windows


class Letters:
    """A tokenizer of one id a character, 1 first."""

    def encode(self, text: str) -> list[int]:
        return [1, *(ord(c) for c in text)]


def write(folder: Path, *lines: bytes | dict[str, object]) -> Path:
    path = folder / "texts.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw))
    return path


def test_each_line_is_a_document(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "abcde"}, b"", {"text": ""}, {"text": "f\ng", "id": 3}, b"  ")
    skipped = Skipped()
    assert [text for text, _ in documents(path, "text", skipped)] == ["abcde", "", "f\ng"]
    assert skipped == Skipped()
    plain = tmp_path / "a.txt"
    plain.write_text("xyz")
    found = [w for w, _ in token_windows([path, plain], Letters(), 4)]
    texts = ["".join(map(chr, window[1:])) for window in found]
    assert texts == ["abc", "de", "f\ng", "xyz"], "windows span no two documents"
    reads = [read for _, read in token_windows([path, plain], Letters(), 4)]
    assert reads == sorted(reads) and reads[-1] == path.stat().st_size + 3


def test_another_field_and_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"body": "ab"})
    assert [text for text, _ in documents(path, "body", Skipped())] == ["ab"]
    assert is_jsonl(Path("A.JSONL")) and is_jsonl(Path("a.ndjson")) and not is_jsonl(Path("a.json"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b'"text"', "it is not a JSON object"),
        (b'{"body": "x", "id": 1}', "it has no field 'text', only body, id"),
        (b'{"text": 7}', "its field 'text' is no string"),
        (b'{"text": null}', "its field 'text' is no string"),
        (b'{"text": "caf\xe9"}', "it is not UTF-8 (byte 0xe9 at 13)"),
        (b'{"text": "\\ud800"}', "its field 'text' holds half a character"),
        (b'{"text": "' + b"a" * 300 + b'"}', "it is longer than 200 bytes"),
    ],
)
def test_lines_without_text_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, says: str
) -> None:
    if "longer" in says:
        monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 200)
    path = write(tmp_path, {"text": "good"}, line, {"text": "fine"}, line)
    skipped = Skipped()
    assert [text for text, _ in documents(path, "text", skipped)] == ["good", "fine"]
    assert skipped.lines == 2 and skipped.first == f"line 2 of texts.jsonl: {says}"
    assert str(skipped) == f"2 lines were skipped, the first: {skipped.first}"
    (tmp_path / "texts.jsonl").write_bytes(line)
    with pytest.raises(ConfigError) as caught:
        list(documents(path, "text", Skipped()))
    assert "no line with a text (1 line was skipped" in str(caught.value)
    assert says in str(caught.value)


def test_a_lines_length_may_be_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra, texts in ((-1, 2), (0, 2), (1, 1)):
        path = write(tmp_path, {"text": "a" * 50}, {"text": "b"})
        length = len(path.read_bytes().splitlines(keepends=True)[0])
        monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", length - extra)
        assert len(list(documents(path, "text", Skipped()))) == texts


def test_spread_windows_read_json_lines_from_the_start(tmp_path: Path) -> None:
    path = write(tmp_path, *({"text": chr(97 + i % 26) * 40} for i in range(500)))
    found = spread_windows([path], Letters(), 16, 64)
    assert [chr(window[1]) for window in found] == ["a", "a", "a", "b", "b"]
    assert sum(map(len, found)) == 64
