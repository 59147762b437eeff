"""`hotcold generate --prompts`: results line by line, and files that are refused."""

import json
from pathlib import Path

import pytest
from support.command import Run, only_line
from support.fake_engine import STORY, FakeEngine

from hotcold.actors.cli.commands import prompts
from hotcold.native.errors import ActorLostError
from hotcold.runtime.text.generation import Token

TEXT = "".join(STORY)


def test_a_line_for_each_result(run: Run, engines: list[FakeEngine], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"One\n\nTwo\r\n")
    ended = run("generate", "--prompts", str(file), "--max-tokens", "5", "--seed", "3", "--json")
    *results, totals = map(json.loads, ended.out.splitlines())
    ids = [100, 101, 102, 103, 104]
    assert results == [  # in the order of finishing
        {"index": index, "text": TEXT, "token_ids": ids, "finish_reason": "length"}
        for index in (1, 0)
    ]
    assert (totals["prompts"], totals["prompt_tokens"], totals["new_tokens"]) == (2, 8, 10)
    assert totals["tokens_per_s"] == pytest.approx(10 / totals["wall_s"])
    assert totals["sequences"] == 2
    assert "2 prompts: 10 tokens in" in only_line(ended.err)
    assert [one["prompt"] for one in engines[0].requests] == ["Two", "One"]
    assert all((one["max_tokens"], one["seed"]) == (5, 3) for one in engines[0].requests)
    assert engines[0].closed == 1


def test_json_lines_have_their_own_sampling(run: Run, engines: list[FakeEngine]) -> None:
    raw = b'\n{"prompt": "One", "temperature": 0.5}\n{"prompt": [5, 6], "stop": "."}\n'
    ended = run("generate", "--prompts", "-", "--top-k", "7", stdin=raw)
    assert [json.loads(line)["index"] for line in ended.out.splitlines()] == [1, 0]
    second, first = engines[0].requests
    assert (first["prompt"], first["temperature"], first["stop"]) == ("One", 0.5, ())
    assert (second["prompt"], second["temperature"], second["stop"]) == ([5, 6], 0.0, (".",))
    assert first["top_k"] == second["top_k"] == 7


def test_alternatives_are_told_where_they_were_asked_for() -> None:
    token = Token(5, "a", -0.5, ((5, -0.5), (6, -1.0)))
    entry = {"id": 5, "logprob": -0.5, "top": [[5, -0.5], [6, -1.0]]}
    assert json.loads(json.dumps(prompts.logprobs_of([token]))) == {"logprobs": [entry]}
    assert prompts.logprobs_of([Token(5, "a", -0.5)]) == {}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "standard input has no prompts"),
        (b"a\n\xff\n", "line 2 of standard input is not UTF-8"),
        (b'{"prompt": "a"}\nb\n', "line 2 of standard input is no JSON object"),
        (b'\n{"prompt": "a", "top_p": 2}\n', "line 2 of standard input: top_p 2 is not"),
        (b'{"prompt": "a", "tokens": 2}', "line 1 of standard input: unknown option 'tokens'"),
        (b'{"prompt": [1]}\n\n{"prompt": []}', "line 3 of standard input: the prompt has no tok"),
        (b'{"prompt": [1, 99999]}', "line 1 of standard input: token id 99999 is outside"),
        (b'{"prompt": "\\ud800"}', "line 1 of standard input: the text holds '\\ud800'"),
        (b"ok\n" + b"word " * 600, "line 2 of standard input: the prompt has 603 tokens, the con"),
    ],
)
def test_broken_files_start_nothing(
    run: Run, engines: list[FakeEngine], raw: bytes, said: str
) -> None:
    ended = run("generate", "--prompts", "-", stdin=raw)
    assert (ended.code, ended.out) == (2, "")
    assert said in only_line(ended.err)
    assert engines == []


def test_files_that_cannot_be_read(
    run: Run, engines: list[FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MAX_FILE_BYTES", 4)
    for file, said in [
        (str(tmp_path / "none"), "none cannot be read (No such file or directory)"),
        (str(tmp_path), "cannot be read (Is a directory)"),
        ("-", "standard input has more than 4 bytes"),
    ]:
        ended = run("generate", "--prompts", file, stdin=b"12345")
        assert ended.code == 2
        assert said in only_line(ended.err)
    assert engines == []


def test_a_prompt_beside_a_file_is_refused(run: Run, engines: list[FakeEngine]) -> None:
    ended = run("generate", "Hello", "--prompts", "-", stdin=b"One\n")
    assert ended.code == 2
    assert "PROMPT and --prompts exclude each other" in only_line(ended.err)
    assert engines == []


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "hotcold: interrupted"),
        (ActorLostError("cpu", "the cpu actor died"), 1, "hotcold: error: the cpu actor died"),
    ],
)
def test_what_had_finished_was_printed(
    run: Run,
    engines: list[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    said: str,
) -> None:
    def generate(self: FakeEngine, prompt: str, *_: object) -> object:
        if prompt == "One":
            raise failure
        return iter(())

    monkeypatch.setattr(FakeEngine, "generate", generate)
    ended = run("generate", "--prompts", "-", "--json", stdin=b"One\nTwo\n")
    assert ended.code == code
    assert json.loads(only_line(ended.out))["index"] == 1
    assert only_line(ended.err.strip()) == said
    assert engines[0].closed == 1
