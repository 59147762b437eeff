"""Jobs of another Ray cluster, from outside it: submit, follow, stop.

Speaks to the cluster's dashboard by Ray's job client, which needs `ray[default]` on both sides.
Called by `hotcold submit`; knows nothing of what is in a job's log (`actors/jobs/jobstream.py`).
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from ray.exceptions import RayError

from hotcold.actors.cluster.clusters import GIVE_TOKEN, use_token, variables, wants_token
from hotcold.native.errors import LaunchError

RETRY_S = 1.0
READY_S = 30.0
NOT_YET = "No available agent"  # how Ray words that a cluster has only just been started
LOST_S = 60.0
STOP_S = 10.0  # Ray gives a stopped job 3 s and notices its end within 2
LOOK_S = 0.2


class Jobs:
    """One cluster's jobs, by the address of its dashboard.

    Raises:
        LaunchError: nobody answers there, it refuses, or this Ray has no job client.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            from ray.job_submission import JobSubmissionClient

            # Ray's client prefers this variable and RAY_ADDRESS to the address it is given.
            with variables({"RAY_API_SERVER_ADDRESS": address}):
                try:
                    self._client = JobSubmissionClient(address)
                except RayError as error:
                    if not (wants_token(error) and use_token(address)):
                        raise
                    self._client = JobSubmissionClient(address)
        except (ImportError, RuntimeError, ConnectionError, ValueError, RayError) as error:
            raise LaunchError(_no_client(address, error)) from error

    def submit(self, job: str, entrypoint: str, runtime_env: dict[str, Any], **more: Any) -> None:
        """Send a job; LaunchError where the cluster refuses it."""
        given = {name: value for name, value in more.items() if value}
        for name in logging.root.manager.loggerDict:  # they log every package uploaded
            if name.startswith("ray."):
                logging.getLogger(name).setLevel(logging.ERROR)
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self._client.submit_job(
                    submission_id=job, entrypoint=entrypoint, runtime_env=runtime_env, **given
                )
                return
            except (RuntimeError, ConnectionError, ValueError) as error:
                if NOT_YET not in str(error) or time.monotonic() > deadline:
                    raise LaunchError(
                        f"{self.address} did not take the job: {_last_line(error)}"
                    ) from error
            time.sleep(RETRY_S)

    def follow(self, job: str) -> Iterator[str]:
        """The job's log as it comes; ends when the job has, or when the caller stops asking.

        A connection that breaks is made again, and the log goes on where it was.

        Raises:
            LaunchError: the cluster was not reached for a minute.
        """
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        reader = threading.Thread(
            target=self._read, args=(job, pieces), name=f"follow-{job}", daemon=True
        )
        reader.start()
        while True:
            try:
                piece = pieces.get(timeout=LOOK_S)  # in slices, so that signals are heard
            except queue.Empty:
                continue
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise LaunchError(f"{self.address} was lost: {_last_line(piece)}") from piece
            yield piece

    def _read(self, job: str, pieces: "queue.Queue[str | BaseException | None]") -> None:
        seen, reached = 0, time.monotonic()
        while True:
            try:
                seen = asyncio.run(self._tail(job, seen, pieces))
                if self.ended(job):
                    rest = self._client.get_job_logs(job)[seen:]
                    if rest:
                        pieces.put(rest)
                    pieces.put(None)
                    return
                reached = time.monotonic()
            except Exception as error:  # noqa: BLE001 - aiohttp, requests and Ray raise their own
                if time.monotonic() - reached > LOST_S:
                    pieces.put(error)
                    return
            time.sleep(RETRY_S)

    async def _tail(
        self, job: str, seen: int, pieces: "queue.Queue[str | BaseException | None]"
    ) -> int:
        at = 0
        async for piece in self._client.tail_job_logs(job):
            new = piece[max(0, seen - at) :]
            at += len(piece)
            if new:
                seen += len(new)
                pieces.put(new)
        return seen

    def ended(self, job: str) -> bool:
        """Whether a job has ended, one way or another."""
        ended: bool = self._client.get_job_status(job).is_terminal()
        return ended

    def outcome(self, job: str) -> tuple[str, str, int | None]:
        """Its status, Ray's last message about it in one line, its exit code if Ray knows it."""
        info = self._client.get_job_info(job)
        return str(info.status), " ".join((info.message or "").split()), info.driver_exit_code

    def stop(self, job: str) -> bool:
        """Stop a job and wait until it has ended; False where it did not in ten seconds."""
        deadline = time.monotonic() + STOP_S
        self._client.stop_job(job)
        while not self.ended(job):
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True


def _no_client(address: str, error: BaseException) -> str:
    said = _last_line(error)
    if isinstance(error, ImportError) or "ray[default]" in said:
        return "submitting jobs needs Ray's job client; install it: pip install 'hotcold[jobs]'"
    if wants_token(error):
        return f"the Ray cluster at {address} wants its token; {GIVE_TOKEN}"
    return (
        f"no Ray dashboard answers at {address} ({said}); start the cluster with its dashboard "
        "(pip install 'ray[default]', ray start --head), or give its --address"
    )


def _last_line(error: BaseException) -> str:
    """The line of a message that says what went wrong; Ray puts remote tracebacks before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
