"""`hotcold generate` as a process: what it prints, and how it ends when something is killed."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotcold.actors.cluster.footprint import descendants

pytestmark = [pytest.mark.ray]
COMMAND = [sys.executable, "-m", "hotcold.actors.cli.main", "generate", "Once upon a time"]
# plain C kernels are slow enough that there is time to kill something
SLOW = {**os.environ, "RAY_ADDRESS": "local", "HOTCOLD_CPU": "ref"}


def start(*more: str, env: dict[str, str] = SLOW) -> "subprocess.Popen[str]":
    command = [*COMMAND, "--context", "1024", "--max-tokens", "1000", "--ignore-eos", *more]
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def environment(own_ray: bool, one_ray: str) -> dict[str, str]:
    """Of a command that starts a Ray, which takes the longest of it, or joins the tests' own."""
    joining = {"HOTCOLD_CPU": "ref", "RAY_ADDRESS": one_ray}  # and what Ray put there to be joined
    return SLOW if own_ray else {**os.environ, **joining}


def actor_pid(ray_of: int, name: str) -> int:
    """Pid of the actor of a class among the descendants of who started its Ray."""
    for pid in descendants(ray_of):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if line.startswith(f"ray::{name}"):
            return pid
    raise AssertionError(f"no {name} among the processes of {ray_of}")


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def wait_for_text(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 200)
    assert first, process.communicate()[1]


def test_json_is_the_last_line_and_every_actor_worked(one_ray: str) -> None:
    command = [*COMMAND, "--max-tokens", "12", "--predictor", "exact", "--json"]
    env = environment(own_ray=False, one_ray=one_ray)
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["token_ids"]) == 12
    assert result["text"].startswith(" there ")
    assert result["text"] in done.stderr
    for rate in ("prompt_tokens_per_s", "decode_tokens_per_s", "gb_per_s"):
        assert result[rate] > 0
    actors = result["actors"]
    assert len({actors[name]["pid"] for name in ("gpu", "cpu", "predictor")}) == 3
    assert actors["predictor"]["gate_rows"] == (12 - 1 + 5) * 8 * 1280
    for name in ("gpu", "cpu"):
        assert actors[name]["up_down_rows"] > 0
    for work in actors.values():
        assert work["bytes"] > 0
        assert work["busy_s"] > 0


@pytest.mark.parametrize(
    ("actor", "name"), [("gpu", "GpuExecutor"), ("cpu", "CpuExecutor"), ("predictor", "Predictor")]
)
def test_a_killed_actor_ends_the_command_with_its_name(actor: str, name: str, one_ray: str) -> None:
    process = start("--restarts", "0", env=environment(own_ray=False, one_ray=one_ray))
    try:
        wait_for_text(process)
        os.kill(actor_pid(os.getpid(), name), signal.SIGKILL)
        began = time.monotonic()
        while time.monotonic() - began < 2.0 and process.poll() is None:
            time.sleep(0.01)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    last = errors.strip().splitlines()[-1]
    assert process.returncode == 1
    assert last.startswith(f"hotcold: error: the {actor} actor died")
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """What 150 tokens are where nothing is lost."""
    text, errors = start("--max-tokens", "150").communicate(timeout=120)
    assert text, errors
    return text


@pytest.mark.slow
def test_a_killed_actor_does_not_show_in_the_text(undisturbed: str) -> None:
    process = start("--max-tokens", "150")
    try:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 200).decode()
        os.kill(actor_pid(process.pid, "CpuExecutor"), signal.SIGKILL)
        rest, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert first + rest == undisturbed
    assert "recovered from the loss of the cpu actor (died) in" in errors
    assert "s to notice" in errors and "s to the next token" in errors


@pytest.mark.slow
def test_the_fourth_loss_ends_the_command_with_its_text_so_far(undisturbed: str) -> None:
    process = start()
    try:
        assert process.stdout is not None
        shown = b""
        for _ in range(4):
            shown += os.read(process.stdout.fileno(), 200)  # it runs, again
            victim = actor_pid(process.pid, "CpuExecutor")
            os.kill(victim, signal.SIGKILL)
            shown += b"".join(until(process, lambda: replaced(process.pid, victim)))  # noqa: B023
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    text = shown.decode() + rest
    assert process.returncode == 1
    both = min(len(text), len(undisturbed)) - 1  # without the line end
    assert text.endswith("\n") and both > 10
    assert text[:both] == undisturbed[:both]
    assert errors.strip().splitlines()[-1].startswith("hotcold: error: the cpu actor died")
    assert "Traceback" not in errors


