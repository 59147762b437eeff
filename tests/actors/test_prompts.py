"""Prompts nobody meant to type: answered or refused in a sentence, and the engine goes on."""

from collections.abc import Iterator

import pytest

from hotcold.actors import Engine
from hotcold.native.errors import ConfigError

pytestmark = pytest.mark.ray

ODD = {
    "nul": "a\0b",
    "emoji": "\U0001f469\u200d\U0001f467 family \U0001f3f3\ufe0f\u200d\U0001f308",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202e abc",
    "combining": "e" + "\u0301" * 150,
    "private": "\ue000\U000f0000",
    "no characters": "\uffff\ufdd0",
    "mark": "\ufeffOnce",
    "line ends": "a\r\r\n\tb\u2028c",
    "mathematical": "\U0001d518\U0001d52b\U0001d526",
    "replacement": "\ufffd" * 10,
    "special tokens": "<s></s><unk>",
}
REFUSED = {
    "long word": ("a" * 100_000, "tokens, the context holds"),
    "long blank": (" " * 100_000, "tokens, the context holds"),
    "long text": ("word " * 20_000, "tokens, the context holds"),
    "long emoji": ("\U0001f469" * 100_000, "tokens, the context holds"),
    "half a pair": ("bad \udcff", "surrogate"),
    "nothing": ("", "empty"),
}


@pytest.fixture(scope="module")
def engine(one_ray: str) -> Iterator[Engine]:
    with Engine.launch() as engine:
        yield engine


@pytest.mark.parametrize("prompt", ODD.values(), ids=ODD)
def test_odd_text_is_continued(engine: Engine, prompt: str) -> None:
    tokens = list(engine.generate(prompt, max_tokens=3, ignore_eos=True))
    assert len(tokens) == 3
    "".join(token.text for token in tokens).encode()


@pytest.mark.parametrize(("prompt", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_continued_is_refused_and_the_engine_goes_on(
    engine: Engine, prompt: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        list(engine.generate(prompt, max_tokens=3))
    assert len(str(caught.value)) < 300
    assert len(list(engine.generate("Once", max_tokens=3, ignore_eos=True))) == 3
