"""`hotcold submit`: run a command as a job of a Ray cluster that may lack hotcold.

Sends the package (`shipping.py`) and the user's folder, prints what the job prints, copies files
back, and ends with the command's exit code. The job's side is job.py. Ray is imported inside the
function only.
"""

import platform
import shlex
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import debug_option
from hotcold.actors.cli.common.running import StopSignals, Terminated
from hotcold.actors.jobs import jobstream, shipping
from hotcold.native.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from hotcold.actors.jobs.ray_jobs import Jobs

ADDRESS = "http://127.0.0.1:8265"
NO_SUCH_COMMAND = 127


@dataclass(frozen=True)
class Sending:
    """What to send besides the package, as the options say."""

    working_dir: Path
    exclude: tuple[str, ...]
    fetch: tuple[str, ...]
    env: dict[str, str]
    wheel: Path | None
    install: bool
    python: str


@click.command(
    "submit", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default=ADDRESS,
    show_default=True,
    help="The cluster's dashboard (or RAY_API_SERVER_ADDRESS).",
)
@click.option(
    "--fetch",
    metavar="PATH",
    multiple=True,
    help="A file or folder the command writes, to be copied back here; may be repeated.",
)
@click.option(
    "--working-dir",
    type=click.Path(path_type=Path),
    default=Path("."),
    help="Folder to send, in which the command then runs.  [default: this one]",
)
@click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Files of it not to send, besides those that .gitignore names; may be repeated.",
)
@click.option(
    "--env",
    metavar="NAME=VALUE",
    multiple=True,
    help="An environment variable of the job, HOTCOLD_CACHE=/data/cache for example.",
)
@click.option(
    "--install",
    is_flag=True,
    help="Let the cluster install with pip what hotcold depends on, where it lacks it.",
)
@click.option(
    "--wheel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Send this wheel's content.  [default: the running installation's]",
)
@click.option("--python", default="python", show_default=True, help="Python to run on the cluster.")
@click.option(
    "--entrypoint-num-cpus",
    type=click.FloatRange(min=0),
    help="CPUs reserved for the command itself; it then runs on a worker node that has them.",
)
@debug_option
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT]...")
def command(
    address: str,
    entrypoint_num_cpus: float | None,
    words: tuple[str, ...],
    **options: Any,
) -> int:
    """Run COMMAND, a command of hotcold or `python FILE`, as a job of a Ray cluster.

    hotcold submit --fetch out -- solve --policy mine.py:Mine --out out

    The cluster needs: Linux of this machine's architecture, ray[default] with its dashboard
    reachable from here, Python 3.10 or newer, and what hotcold depends on (torch, tokenizers, ...;
    or --install). It need not have hotcold: this installation is sent with its kernels, and so is
    the current folder, except what .gitignore names. Models are not sent: name them by paths that
    the cluster sees.

    What the job prints comes as it is printed; the exit code is the command's own. Ctrl-C stops
    the job. Where hotcold is installed on the cluster, `ray job submit -- hotcold ...` does too.
    """
    _check_words(words)
    env = options.pop("env")
    sending = Sending(env=_variables(env), **options)
    _check_fetch(sending.fetch)
    from hotcold.actors.jobs.ray_jobs import Jobs

    with StopSignals():
        return _run(Jobs(address), sending, words, entrypoint_num_cpus)


