"""`hotcold serve` as a process: a key, an executor killed under load, and a drain."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import openai
import pytest
from support.http import ask, begin

from hotcold.actors.cli.main import main
from hotcold.actors.cluster.footprint import descendants
from hotcold.actors.serve import server

SERVE = [sys.executable, "-m", "hotcold.actors.cli.main", "serve"]
KEY = "0123456789abcdef-a-key"
FIELDS: dict[str, Any] = {"model": "hotcold", "max_tokens": 40, "extra_body": {"ignore_eos": True}}


def actors(name: str) -> set[int]:
    """Processes of an actor class that this test run's Ray has."""
    found = set()
    for pid in descendants(os.getpid()):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if line.startswith(f"ray::{name}"):
            found.add(pid)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_from_its_start_to_its_end(one_ray: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    others = actors("")  # of an engine that other tests share
    env = {**os.environ, "RAY_ADDRESS": one_ray}
    command = [*SERVE, "--port", "0", "--api-key", str(tmp_path / "key"), "--drain-timeout", "30"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as process, ThreadPoolExecutor(8) as pool:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"hotcold is served at http://127\.0\.0\.1:(\d+)/v1, 8 gen", line)
            assert found, line + process.communicate()[1]
            port = int(found[1])
            assert ask(port, "GET", "/ready").status == 200
            assert ask(port, "GET", "/v1/models").status == 401
            url = f"http://127.0.0.1:{port}/v1"
            with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
                text_of = lambda seed: (  # noqa: E731
                    client.completions.create(prompt="Once upon a time", seed=seed, **FIELDS)
                    .choices[0]
                    .text
                )
                alone = [text_of(seed) for seed in range(5)]
                jobs = [pool.submit(text_of, seed) for seed in range(5)]
                (victim,) = actors("CpuExecutor") - others
                os.kill(victim, signal.SIGKILL)
                assert [job.result(90) for job in jobs] == alone
                assert actors("CpuExecutor") - others - {victim}
                shown = {"Authorization": f"Bearer {KEY}"}
                live = begin(port, "GET", "/live", headers=shown).getresponse()
                own = f'"engine":"hotcold-{port}-'.encode()
                assert any(own in line for line in islice(live, 400))
                stream = client.completions.create(
                    prompt="Once", stream=True, temperature=0, **{**FIELDS, "max_tokens": 150}
                )
                pieces = [next(stream)]
                process.send_signal(signal.SIGTERM)
                told_s = time.monotonic()
                live.read()
                assert time.monotonic() - told_s < 10  # the page does not hold the end up
                pieces += stream  # which ends as it would have
                assert pieces[-1].choices[0].finish_reason == "length"
            assert process.wait(60) == 0
            assert KEY not in line + process.communicate()[1]
        finally:
            process.kill()
    deadline = time.monotonic() + 10
    while actors("Serve") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not actors("Serve") and not actors("GpuExecutor") - others


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key FILE, or --no-api-key"),
        (["--api-key", "sk-not-a-file"], "give the path of a file that holds the key"),
        (["--queue", "-1"], "queue -1 is not a whole number in 0..4096"),
        (["--replicas", "0"], "replicas 0"),
        (["--max-body", "2GiB"], "max_body 2GiB is not from 1 byte to 1 GiB"),
        (["--cors-origin", "example.org"], "'example.org' is no origin"),
        (["--host", "198.51.100.7", "--no-api-key"], "cannot listen at 198.51.100.7 port 8000"),
        (["--port", "0", "--chat-template", "/nowhere"], "--chat-template /nowhere cannot be read"),
        (["--port", "0", "/nowhere"], "/nowhere"),
        (
            ["--replicas", "2", "--telemetry", "tcp://127.0.0.1:5599"],
            "telemetry tcp://127.0.0.1:5599 is one address, and replicas 2",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["serve", *words])
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "", printed.err
    assert printed.err.count("\n") == 1 and said in printed.err
    assert "sk-not-a-file" not in printed.err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "NEEDED", ("json", "uvicorn_of_nobody"))
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert "serving needs uvicorn_of_nobody; install it: pip install 'hotcold[serve]'" in said
