"""Several prompts: files of both kinds, sampling of each, and what is refused."""

from typing import Any

import pytest

from hotcold.native.errors import ConfigError
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.text.prompts import Given, Prompt, asked_of, lines_of


def asked(prompts: Any, default: Sampling) -> list[tuple[Prompt, Sampling]]:
    return asked_of(prompts, default, lambda prompt, sampling: (prompt, sampling))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"one\ntwo\n", [(1, "one"), (2, "two")]),
        (b"\n  \r\n one \r\n\nlast", [(3, " one "), (5, "last")]),
        (b"\xef\xbb\xbf\xc3\xa9\x0b\xe2\x80\xa8same line\n", [(1, "\u00e9\x0b\u2028same line")]),
        (b'\n{"prompt": "a"}\n\n{"prompt": [1, 2], "seed": 3}', [
            (2, {"prompt": "a"}),
            (4, {"prompt": [1, 2], "seed": 3}),
        ]),
        (b'text\n{"prompt": "a"}\n', [(1, "text"), (2, '{"prompt": "a"}')]),
        (b"[1, 2]\n7\n", [(1, "[1, 2]"), (2, "7")]),
    ],
)  # fmt: skip
def test_lines(raw: bytes, expected: list[tuple[int, Given]]) -> None:
    assert lines_of(raw, "f") == expected


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "f has no prompts"),
        (b" \n\r\n", "f has no prompts"),
        (b"ok\n\nb\xffd\n", "line 3 of f is not UTF-8 (byte 0xff at offset 1)"),
        (b'{"prompt": "a"}\nb\n', "line 2 of f is no JSON object ('b')"),
        (b'{"prompt": "a"}\n{"prompt": "b"\n', "line 2 of f is no JSON object"),
        (b'{"prompt": "a"}\n[1, 2]\n', "line 2 of f is no JSON object"),
        (b'{"prompt": "a"}\n' + b"[" * 100_000, "line 2 of f is no JSON object"),
    ],
)
def test_broken_files(raw: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lines_of(raw, "f")
    assert str(caught.value).startswith(said)


def test_a_prompt_has_its_own_sampling() -> None:
    default = Sampling(max_tokens=9, seed=4, stop=("END",))
    own = {"prompt": "b", "max_tokens": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 1}
    made = asked(["a", own | {"stop": ".", "ignore_eos": True}, [1, 2]], default)
    assert made == [
        ("a", default),
        ("b", Sampling(2, 0.5, 3, 0.9, 1, (".",), True)),
        ([1, 2], default),
    ]
    assert own["prompt"] == "b"
    assert asked([], default) == []


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("abc", "the prompts 'abc' are a single one"),
        ({"prompt": "a"}, "are a single one; give a list"),
        (["a", {"promt": "b"}], "prompt 1: it has no 'prompt', only promt; give it one"),
        (["a", {"prompt": "b", "max_token": 3}], "prompt 1: unknown option 'max_token'; did you"),
        ([{"prompt": "b", "max_tokens": 0}], "prompt 0: max_tokens 0 is not a whole number in 1.."),
        ([{"prompt": "b", "stop": [""]}], "prompt 0: stop strings must be non-empty text"),
        ([{"prompt": "b", "seed": None}], "prompt 0: seed None is not a whole number in 0.."),
    ],
)
def test_refused(prompts: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(prompts, Sampling())
    assert said in str(caught.value)


def test_the_first_bad_one_is_named_as_the_caller_names_it() -> None:
    def make(prompt: Prompt, _: Sampling) -> None:
        if prompt == "bad":
            raise ConfigError("too bad; write a better one")

    with pytest.raises(ConfigError, match="line 12: too bad"):
        asked_of(["a", "bad", "bad"], Sampling(), make, lambda index: f"line {index + 11}")
