"""Tokenizer: round trips, streams that equal decode(), prompts of any size and oddity."""

import codecs
import json
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import TinyLlama, byte_level_tokenizer, word_tokenizer, write_llama
from tokenizers import decoders, models, pre_tokenizers

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime import embedded
from hotcold.runtime.text.tokenizer import Tokenizer

EMBEDDED = Tokenizer.load(embedded.path(), 8192)
TEXTS = [
    "Once upon a time",
    " leading and trailing ",
    "na\u00efve \u4f60\u597d \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0645\u0631",
    "tabs\t\tand\r\n\r\nlines   spaces",
    "\x00\x01\x7f\ufeff\ufffd\uffff",
    "a\u0301" * 50,
]


def byte_fallback() -> Tokenizer:
    """As SentencePiece Llamas have it: words with a leading mark, bytes for the rest."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += ["\u2581", "\u2581a", "a", "b", "\u2581\u2581", "ab", "\u4f60", ""]
    model = models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    strip = decoders.Strip(" ", 1, 0)
    fallback = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(fallback)
    return Tokenizer(tokenizer)


def metaspace() -> Tokenizer:
    words = ["<s>", "\u2581", "\u2581a", "a", "b\u2581", "\u2581\u2581", "\u4f60"]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "a"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.Metaspace()
    return Tokenizer(tokenizer)


def word_piece() -> Tokenizer:
    words = ["[UNK]", "a", "##a", ".", "n't", "##.", "b", " "]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}))
    tokenizer.add_special_tokens(["[UNK]"])
    tokenizer.decoder = decoders.WordPiece()
    return Tokenizer(tokenizer)


def end_of_word() -> Tokenizer:
    words = ["<s>", "a</w>", "a", "b</w>", "</w>"]
    tokenizer = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.BPEDecoder()
    return Tokenizer(tokenizer)


def marks(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("marks", marks)
KINDS = {
    "embedded": EMBEDDED,
    "bytes": Tokenizer(byte_level_tokenizer()),
    "words": Tokenizer(word_tokenizer(20)),
    "byte fallback": byte_fallback(),
    "metaspace": metaspace(),
    "word piece": word_piece(),
    "end of word": end_of_word(),
}


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text: str) -> None:
    ids = EMBEDDED.encode(text)
    assert ids[0] == 1  # the template's <s>
    assert EMBEDDED.decode(ids) == text == EMBEDDED.decode(ids[1:])


def test_the_empty_text_has_the_template_alone() -> None:
    assert EMBEDDED.encode("") == [1] and EMBEDDED.decode([1]) == EMBEDDED.decode([]) == ""


def test_end_of_text_and_sizes() -> None:
    assert EMBEDDED.eos_ids == (2,) and EMBEDDED.vocab_size == 8192
    assert EMBEDDED.has_text(300)
    assert not EMBEDDED.has_text(2) and not EMBEDDED.has_text(8192)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_equal_decode(kind: str) -> None:
    tokenizer = KINDS[kind]

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))  # 3 it does not know
    def check(ids: list[int]) -> None:
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
        assert stream.flush() == ""

    check()


def test_a_space_behind_an_empty_token_is_kept() -> None:
    tokenizer = KINDS["byte fallback"]
    ids = [tokenizer._tokenizer.token_to_id(text) for text in ("a", "", "\u2581a")]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["a", "", " a"]


@pytest.mark.parametrize("kind", ["bytes", "embedded", "byte fallback"])
def test_streams_of_bytes_equal_decode(kind: str) -> None:
    """Whole, cut and wrong UTF-8, a byte a token."""
    tokenizer = KINDS[kind]
    if kind == "byte fallback":
        table = {byte: byte + 3 for byte in range(256)}
    else:
        alphabet = {pre_tokenizers.ByteLevel(False).pre_tokenize_str(c)[0][0]: c for c in "aZ !"}
        assert len(alphabet) == 4
        inner = tokenizer._tokenizer
        order = [*range(33, 127), *range(161, 173), *range(174, 256)]
        rest = [byte for byte in range(256) if byte not in order]
        chars = {**{b: chr(b) for b in order}, **{b: chr(256 + i) for i, b in enumerate(rest)}}
        table = {byte: inner.token_to_id(char) for byte, char in chars.items()}
    assert None not in table.values()

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.one_of(st.characters(), st.binary(max_size=3)), max_size=12))
    def check(parts: list[str | bytes]) -> None:
        data = b"".join(p.encode("utf-8", "replace") if isinstance(p, str) else p for p in parts)
        ids = [table[byte] for byte in data]
        stream = tokenizer.stream()
        text = "".join([stream.push(i) for i in ids]) + stream.flush()
        assert text == tokenizer.decode(ids)
        if kind == "byte fallback":  # a mark for each wrong byte, and characters stay
            whole = data.decode("utf-8", "marks")
            assert text in (whole, whole.removeprefix(" "))
        else:
            assert text == data.decode("utf-8", "replace")

    check()


def test_half_a_character_is_held_back() -> None:
    tokenizer = KINDS["bytes"]
    ids = tokenizer.encode("a\U0001f600b")[1:]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["a", "", "", "", "\U0001f600", "b"]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids[:3]] == ["a", "", ""] and stream.flush() == "\ufffd"


def lone(kind: str, byte: int) -> int:
    """The token of one byte."""
    inner = KINDS[kind]._tokenizer
    if kind == "byte fallback":
        return int(inner.token_to_id(f"<0x{byte:02X}>"))
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [other for other in range(256) if other not in order]
    return int(inner.token_to_id(chr(byte) if byte in order else chr(256 + rest.index(byte))))


@pytest.mark.parametrize("byte", [0x0A, 0x41, 0x80, 0xC3, 0xE4, 0xF0, 0xFF])
@pytest.mark.parametrize("kind", ["byte fallback", "bytes", "embedded"])
def test_lone_bytes_stream_in_linear_time(
    monkeypatch: pytest.MonkeyPatch, kind: str, byte: int
) -> None:
    ids = [lone(kind, byte)] * 2000
    expected = KINDS[kind].decode(ids)
    longest = watch_windows(monkeypatch)
    stream = KINDS[kind].stream()
    begin = time.monotonic()
    pieces = [stream.push(id_) for id_ in ids]
    assert time.monotonic() - begin < 2
    shown = "\ufffd" if byte >= 0x80 else chr(byte)
    for count in (2, 10, 1000, 2000):
        assert len("".join(pieces[:count])) >= count - 1
    assert "".join(pieces) + stream.flush() == shown * 2000 == expected
    assert 0 < max(longest) < 20


@pytest.mark.parametrize("kind", ["byte fallback", "bytes", "embedded"])
def test_a_character_behind_wrong_bytes_comes_whole(kind: str) -> None:
    """Never more than its own bytes are held back, wherever it begins."""
    data = b"\xff\xe4\xbd" + "\u4f60\U0001f600a\n".encode() + b"\xf0\x9f" + b"b\x80"
    stream, pieces = KINDS[kind].stream(), list[str]()
    for byte in data:
        pieces.append(stream.push(lone(kind, byte)))
        if stream.holds:
            assert len(pieces) == len(data) or byte >= 0x80
    text = "".join(pieces)
    assert text.replace("\ufffd", "") == "\u4f60\U0001f600a\nb"
    assert pieces[5].endswith("\u4f60") and pieces[9] == "\U0001f600" and pieces[10] == "a"
    assert set((text + stream.flush()).split("b")[1]) == {"\ufffd"} and not stream.holds


def test_words_behind_a_wrong_byte_keep_their_space() -> None:
    tokenizer = KINDS["byte fallback"]
    word = tokenizer._tokenizer.token_to_id("\u2581a")
    stream = tokenizer.stream()
    bad, half = lone("byte fallback", 0xFF), lone("byte fallback", 0xE4)
    assert [stream.push(id_) for id_ in (bad, word, half, word)] == ["\ufffd", " a", "", "\ufffd a"]


def watch_windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what is decoded from now on."""
    lengths: list[int] = []
    decode = Tokenizer.decode_window

    def measured(self: Tokenizer, ids: list[int]) -> str:
        lengths.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(Tokenizer, "decode_window", measured)
    return lengths


