"""`hotcold bench serve` on a server whose engine counts."""

import json

import pytest
from support.counting import Counting
from support.http import serving

from hotcold.actors.cli.main import main
from hotcold.actors.serve.app import create_app
from hotcold.actors.serve.settings import KEY_VARIABLE, ServeConfig

KEY = "0123456789abcdef-a-key"


def test_servers_take_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Counting()
    app = create_app(engine, ServeConfig(), key=KEY, template=engine.template)
    with serving(app) as port:
        words = ["--url", f"http://127.0.0.1:{port}/v1", "--url", f"http://localhost:{port}/v1/"]
        words += ["--clients", "4", "--clients", "1", "--max-tokens", "10", "--repeat", "1"]
        assert main(["bench", "serve", *words]) == 2
        assert "answers 401" in capsys.readouterr().err
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        assert main(["bench", "serve", *words, "--json"]) == 0
        table, _, line = capsys.readouterr().out.rpartition("\n{")
    assert table.splitlines()[0].split() == ["clients", "server", "tokens/s", "first", "token", "s"]
    rows = json.loads("{" + line)["rows"]
    assert [row["clients"] for row in rows] == [1, 1, 4, 4]
    for row in rows:  # two at once, ten tokens of 5 ms each
        assert 0 < row["tokens_per_s"] < 2 * 200
        assert 0 < row["first_s"] < 10


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9/v1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no server answers at http://127.0.0.1:9/v1" in said