def _check_words(words: tuple[str, ...]) -> None:
    from hotcold.actors.cli.common.commands import COMMANDS

    known = [name for name in COMMANDS if name != "submit"]
    if words[0] == "python" and len(words) > 1:
        return
    if words[0] not in known:
        raise click.UsageError(
            f"{words[0]!r} is no command to submit; one of {', '.join(known)}, or python FILE"
        )


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    for (name, equals, _), one in zip(pairs, given, strict=True):
        if not equals or not name.isidentifier():
            raise ConfigError(f"--env {one!r} is not NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _check_fetch(paths: tuple[str, ...]) -> None:
    for path in paths:
        inside = PurePosixPath(path)
        if inside.is_absolute() or ".." in inside.parts or path in ("", "."):
            raise ConfigError(
                f"--fetch {path!r} must name a file or folder below the one that is sent, such as "
                "the command's --out"
            )


def _run(jobs: "Jobs", sending: Sending, words: tuple[str, ...], cpus: float | None) -> int:
    job = f"hotcold-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="hotcold-submit-") as scratch:
        runtime_env = _pack(Path(scratch), sending)
        line = _entrypoint(sending, words)
        jobs.submit(job, line, runtime_env, entrypoint_num_cpus=cpus)
    output.note(f"hotcold: job {job} at {jobs.address}")
    try:
        return _follow(jobs, job, sending)
    except (KeyboardInterrupt, Terminated):
        output.note(f"hotcold: stopping job {job}")
        if not jobs.stop(job):
            output.note(f"hotcold: job {job} has not ended yet; see `ray job status {job}`")
        raise


def _pack(scratch: Path, sending: Sending) -> dict[str, Any]:
    package = scratch / "package"
    package.mkdir()
    folders = shipping.package_folders(package, sending.wheel)
    folder = scratch / "folder.zip"
    excluded = (*sending.exclude, *sending.fetch)
    sent = shipping.zip_folder(sending.working_dir, folder, excluded)
    if any(name in ("hotcold.py", "hotcold/__init__.py") for name in sent):
        raise ConfigError(
            f"{sending.working_dir} has a hotcold of its own, which would hide the package; "
            "rename it or leave it out with --exclude"
        )
    files = output.count(len(sent), "file")
    output.note(f"hotcold: sending {files} of {sending.working_dir.resolve()}")
    runtime_env: dict[str, Any] = {
        "working_dir": str(folder),
        "py_modules": [str(one) for one in folders],
        "env_vars": sending.env,
    }
    if sending.install:
        runtime_env["pip"] = shipping.requirements(folders)
    return runtime_env


def _entrypoint(sending: Sending, words: tuple[str, ...]) -> str:
    job = ("-m", "hotcold.actors.cli.commands.job", "--machine", platform.machine())
    fetch = [word for path in sending.fetch for word in ("--fetch", path)]
    return shlex.join([sending.python, *job, *fetch, "--", *words])


def _follow(jobs: "Jobs", job: str, sending: Sending) -> int:
    """Print what comes until the exit code does; LaunchError where the job ended without one."""
    splitter, files = jobstream.Splitter(), list[str]()
    begun, before = False, ""
    for piece in jobs.follow(job):
        for kind, text in splitter.feed(piece):
            if kind == jobstream.BEGIN:
                begun = True
            elif kind == jobstream.FILE:
                files.append(text)
            elif kind == jobstream.EXIT:
                return _end(int(text), files, sending)
            elif not begun:
                before += text  # Ray's own words, of use only where the job never begins
            else:
                stream = sys.stderr if kind == jobstream.ERROR else sys.stdout
                stream.write(text)
                stream.flush()
    raise LaunchError(_without_end(jobs, job, begun, before))


def _end(code: int, files: list[str], sending: Sending) -> int:
    if files:
        try:
            written = jobstream.unpack_files(files, Path.cwd(), list(sending.fetch))
        except (OSError, ValueError) as error:
            raise LaunchError(f"--fetch: {error}") from error
        came = output.count(len(written), "file")
        output.note(f"hotcold: {came} came back to {', '.join(sending.fetch)}")
    return code


def _without_end(jobs: "Jobs", job: str, begun: bool, before: str) -> str:
    status, message, code = jobs.outcome(job)
    if status == "STOPPED":
        return f"job {job} was stopped"
    if not begun and code == NO_SUCH_COMMAND:
        return "the cluster's PATH has no such Python; name one with --python"
    said = before.strip().splitlines()
    why = said[-1] if said and code is not None else message[-500:]
    return f"job {job} {'ended early' if begun else 'did not start'} ({status.lower()}): {why}"