def test_a_long_stream_costs_a_window_not_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = EMBEDDED.encode("The wolf \u4f60\u597d ran. " * 200)
    expected = EMBEDDED.decode(ids)
    longest = watch_windows(monkeypatch)
    stream = EMBEDDED.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == expected
    assert 0 < max(longest) < 20


# ---- control tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<s>Once", "a</s>b", "<unk>", "</s></s>", "x<s", "\n</s>\n"])
@pytest.mark.parametrize("kind", ["embedded", "bytes", "byte fallback"])
def test_control_tokens_in_a_text_are_text(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    ids, lead = tokenizer.encode(text), tokenizer.encode("")
    assert ids[: len(lead)] == lead
    rest = ids[len(lead) :]
    control = {tokenizer._tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
    assert rest and not control & set(rest)
    if kind != "byte fallback":  # most letters are unknown to that one
        assert tokenizer.decode(ids) == text


def test_control_tokens_are_parsed_on_demand() -> None:
    assert EMBEDDED.encode("<s>", special=True) == [1, 1]
    assert EMBEDDED.encode("a</s>b", special=True).count(2) == 1
    assert 2 not in EMBEDDED.encode("a</s>b")  # the choice is a call's, not the tokenizer's
    assert EMBEDDED.encode("plain", special=True) == EMBEDDED.encode("plain")
    assert EMBEDDED.control_tokens("a</s>b<s>") == ["<s>", "</s>"]
    assert EMBEDDED.control_tokens("a < s > b") == []


@pytest.mark.parametrize("model", ["words", "unigram"])
def test_a_tokenizer_that_cannot_take_them_for_text_says_so(model: str) -> None:
    if model == "words":
        inner = word_tokenizer(20)
    else:
        pieces = [("<unk>", 0.0), ("</s>", 0.0), ("w3", -1.0), (" ", -1.0)]
        inner = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
        inner.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(inner)
    text = "w3 </s> w3"
    parsed = tokenizer.encode(text, special=True)
    assert inner.token_to_id("</s>") in parsed
    try:
        plain = tokenizer.encode(text)
    except ConfigError as error:
        assert "'</s>'" in str(error) and "--special" in str(error)
    else:
        assert inner.token_to_id("</s>") not in plain


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "word " * 20_000, "\U0001f600" * 100_000, " " * 100_000, "</s>" * 25_000],
)
def test_huge_prompts(text: str) -> None:
    ids = EMBEDDED.encode(text)
    assert len(ids) > 1
    if "</s>" not in text:
        assert EMBEDDED.decode(ids) == text


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff end", "\udc80" * 1000])
def test_half_surrogate_pairs_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"'\\ud.*character \d+") as caught:
        EMBEDDED.encode(text)
    str(caught.value).encode("ascii")  # the message itself can be printed anywhere


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_encoded_or_refused(text: str) -> None:
    try:
        ids = EMBEDDED.encode(text)
    except ConfigError:
        assert any(0xD800 <= ord(char) < 0xE000 for char in text)
    else:
        assert all(0 <= i < 8192 for i in ids)


