"""evaluate: what a predictor (or plan, or dtype) costs in quality and gains in speed.

Runs the same windows of text through two sessions: the checkpoint in its own dtype with nothing
skipped, and the configuration in question, whose recall audit looks at every neuron, so that recall
is counted and not estimated. Speed is measured separately, with the audit at its default rate. No
Ray.

Axes: T tokens of a window, V vocabulary, L layers, N neurons.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import Op
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.audit import PredictionAudit, recall_error
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import Prepared, prepare_model
from hotcold.runtime.exchange.segment import ActorState, Segment
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.predictors.predictor_choice import FeedForwardBytes
from hotcold.runtime.tracing.spans import read_array

F32 = NDArray[np.float32]
Report = Callable[[int, float], None]
KEPT_BYTES = 1 << 29  # of the dense model's logits


@dataclass(frozen=True)
class Evaluation:
    """One configuration's quality and speed.

    Args:
        tokens: tokens predicted: all but the first of each window.
        perplexity, perplexity_dense: of the configuration and of the dense checkpoint.
        agreement: share of tokens whose likeliest next token is the dense model's.
        kl: mean divergence of the next-token distribution from the dense model's, in nats.
        audit: proposals against what fired, counted over all neurons.
        recall_standard_error: between blocks of the text; nan for a single window.
        decode_tokens_per_s: of the configuration, batch 1.
        bytes_per_token: weight bytes all actors read a decoded token.
        predict_share: share of the decode time that the predictor computes; nan on a GPU.
        ffn_bytes: feed-forward bytes a token by way of predicting, by the cost model.
        predictor: kind in use, and why if `auto` chose it.
    """

    tokens: int
    perplexity: float
    perplexity_dense: float
    agreement: float
    kl: float
    audit: PredictionAudit
    recall_standard_error: float
    decode_tokens_per_s: float
    bytes_per_token: float
    predict_share: float
    ffn_bytes: FeedForwardBytes
    predictor: str

    @property
    def ratio(self) -> float:
        """Perplexity over the dense checkpoint's."""
        return self.perplexity / self.perplexity_dense


def evaluate_all(
    configs: Sequence[EngineConfig],
    windows: Sequence[Sequence[int]],
    decode_tokens: int = 64,
    progress: Report | None = None,
) -> list[Evaluation]:
    """Measure configurations of one model and context over windows of text, one after the other.

    The dense checkpoint runs once if its logits can be kept. Speeds are measured after it is
    closed, with nothing else open.

    Args:
        configs: what to evaluate; the context must hold every window.
        windows: token ids.
        decode_tokens: tokens generated to measure speed; 0: no speed.
        progress: called with tokens done and their share.

    Raises:
        HotcoldError: a model, predictor or plan that cannot be used.
    """
    windows = usable(windows)
    first, total = configs[0], len(configs) * sum(len(window) for window in windows)
    dense = EngineConfig(
        model=first.model, predictor="exact", context=first.context, threads=first.threads
    )
    judged: list[tuple[Prepared, _Sums]] = []
    done = 0
    with open_session(prepare_model(dense)) as session:
        reference = _Reference(session, keep=len(configs) > 1)
        for config in configs:
            prepared, sums = prepare_model(replace(config, audit=1)), _Sums()
            with open_session(prepared) as own:
                for index, window in enumerate(windows):
                    sums.add(window, reference.logits(index, window), watched(own, window))
                    done += len(window)
                    if progress is not None:
                        progress(done, done / total)
            judged.append((prepared, sums))
    return [
        _evaluation(prepared, sums, decode_speed(prepare_model(config), windows, decode_tokens))
        for config, (prepared, sums) in zip(configs, judged, strict=True)
    ]


class _Reference:
    """The dense model's logits by window, kept for the next configuration if they are small."""

    def __init__(self, session: LocalSession, keep: bool) -> None:
        self._session, self._kept = session, dict[int, F32]()
        self._room = KEPT_BYTES if keep else 0

    def logits(self, index: int, window: Sequence[int]) -> F32:
        if index in self._kept:
            return self._kept[index]
        logits_TV: F32 = self._session.logits(window)[0]
        if logits_TV.nbytes <= self._room:
            self._room -= logits_TV.nbytes
            self._kept[index] = logits_TV
        return logits_TV


def _evaluation(prepared: Prepared, sums: "_Sums", speed: tuple[float, float, float]) -> Evaluation:
    audit = sum(sums.audits, PredictionAudit())
    return Evaluation(
        tokens=sums.tokens,
        perplexity=math.exp(sums.loss / sums.tokens),
        perplexity_dense=math.exp(sums.loss_dense / sums.tokens),
        agreement=sums.agreed / sums.tokens,
        kl=sums.kl / sums.tokens,
        audit=audit,
        recall_standard_error=recall_error(sums.audits),
        decode_tokens_per_s=speed[0],
        bytes_per_token=speed[1],
        predict_share=speed[2],
        ffn_bytes=ffn_bytes(prepared, audit),
        predictor=str(prepared.predictor) + (f" ({prepared.note})" if prepared.note else ""),
    )


