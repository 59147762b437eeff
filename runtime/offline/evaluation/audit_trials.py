"""How accurate the recall audit is and what it costs, measured over seeded runs.

The true recall of a text comes from a run that looks at every neuron; then the same text runs under
many seeds at the default rate, and the 95 % intervals are compared with the true recall. The cost
is measured in two ways: tokens/s with and without the audit in turn, and the time that the
executors' loops spend between two steps, which is the audit's and varies less. Called by `hotcold
evaluate --audit-runs`. No Ray.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hotcold.native.abi.names import OPS
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.audit import RecallEstimate
from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.offline.evaluation.evaluate import F32, Report
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.tracing.spans import read_array

DECODE = 256  # tokens of a run that is timed
TRIM = 0.99  # of the shortest gaps count
AFTER = ("hot", "cold")  # the steps that leave the audit for after their signal


@dataclass(frozen=True)
class AuditTrials:
    """What seeded runs of the audit gave.

    Args:
        every: one in so many neurons was looked at.
        tokens: of each run.
        recall: the true one.
        runs: how many there were.
        covered: runs whose 95 % interval holds the true recall.
        half_width: mean half-width of the intervals.
        half_width_max: the largest.
        unchanged: runs whose logits were, bit for bit, those of a run without an audit.
        busy_share: time a token both executors spend on the audit over the time of a token; an
            upper bound of what it costs, since they may have waited instead.
        speed_loss: 1 - tokens/s with the audit over tokens/s without, mean of rounds in turn.
        speed_loss_error: its standard error.
    """

    every: int
    tokens: int
    recall: float
    runs: int
    covered: int
    half_width: float
    half_width_max: float
    unchanged: int
    busy_share: float
    speed_loss: float
    speed_loss_error: float


def run_trials(
    config: EngineConfig,
    window: Sequence[int],
    runs: int,
    rounds: int = 20,
    progress: Report | None = None,
) -> AuditTrials:
    """Run the audit under seeds 0 to runs - 1 over one window.

    Args:
        config: what to run; its `audit` is the rate.
        window: token ids, 512 for the figures that are promised.
        runs: seeds.
        rounds: timed runs with and without the audit; 0: no times.
        progress: called with runs done and their share.

    Raises:
        ConfigError: nothing is guessed, or no audit is asked for.
    """
    prepared = prepare_model(config)
    deployment = deploy(prepared, solve(prepared))
    if not deployment.audit_every:
        raise ConfigError(
            f"predictor '{prepared.predictor}' with audit {config.audit} is not audited; name one "
            "that guesses, learned or low-rank, and a rate of at least 1"
        )
    plain, none = _audited(replace(deployment, audit_every=0), window)
    _, truth = _audited(replace(deployment, audit_every=1), window)
    assert none.missed == 0  # noqa: S101 - invariant: nothing is looked at
    covered = unchanged = 0
    widths: list[float] = []
    for seed in range(runs):
        logits_TV, found = _audited(replace(deployment, audit_seed=seed), window)
        low, high = found.interval
        covered += low <= truth.recall <= high
        unchanged += bool(np.array_equal(logits_TV, plain))
        widths.append(1.96 * found.standard_error)
        if progress is not None:
            progress(seed + 1, (seed + 1) / runs)
    busy, loss, error = _cost(deployment, window, rounds)
    return AuditTrials(
        every=deployment.audit_every,
        tokens=len(window),
        recall=truth.recall,
        runs=runs,
        covered=covered,
        half_width=statistics.fmean(widths),
        half_width_max=max(widths),
        unchanged=unchanged,
        busy_share=busy,
        speed_loss=loss,
        speed_loss_error=error,
    )


def _audited(deployment: Deployment, window: Sequence[int]) -> tuple[F32, RecallEstimate]:
    """Logits of a window, and what the audit makes of its recall."""
    with LocalSession(deployment) as session:
        logits_TV, _ = session.logits(window)
        executors = deployment.topology.executors
        states = [session.segment.actor_state(member.actor) for member in executors]
    fired = sum(state.up_down_rows for state in states)
    missed = sum(state.audit_missed for state in states)
    return logits_TV, RecallEstimate(fired, missed, max(1, deployment.audit_every))


def _cost(deployment: Deployment, window: Sequence[int], rounds: int) -> tuple[float, float, float]:
    """Busy share of the audit; loss of tokens/s and its standard error."""
    if not rounds:
        return math.nan, math.nan, math.nan
    with_audit, without = deployment, replace(deployment, audit_every=0)
    losses, busy = [], []
    for number in range(rounds):
        order = (with_audit, without) if number % 2 else (without, with_audit)
        found = {chosen.audit_every: _timed(chosen, window) for chosen in order}
        (token_ns, gap_ns), (token_off_ns, gap_off_ns) = found[deployment.audit_every], found[0]
        losses.append(1 - token_off_ns / token_ns)
        busy.append((gap_ns - gap_off_ns) / token_off_ns)
    error = statistics.stdev(losses) / math.sqrt(rounds) if rounds > 1 else math.nan
    return statistics.median(busy), statistics.fmean(losses), error


def _timed(deployment: Deployment, window: Sequence[int]) -> tuple[float, float]:
    """Nanoseconds of a decoded token, and those that both loops spend after steps of the FFN."""
    room = deployment.context
    prompt = list(window)[: max(1, room // 4)]
    count = max(2, min(DECODE, room - len(prompt)))
    times: list[float] = []
    with LocalSession(deployment) as session:
        for _ in range(4):  # the first warms caches and frequencies
            deque(session.sample(prompt, Sampling(count, ignore_eos=True)), maxlen=0)
            ended = session.leader.request_times()
            times.append((ended.end_ns - ended.prompt_ns) / (count - 1))
        executors = deployment.topology.executors
        gaps = sum(_gap_ns(session.segment, one.actor, ended.prompt_ns) for one in executors)
    return min(times[1:]), gaps


def _gap_ns(segment: Segment, actor: str, since_ns: int) -> float:
    """Nanoseconds a pass between a step of the FFN and the next one, the last of a pass left out.

    That last step of the CPU executor audits before its signal, within its span; its share is that
    of the other layers, so the mean of those stands for it.
    """
    spans, _ = read_array(segment, actor)
    spans = spans[spans["begin_ns"] >= since_ns]
    if len(spans) < 2:
        return 0.0
    ops = [OPS.index(name) for name in AFTER]
    here, following = spans[:-1], spans[1:]
    inner = np.isin(here["op"], ops) & (here["seq"] == following["seq"])
    gaps = (following["begin_ns"] - here["end_ns"])[inner]
    if not len(gaps):
        return 0.0
    layers = len(np.unique(here["layer"][np.isin(here["op"], ops)]))
    kept = np.sort(gaps)[: max(1, int(TRIM * len(gaps)))]  # without what the system took
    return float(kept.mean()) * layers