@pytest.mark.parametrize("prompt", [None, 7, b"bytes", ["a"]])
def test_prompts_that_are_no_text(prompt: object) -> None:
    with pytest.raises(ConfigError, match="must be text"):
        EMBEDDED.encode(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[-1], [2**40], ["a"], [None]])
def test_ids_that_are_none(ids: list[int]) -> None:
    with pytest.raises(ConfigError, match="no token ids"):
        EMBEDDED.decode(ids)


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    """A model's vocabulary is often padded beyond its tokenizer's."""
    assert EMBEDDED.decode([9000]) == ""
    stream = EMBEDDED.stream()
    assert stream.push(9000) + stream.flush() == ""


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, TinyLlama(vocab=300))
    assert max(Tokenizer.load(folder, 300).encode("\u00ff\u00fe")) < 300
    with pytest.raises(ConfigError, match=r"token \d+, the model has 50"):
        Tokenizer.load(folder, 50).encode("hello")


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path).encode("hello world")) == 12


def test_eos_is_found_in_either_file_and_spelling(tmp_path: Path) -> None:
    write_llama(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "</s>", "lstrip": False}}))
    assert Tokenizer.load(tmp_path).eos_ids == (2,)
    config.unlink()
    assert Tokenizer.load(tmp_path).eos_ids == ()
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert Tokenizer.load(tmp_path).eos_ids == (2,)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"version": "1.0", "model": {"type": "BPE"}}', "[" * 9999, "\x00"],
)
def test_tokenizers_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*token ids instead"):
        Tokenizer.load(tmp_path)
