"""From sampled ids to tokens with text: stop strings, half characters, ends."""

from pathlib import Path

import pytest
from support.models import TinyLlama, byte_level_tokenizer, write_llama

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.text.generation import TextCodec, Token


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = write_llama(tmp_path_factory.mktemp("models") / "bytes", TinyLlama())
    bundle = resolve_model(folder)
    return TextCodec(bundle.path, bundle.spec)


def ids_of(text: str) -> list[int]:
    return list(byte_level_tokenizer().encode(text, add_special_tokens=False).ids)


def run(codec: TextCodec, ids: list[int], **sampling: object) -> tuple[list[Token], str | None]:
    stream = codec.stream(Sampling(**sampling))  # type: ignore[arg-type]
    tokens = [token for id_ in ids for token in stream.push(id_, -1.0)]
    if stream.finish is None:
        tokens += stream.flush()
    return tokens, stream.finish


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def test_texts_concatenate_and_every_id_has_a_token(codec: TextCodec) -> None:
    text = "na\u00efve caf\u00e9 \U0001f600!"
    tokens, finish = run(codec, ids_of(text))
    assert text_of(tokens) == text
    assert [token.id for token in tokens] == ids_of(text)
    assert finish is None


def test_half_a_character_at_the_end_is_not_lost(codec: TextCodec) -> None:
    ids = ids_of("a\U0001f600")[:-1]
    tokens, _ = run(codec, ids)
    assert [token.id for token in tokens] == ids
    assert text_of(tokens).startswith("a")
    assert text_of(tokens) != "a"


@pytest.mark.parametrize(
    ("text", "stop", "expected", "finish"),
    [
        ("one two three", ("two",), "one ", "stop"),
        ("one two three", ("three", "two"), "one ", "stop"),
        ("aab", ("ab",), "a", "stop"),
        ("abac", ("abad",), "abac", None),
        ("one", ("one",), "", "stop"),
        ("say \U0001f600 now", ("\U0001f600",), "say ", "stop"),
        ("no such thing", ("\n\n",), "no such thing", None),
    ],
)
def test_stop_strings(
    codec: TextCodec, text: str, stop: tuple[str, ...], expected: str, finish: str | None
) -> None:
    tokens, ended = run(codec, ids_of(text), stop=stop)
    assert text_of(tokens) == expected
    assert ended == finish


def test_nothing_that_may_begin_a_stop_string_is_shown_early(codec: TextCodec) -> None:
    stream = codec.stream(Sampling(stop=("xyz",)))
    shown = [text_of(stream.push(id_, 0.0)) for id_ in ids_of("axyb")]
    assert shown == ["a", "", "", "xyb"]


def test_end_of_text_token(codec: TextCodec) -> None:
    ids = [*ids_of("ab"), 2, *ids_of("c")]
    tokens, finish = run(codec, ids)
    assert ([token.id for token in tokens], text_of(tokens)) == (ids[:3], "ab")
    assert finish == "eos"
    tokens, finish = run(codec, ids, ignore_eos=True)
    assert (text_of(tokens), finish) == ("abc", None)


def test_without_a_tokenizer_ids_still_work(tmp_path: Path) -> None:
    bundle = resolve_model(write_llama(tmp_path / "m", TinyLlama(tokenizer=None)))
    codec = TextCodec(bundle.path, bundle.spec)
    assert codec.ids([3, 4], 64) == [3, 4]
    tokens, finish = run(codec, [5, 6, 2])
    assert ([token.id for token in tokens], text_of(tokens), finish) == ([5, 6, 2], "", "eos")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        codec.ids("text", 64)


@pytest.mark.parametrize(
    "bad", [{"stop": ("",)}, {"stop": "x"}, {"seed": -1}, {"top_k": -1}, {"temperature": 1e9}]
)
def test_sampling_that_cannot_be_used(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("byte", [0x80, 0xE4, 0x0A])
def test_lone_bytes_are_released_as_they_come(codec: TextCodec, byte: int) -> None:
    alphabet = byte_level_tokenizer()
    char = {0x80: "\u0122", 0xE4: "\u00e4", 0x0A: "\u010a"}[byte]
    stream = codec.stream(Sampling(max_tokens=2000))
    released = [len(stream.push(alphabet.token_to_id(char), 0.0)) for _ in range(2000)]
    assert sum(released[:10]) >= 9 and sum(released) >= 1999


def test_tokens_without_a_text_do_not_wait_for_one(codec: TextCodec) -> None:
    """Special tokens have none, and none will come."""
    stream = codec.stream(Sampling(max_tokens=9, ignore_eos=True))
    assert [len(stream.push(2, 0.0)) for _ in range(5)] == [1] * 5
    assert [token.text for token in stream.push(ids_of("a")[0], 0.0)] == ["a"]


def test_a_prompt_is_text(codec: TextCodec, caplog: pytest.LogCaptureFixture) -> None:
    assert codec.ids("<s>Once", 64) == [1, *ids_of("<"), *ids_of("s>Once")]
    assert "'<s>'" in caplog.text and "--special" in caplog.text
    assert "twice" not in caplog.text
    assert 2 not in codec.ids("a</s>b", 64)
    caplog.clear()
    assert codec.ids("no such thing < s >", 64) and not caplog.text


@pytest.mark.parametrize("prompt", ["<s>Once", "<s><s>", [1, 1, 5]])
def test_a_doubled_beginning_warns(
    codec: TextCodec, caplog: pytest.LogCaptureFixture, prompt: str | list[int]
) -> None:
    assert codec.ids(prompt, 64, special=True)[:2] == [1, 1]
    assert "twice" in caplog.text and "token 1" in caplog.text


@pytest.mark.parametrize("prompt", ["a<s>b", "a</s>b", [1, 5, 1], [5, 5]])
def test_a_single_beginning_does_not(
    codec: TextCodec, caplog: pytest.LogCaptureFixture, prompt: str | list[int]
) -> None:
    codec.ids(prompt, 64, special=True)
    assert not caplog.text
