"""EleutherAI's lm-evaluation-harness over this engine: accuracy on tasks, the paper's Table 7.

`Scorer` answers the harness's three questions (how likely is a continuation, how likely is a text,
what comes next) with a LocalSession, so any predictor, plan and dtype can be judged; `run_tasks`
hands it to the package `lm_eval` (`pip install 'hotcold[harness]'`), which brings tasks, data and
metrics. Called by `hotcold evaluate --tasks`. It downloads nothing itself: the harness finds a
task's data.

One request at a time, nothing cached between requests. Conventions are the harness's own: spaces
that end a context belong to its continuation, a context that is too long loses its beginning, and
each token of a long text is predicted once with as much before it as fits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.offline.evaluation.evaluate import Report, log_softmax, open_session
from hotcold.runtime.options.config import EngineConfig, Sampling

MAX_NEW = 256  # tokens generated where a task does not say


class Scorer:
    """The questions that the harness asks a model, answered by an open session.

    Args:
        session: of a model with a tokenizer.

    Raises:
        CheckpointError: the model has no tokenizer.
    """

    def __init__(self, session: LocalSession) -> None:
        self._session = session
        self._encode = session.text.tokenizer.encode
        self.context = session.deployment.context
        empty, probe = self._encode(""), self._encode("a")
        same = (a == b for a, b in zip(empty, probe, strict=False))
        self._lead = next((i for i, s in enumerate(same) if not s), min(len(empty), len(probe)))
        self._tail = len(empty) - self._lead
        # A first token needs something before it: what the template puts first, or an end of text.
        self._start = list(probe[: self._lead]) or list(session.text.eos_ids[:1]) or [0]

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Log probability of a continuation, and whether it is the likeliest, token by token."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        whole = self._ids(context + continuation)
        # As the harness does: cut where the context alone would end, words that merge included.
        at = min(len(self._ids(context)), len(whole)) if context else 0
        return self._score(whole, at)

    def rolling(self, text: str) -> float:
        """Log probability of a whole text, every token predicted once."""
        ids, total = self._ids(text), 0.0
        for begin in range(0, len(ids), self.context):
            total += self._score(ids[: begin + self.context], begin)[0]
        return total

    def generate(self, context: str, options: dict[str, Any]) -> str:
        """What follows a context, up to the first of the texts in `until`.

        Args:
            context: the text; its beginning is cut off where it is too long.
            options: the harness's: until, max_gen_toks, do_sample, temperature, top_p, top_k.

        Raises:
            ConfigError: an option out of range.
        """
        until = options.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        longest = max(1, self.context - len(self._start) - 1)
        count = min(int(options.get("max_gen_toks", MAX_NEW)), longest)
        ids = self._ids(context)
        room = self.context - len(self._start) - count + 1  # the last token is not fed back
        sampled = options.get("do_sample", False)
        sampling = Sampling(
            max_tokens=count,
            temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(options.get("top_p", 1.0)) if sampled else 1.0,
            top_k=int(options.get("top_k", 0)) if sampled else 0,
            stop=tuple(stop for stop in stops if stop),
        )
        prompt = [*self._start, *ids[max(0, len(ids) - room) :]]
        return "".join(token.text for token in self._session.generate(prompt, sampling))

    def _ids(self, text: str) -> list[int]:
        """Ids of a text without what the template puts around it."""
        ids = list(self._encode(text))
        return ids[self._lead : len(ids) - self._tail]

    def _score(self, ids: Sequence[int], begin: int) -> tuple[float, bool]:
        """Log probability of ids[begin:] after ids[:begin], and whether each is the likeliest.

        Raises:
            ConfigError: there are more of them than the context holds.
        """
        count = len(ids) - begin
        if count <= 0:
            return 0.0, True
        if count > self.context:
            raise ConfigError(
                f"a continuation of {count} tokens is longer than the context of {self.context}; "
                "raise --context"
            )
        fed = [*self._start, *ids[:-1]][-self.context :]
        logits_TV, _ = self._session.logits(fed)
        log_p_TV = log_softmax(logits_TV[-count:])
        own = [float(log_p_TV[i, id_]) for i, id_ in enumerate(ids[begin:])]
        likeliest_T = log_p_TV.argmax(axis=1).tolist()
        return math.fsum(own), likeliest_T == list(ids[begin:])


def run_tasks(
    config: EngineConfig,
    tasks: Sequence[str],
    folder: Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    progress: Report | None = None,
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness; metrics by task, standard errors among them.

    Args:
        config: what to run.
        tasks: names, as `lm_eval ls tasks` lists them, or those of `folder`.
        folder: tasks of one's own, YAML files.
        limit: documents of each task at most.
        few_shot: examples put before each; None: as the task says.
        progress: called with requests done and their share.

    Raises:
        ConfigError: lm_eval is not installed, or knows no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs the lm-evaluation-harness ({error}); pip install 'hotcold[harness]'"
        ) from error
    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"the lm-evaluation-harness has no task {unknown[0]!r}; `lm_eval ls tasks` lists those "
            "it has, --task-folder adds your own"
        )
    with open_session(prepare_model(config)) as session:
        found = simple_evaluate(
            model=harness_model(Scorer(session), progress),
            tasks=list(tasks),
            num_fewshot=few_shot,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    results = (found or {}).get("results", {})
    return {
        task: {
            name.replace(",none", ""): float(value)
            for name, value in metrics.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        for task, metrics in results.items()
    }


def harness_model(scorer: Scorer, progress: Report | None = None) -> Any:
    """The scorer as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`."""
    from lm_eval.api.model import LM

    def answered(requests: Iterable[Any], answer: Callable[..., Any]) -> list[Any]:
        pending = list(requests)
        answers = []
        for done, request in enumerate(pending, start=1):
            answers.append(answer(*request.args))
            if progress is not None:
                progress(done, done / len(pending))
        return answers

    class HotcoldLM(LM):  # type: ignore[misc, unused-ignore] # untyped base class
        """The three questions, passed on."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return answered(requests, scorer.loglikelihood)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return answered(requests, scorer.rolling)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answered(requests, scorer.generate)

    return HotcoldLM()
