"""What the first GPU executor does on any device: requests, and the form of each prompt."""

import sys
import threading
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np

from hotcold.native.abi.generated import Reuse
from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor, Shared, kernels_used
from hotcold.runtime.engine.moving import RATE, Moved, Mover, Table, Taker, cannot_move
from hotcold.runtime.engine.prompt import PromptForm
from hotcold.runtime.engine.request import Sampled
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.limits import processors
from hotcold.runtime.plan.fetch import fetched
from hotcold.runtime.topology import Member

# Each time tokens are handed on costs about 1.4 ms of processor time in three processes (actor,
# driver, Ray): on two cores that both compute, 2 % of a 1B model's 33 ms if done for every token
# (by the scheduler's counts; tokens/s vary more from run to run). Many cores keep nobody waiting.
COALESCE_MS = min(200, max(50, 400 // processors().at_once))
AT_ONCE = 64  # or as soon as so many are there
LATE_CANCELS = 256  # the newest are remembered for requests that arrive after them


class LeadingExecutor(Executor):
    """The first GPU executor: begins every pass, samples, and runs requests.

    Attributes:
        keeps_kv: it knows what keys and values it has, and those in the driver's memory outlive it.
        prompts: chooses the form of each prompt.
    """

    keeps_kv: ClassVar[bool]

    def __init__(
        self, deployment: Deployment, segment: Segment, shared: Shared, member: Member
    ) -> None:
        super().__init__(deployment, segment, shared, member)
        self.prompts = self._prompt_form()
        self._counts = shared.fired_LN is not None
        self._cancelled: deque[int] = deque(maxlen=LATE_CANCELS)
        self._begun = deployment
        self._moving = threading.Lock()
        self._times = RequestTimes(0, 0, 0, 0, 0, 0)

    def _prompt_form(self) -> PromptForm:
        return PromptForm("sparse", 0, self.deployment.layout.max_batch, "")

    @classmethod
    def role(cls, deployment: Deployment, member: Member) -> str:
        """Its share of the neurons, and what it fetches."""
        plan, device_LN = deployment.plan, deployment.plan.device_LN
        hot = int(np.count_nonzero(device_LN == member.index))
        over_bus = int(np.count_nonzero(fetched(device_LN, deployment.fetch_L, plan.gpus)))
        fetches = f", {over_bus} fetched over the bus" if over_bus else ""
        by = plan.format_text(member.index) + kernels_used(deployment, on_gpu=True)
        return f"attention, head, {hot} of {device_LN.size} neurons{fetches}{by}"

    def generate(self, request: Request) -> Generator[Sampled, None, RequestTimes]:
        """Run a request on the GPU executor; yields what is ready, several times a second.

        Several threads may each run one: as many at once as the deployment has `sequences`, and the
        others wait. Who stops early closes the generator; the pass under way still ends.

        Returns:
            its times, which `request_times` has too, until the next one is over.

        Raises:
            ConfigError: the request does not fit.
            ActorLostError: the exchange was poisoned meanwhile; names the actor at fault.
        """
        if request.n_dense is None:
            given = request.n_given or len(request.prompt)
            measure = partial(self.prompt_seconds, request)
            request = replace(request, n_dense=self.prompts.dense_tokens(given, measure))
        native, id_ = self.native, request.id
        native.post(replace(request, reuse=self._reuse(request)))
        if id_ in self._cancelled:
            native.cancel(id_)
        index, wanted, done = 0, 1, False
        try:
            while not done:
                tokens, done, top = native.tokens_and_top(id_, index, COALESCE_MS, wanted, AT_ONCE)
                wanted = AT_ONCE if len(tokens) else 1  # the first after a pause goes out alone
                if len(tokens):
                    index += len(tokens)
                    ids, logprobs, times_ns = (
                        tokens[name].tolist() for name in ("id", "logprob", "time_ns")
                    )
                    yield Sampled(ids, logprobs, times_ns, top)
                self.segment.raise_if_poisoned()
            self._times = native.request_times(id_)
            return self._times
        finally:
            native.cancel(id_)
            # Until then it may write to the request's arrays.
            while not done and native.is_open and not self.segment.poisoned:
                done = native.tokens(id_, sys.maxsize, COALESCE_MS)[1]
            native.release(id_)

    def move(self, to: Deployment, takers: Mapping[int, Taker], rate: int = RATE) -> Moved | None:
        """Become another deployment by moves alone, while tokens run; None: that cannot be.

        takers: of the devices that keep records of their own. rate: bytes of records a second.

        Raises:
            ConfigError: another one is under way; a weight that a device's format cannot hold.
            BudgetError: a device has no free slot. After either all is as it was.
            ActorLostError, PlanReplaced, KernelError: the exchange was poisoned meanwhile.
        """
        if not self._moving.acquire(blocking=False):
            raise ConfigError("neurons are being moved already; try again when that is done")
        try:
            if cannot_move(self.deployment, to) is not None:
                return None
            mover = Mover(self._begun, self.segment, self.native.own, takers)
            moved = mover.run(to.plan.device_LN, rate)
            begun = self._begun
            self.deployment = replace(to, version=begun.version, moved=begun.moved)
            return moved
        finally:
            self._moving.release()

    @property
    def ownership(self) -> tuple[int, int]:
        """Version of the table of owners, and neurons moved, since the launch."""
        begun = self._begun
        table = Table(self.segment, begun)
        return begun.version + table.version, begun.moved + table.moved

    def cancel(self, request: int) -> None:
        """End the request of that id after its current token; one yet to come never runs."""
        self._cancelled.append(request)
        self.native.cancel(request)

    def _reuse(self, request: Request) -> Reuse:
        """Which keys and values a request may begin with instead of computing them.

        None where every position is wanted for itself: its logits, its proposals, its counts, what
        a predictor remembers of it.
        """
        of_positions = request.logits_PV is not None or request.masks_PLN is not None
        if of_positions or self._counts or self.deployment.remembers or not self.keeps_kv:
            return Reuse.NONE
        if request.n_given:
            return Reuse.ANY
        return Reuse.PLAN if self.deployment.prefix_cache else Reuse.NONE

    def prompt_seconds(self, request: Request, tokens: int, dense: int) -> float:
        """Time the first tokens of a prompt, and throw the result away."""
        trial = Request(request.id, request.prompt[:tokens], request.sampling, n_dense=dense)
        times = run_through(self.generate(trial))
        return (times.prompt_ns - times.begin_ns) * 1e-9

    def request_times(self) -> RequestTimes:
        """Times of the last finished request."""
        return self._times


def run_through(stream: Generator[Sampled, None, RequestTimes]) -> RequestTimes:
    """Run a request to its end, whatever it draws."""
    while True:
        try:
            next(stream)
        except StopIteration as ended:
            times: RequestTimes = ended.value
            return times