def replaced(command: int, pid: int) -> bool:
    """Whether another CPU executor runs, or none is awaited any more."""
    try:
        return actor_pid(command, "CpuExecutor") != pid
    except AssertionError:
        return False


def until(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> Iterator[bytes]:
    """What the command prints until something is reached, or it ends."""
    assert process.stdout is not None
    deadline = time.monotonic() + 30
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline
        if select.select([process.stdout], [], [], 0.02)[0]:
            yield os.read(process.stdout.fileno(), 200)


def test_nothing_outlives_a_killed_driver() -> None:
    process = start()
    try:
        wait_for_text(process)
        mine = descendants(process.pid)
        assert len(mine) > 3
    finally:
        process.kill()
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline and any(map(running, mine)):
        time.sleep(0.05)
    left = [Path(f"/proc/{pid}/cmdline").read_text() for pid in mine if running(pid)]
    assert not left
    process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("end", "own_ray"), [("", True), ("raise SystemExit(3)", False), ("1 / 0", False)]
)
def test_a_script_that_forgets_to_close_leaves_nothing(
    end: str, own_ray: bool, one_ray: str
) -> None:
    script = (
        "from hotcold.actors import Engine\n"
        "engine = Engine.launch()\n"
        "print(next(engine.generate('Once upon a time')).text)\n" + end
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(own_ray, one_ray),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == " there\n", done.stderr
    assert done.returncode == {"": 0, "1 / 0": 1}.get(end, 3)


def test_a_signal_to_the_whole_group_ends_the_command_too() -> None:
    """As `timeout` sends it: Ray's processes go first, and giving back to it would never end."""
    command = [*COMMAND, "--context", "1024", "--max-tokens", "1000", "--ignore-eos"]
    process = subprocess.Popen(
        command,
        env=SLOW,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for_text(process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    # On a busy machine Ray's own thread, which has lost its head, may end the process before us.
    assert process.returncode == 143 or "Failed to connect to GCS" in said, said
    assert process.returncode != 143 or said.splitlines()[-1] == "hotcold: terminated"


@pytest.mark.parametrize(
    ("number", "code", "own_ray"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)]
)
def test_a_signal_ends_the_command(
    number: signal.Signals, code: int, own_ray: bool, one_ray: str
) -> None:
    process = start(env=environment(own_ray, one_ray))
    try:
        wait_for_text(process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors


def test_ctrl_c_between_several_prompts_keeps_what_was_printed(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    short = '{"prompt": "Once", "max_tokens": 3}'
    file.write_text(short + '\n{"prompt": "Once upon a time", "max_tokens": 1000}' * 20)
    process = subprocess.Popen(
        [*COMMAND[:-1], "--context", "1024", "--ignore-eos", "--prompts", str(file)],
        env=SLOW,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["index"] == 0
        mine = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "hotcold: interrupted"
    assert "Traceback" not in errors
    assert all("token_ids" in json.loads(line) for line in out.splitlines())
    assert len(mine) > 3 and not any(map(running, mine))


@pytest.mark.parametrize(("moment", "own_ray"), [("generating", False), ("closing", True)])
def test_closed_by_a_signal_handler(moment: str, own_ray: bool, one_ray: str) -> None:
    script = (
        "import signal, sys\n"
        "from hotcold.actors import Engine\n"
        "engine = Engine.launch(context=1024)\n"
        "def stop(*_):\n"
        "    engine.close()\n"
        "    engine.close()\n"
        "    print('closed', flush=True)\n"
        "    raise SystemExit(7)\n"
        "signal.signal(signal.SIGALRM, stop)\n"
        "tokens = engine.generate('Once upon a time', max_tokens=1000, ignore_eos=True)\n"
        "next(tokens)\n"
        f"if {moment == 'closing'}: tokens.close()\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        f"if {moment == 'closing'}: engine.close()\n"
        "for token in tokens: pass\n"
        "signal.pause()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(own_ray, one_ray),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "closed\n"), done.stderr


def test_a_hundred_thousand_characters_are_refused(one_ray: str) -> None:
    done = subprocess.run(
        [*COMMAND[:-1], "caf\u00e9 " * 20_000],
        env=environment(own_ray=False, one_ray=one_ray),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hotcold: error: the prompt has ") and "context holds 512" in last


def test_input_that_cannot_be_used_starts_nothing(tmp_path: Path) -> None:
    for more, message in [
        (["--model", str(tmp_path / "nowhere")], "nowhere"),
        (["--vram", "much"], "much"),
        (["--policy", "nope"], "no placement policy named 'nope'"),
        (["--no-such-flag"], "--no-such-flag"),
    ]:
        done = subprocess.run(
            [*COMMAND, *more], env=SLOW, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2, (more, done.stderr)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