def usable(windows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The windows in which a token can be predicted.

    Raises:
        ConfigError: there are none.
    """
    found = [window for window in windows if len(window) > 1]
    if not found:
        raise ConfigError("the text has no window of two tokens; give a longer one")
    return found


class _Sums:
    def __init__(self) -> None:
        self.tokens = self.agreed = 0
        self.loss = self.loss_dense = self.kl = 0.0
        self.audits: list[PredictionAudit] = []

    def add(self, window: Sequence[int], dense_TV: F32, found: tuple[F32, PredictionAudit]) -> None:
        own_TV, audit = found
        target_T = np.asarray(window[1:])
        rows_T = np.arange(len(target_T))
        ref_TV, own_TV = log_softmax(dense_TV[:-1]), log_softmax(own_TV[:-1])
        self.loss_dense -= float(ref_TV[rows_T, target_T].sum(dtype=np.float64))
        self.loss -= float(own_TV[rows_T, target_T].sum(dtype=np.float64))
        self.kl += float((np.exp(ref_TV) * (ref_TV - own_TV)).sum(dtype=np.float64))
        self.agreed += int((ref_TV.argmax(1) == own_TV.argmax(1)).sum())
        self.tokens += len(target_T)
        self.audits.append(audit)


def log_softmax(logits_TV: F32) -> F32:
    """Log probabilities [T, V]."""
    shifted: F32 = logits_TV - logits_TV.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def open_session(prepared: Prepared) -> LocalSession:
    """The loops as threads of this process, under the plan that the config names."""
    return LocalSession(deploy(prepared, solve(prepared)))


def watched(session: LocalSession, window: Sequence[int]) -> tuple[F32, PredictionAudit]:
    """Logits of a window, and the proposals compared with what fired; needs `audit=1`."""
    before = _states(session)
    logits_TV, masks_TLN = session.logits(window)
    fired = missed = 0
    for old, new in zip(before, _states(session), strict=True):
        fired += new.up_down_rows - old.up_down_rows
        missed += new.audit_missed - old.audit_missed
    proposed = int(np.count_nonzero(masks_TLN))
    return logits_TV, PredictionAudit(fired, proposed, fired + missed, masks_TLN.size)


def _states(session: LocalSession) -> list[ActorState]:
    executors = session.deployment.topology.executors
    return [session.segment.actor_state(member.actor) for member in executors]


def decode_speed(
    prepared: Prepared, windows: Sequence[Sequence[int]], count: int
) -> tuple[float, float, float]:
    """Decoded tokens per second, weight bytes read for each, and the predictor's share of the time.

    Args:
        prepared: what to run.
        windows: the prompt is a part of the longest.
        count: tokens to generate; 0: nothing is measured, all is nan.
    """
    if not count:
        return math.nan, math.nan, math.nan
    longest = max(len(window) for window in windows)
    prompt = next(list(window) for window in windows if len(window) == longest)
    prompt = prompt[: max(1, prepared.context // 4)]
    sampling = Sampling(max_tokens=count, ignore_eos=True)
    with open_session(prepared) as session:
        for _ in range(2):  # the first run warms caches and frequencies
            deque(session.sample(prompt, sampling), maxlen=0)
        times = session.leader.request_times()
        share = predict_share(session.segment, times.prompt_ns, times.end_ns)
    # the first token comes out of the prompt's last pass
    decoded = max(1, min(count, prepared.context - len(prompt) + 1) - 1)
    seconds = (times.end_ns - times.prompt_ns) / 1e9
    speed = decoded / seconds if seconds > 0 else math.nan
    return speed, times.decode_bytes / decoded, share


def predict_share(segment: Segment, begin_ns: int, end_ns: int) -> float:
    """Share of a time that the predictor's own steps took, by the span ring.

    Only whole passes still in the ring count. On the CPU device prediction is on the critical path
    (without lookahead everybody waits for it), so this is its cost per token; where the executors
    evaluate the gates themselves it is 0. On a GPU prediction is part of its pass.
    """
    spans, _ = read_array(segment, segment.actors[-1])
    gpu, _ = read_array(segment, segment.actors[0])
    if not len(gpu):
        return math.nan
    if not len(spans):
        spans = gpu[gpu["op"] == Op.PREDICT]
    begin_ns = max(begin_ns, *(int(part["begin_ns"][0]) for part in (gpu, spans) if len(part)))
    inside = spans[(spans["begin_ns"] >= begin_ns) & (spans["end_ns"] <= end_ns)]
    busy_ns = int((inside["end_ns"] - inside["ready_ns"]).sum())
    return busy_ns / (end_ns - begin_ns) if end_ns > begin_ns else math.nan


def ffn_bytes(prepared: Prepared, audit: PredictionAudit) -> FeedForwardBytes:
    """Feed-forward bytes a token under what was counted."""
    spec = prepared.bundle.spec
    fired_L = [audit.fired / audit.total] * spec.n_layers
    own = sum(prepared.predictor_bytes_L)
    if not own:
        return FeedForwardBytes.of(spec, fired_L)
    return FeedForwardBytes.of(spec, fired_L, own, [audit.density] * spec.n_layers)
