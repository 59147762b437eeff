"""Every way a command can end, as an exit code and at most one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from support import fake_engine
from support.command import Run
from support.fake_engine import FakeEngine

from hotcold.actors.cli import main as main_module
from hotcold.native import errors


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["--version"]])
def test_help_and_version_succeed(run: Run, argv: list[str]) -> None:
    ended = run(*argv)
    assert ended.code == 0
    assert "hotcold" in ended.out
    assert ended.err == ""


def test_every_command_has_help_and_an_entry_in_the_list(run: Run) -> None:
    for name in main_module.COMMANDS:
        ended = run(name, "--help")
        assert ended.code == 0
        assert ended.out.startswith(f"Usage: hotcold {name}")


def test_help_of_the_group_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hotcold.actors.cli.main import main; main(['--help']); "
        "heavy = {'ray', 'torch', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["generate", "--nonsense", "Hello"], "--nonsense"),
        (["generate", "--vramm", "1GiB", "Hello"], "--vram"),
        (["generate", "--max-tokens", "0", "Hello"], "--max-tokens"),
        (["generate", "--max-tokens", "many", "Hello"], "'many'"),
        (["generate", "--online", "x", "Hello"], "--online"),
        (["generate", "one", "two"], "two"),
        (["generate", "--set", "share", "Hello"], "NAME=VALUE"),
        (["generate", "--set", "a=1", "--set", "a=2", "Hello"], "twice"),
        (["generate", "--transport", "pigeon", "Hello"], "native"),
        (["generate", "--dtype", "int3", "Hello"], "float16"),
        (["generate", "--plan", "not-there", "Hello"], "not-there"),
        (["generate", "--temperature", "nan", "Hello"], "temperature"),
        (["generate", "--temperature", "-1", "Hello"], "temperature"),
        (["generate", "--top-p", "0", "Hello"], "top_p"),
        (["generate", "--stop", "", "Hello"], "stop"),
        (["bench", "nonsense"], "nonsense"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    run: Run, engines: list[FakeEngine], argv: list[str], expected: str
) -> None:
    ended = run(*argv)
    assert ended.code == 2
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("hotcold: error: ")
    assert expected in lines[0]
    assert engines == []


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (errors.ConfigError("threads 9 is more than the 2 cores"), 2),
        (errors.CheckpointError("model.safetensors ends\nafter 3 bytes"), 2),
        (errors.LaunchError("Ray did not start"), 1),
        (errors.ActorLostError("cpu", "the cpu actor was killed"), 1),
    ],
)
def test_known_errors_are_one_line_with_their_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, problem: Exception, code: int
) -> None:
    monkeypatch.setattr(FakeEngine, "launch_failure", problem)
    ended = run("generate", "Hello")
    assert ended.code == code
    assert ended.err == f"hotcold: error: {' '.join(str(problem).split())}\n"


def test_an_unexpected_error_names_the_way_to_its_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "launch_failure", RuntimeError("surprise"))
    ended = run("generate", "Hello")
    assert ended.code == 1
    expected = "hotcold: error: RuntimeError: surprise (run with --debug for the traceback)\n"
    assert ended.err == expected
    ended = run("generate", "Hello", "--debug")
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.err.endswith("hotcold: error: RuntimeError: surprise\n")


def test_an_actor_lost_while_generating_closes_the_engine(
    run: Run, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = errors.ActorLostError("cpu", "the cpu actor ended with signal 9")
    monkeypatch.setattr(FakeEngine, "failure", lost)
    ended = run("generate", "Hello")
    assert ended.code == 1
    assert ended.out == "There\n"
    assert ended.err == "hotcold: error: the cpu actor ended with signal 9\n"
    assert engines[0].closed == 1


def test_ctrl_c_while_launching_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "launch_failure", KeyboardInterrupt())
    ended = run("generate", "Hello")
    assert ended.code == 130
    assert ended.err.strip() == "hotcold: interrupted"


def test_sigterm_while_ray_starts_is_143(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "launch_failure", SystemExit(int(signal.SIGTERM)))
    ended = run("generate", "Hello")
    assert ended.code == 143
    assert ended.err == "hotcold: terminated\n"


def test_signal_handlers_are_given_back(run: Run) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run("generate", "Hello").code == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_both_outputs_survive_a_terminal_that_is_not_utf8(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, fake_engine.__file__, str(tmp_path / "closed"), "generate", "Hello"],
        env={**os.environ, "PYTHONIOENCODING": "cp1251"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"There was a caf?.\n"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, b"hotcold: interrupted"),
        (signal.SIGTERM, 143, b"hotcold: terminated"),
    ],
)
def test_a_signal_closes_the_engine(
    tmp_path: Path, number: signal.Signals, code: int, line: bytes
) -> None:
    marker = tmp_path / "closed"
    process = subprocess.Popen(
        [sys.executable, fake_engine.__file__, str(marker), "generate", "Hello"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(5) == b"There"  # it is generating
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.strip() == line
    assert marker.read_text() == "closed"


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path: Path) -> None:
    marker = tmp_path / "closed"
    process = subprocess.Popen(
        [sys.executable, fake_engine.__file__, str(marker), "generate", "Hello"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=20) == 1
    assert err == b""
    assert marker.read_text() == "closed"


def test_no_two_commands_share_a_parameter_name() -> None:
    context = click.Context(main_module.cli)
    for name in main_module.COMMANDS:
        command = main_module.cli.get_command(context, name)
        assert command is not None
        names = [parameter.name for parameter in command.params]
        assert len(names) == len(set(names)), name


def test_a_second_signal_while_closing_is_only_answered(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(self: FakeEngine) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        self.closed += 1

    monkeypatch.setattr(FakeEngine, "close", close)
    ended = run("generate", "Hello")
    assert ended.code == 0
    assert "still closing" in ended.err
