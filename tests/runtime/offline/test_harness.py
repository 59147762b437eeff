"""The lm-evaluation-harness: its questions against sums over logits, and a task of our own."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.offline.evaluation.evaluate import open_session
from hotcold.runtime.offline.evaluation.harness import Scorer, harness_model, run_tasks
from hotcold.runtime.options.config import EngineConfig, Sampling

CONTEXT = 24
TEXT = "the old boat and the sea"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_llama(folder, TinyLlama())
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[Scorer]:
    config = EngineConfig(model=folder, predictor="exact", context=CONTEXT)
    with open_session(prepare_model(config)) as session:
        yield Scorer(session)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle.load(folder)


def ids_of(scorer: Scorer, text: str) -> tuple[list[int], int]:
    """All ids of a text, the template's first one included, and how many the template puts."""
    session: Any = scorer._session
    encode = session.text.tokenizer.encode
    return encode(text), len(encode(""))


def log_p(oracle: Oracle, ids: list[int], target: int) -> tuple[float, bool]:
    """Log probability of a token after ids, and whether it is the likeliest, in float64."""
    logits_V = oracle.forward(ids).logits_TV[-1]
    total = float(np.logaddexp.reduce(logits_V))
    return float(logits_V[target]) - total, int(logits_V.argmax()) == target


def test_a_continuation_is_scored_token_by_token(scorer: Scorer, oracle: Oracle) -> None:
    ids, _ = ids_of(scorer, "the old boat")
    before, _ = ids_of(scorer, "the old")
    expected = sum(log_p(oracle, ids[:at], ids[at])[0] for at in range(len(before), len(ids)))
    found, _ = scorer.loglikelihood("the old", " boat")
    assert found == pytest.approx(expected, abs=1e-3)
    assert scorer.loglikelihood("the old ", "boat")[0] == pytest.approx(found, abs=1e-9)
    assert scorer.loglikelihood("the old", "") == (0.0, True)
    alone, start = ids_of(scorer, "boat")
    expected = sum(log_p(oracle, alone[:at], alone[at])[0] for at in range(start, len(alone)))
    assert scorer.loglikelihood("", "boat")[0] == pytest.approx(expected, abs=1e-3)


def test_the_likeliest_continuation_is_greedy(scorer: Scorer, folder: Path) -> None:
    session: Any = scorer._session
    ids, start = ids_of(scorer, "the old boat")
    best = next(iter(session.sample(ids, Sampling(max_tokens=1, ignore_eos=True))))[0]
    other = (best + 1) % 300
    assert scorer._score([*ids[start:], best], len(ids) - start)[1]
    assert not scorer._score([*ids[start:], other], len(ids) - start)[1]


def test_a_long_text_is_scored_with_as_much_before_as_fits(scorer: Scorer, oracle: Oracle) -> None:
    text = " ".join([TEXT] * 8)
    ids, start = ids_of(scorer, text)
    own = ids[start:]
    assert len(own) > 2 * CONTEXT
    expected = 0.0
    for begin in range(0, len(own), CONTEXT):
        end = min(begin + CONTEXT, len(own))
        fed = [*ids[:start], *own[: end - 1]][-CONTEXT:]
        logits_TV = oracle.forward(fed).logits_TV[-(end - begin) :]
        for row, target in zip(logits_TV, own[begin:end], strict=True):
            expected += float(row[target]) - float(np.logaddexp.reduce(row))
    assert scorer.rolling(text) == pytest.approx(expected, abs=1e-2)
    assert scorer.rolling("") == 0.0
    short, _ = scorer.loglikelihood("", TEXT)
    assert scorer.rolling(TEXT) == pytest.approx(short, abs=1e-9)
    with pytest.raises(ConfigError, match="raise --context"):
        scorer.loglikelihood("the", " ".join([TEXT] * 8))


def test_generation_stops_and_long_contexts_lose_their_beginning(scorer: Scorer) -> None:
    long = " ".join([TEXT] * 20)
    whole = scorer.generate(long, {"max_gen_toks": 6})
    assert whole and whole == scorer.generate(long, {"max_gen_toks": 6, "until": []})
    letter = next(c for c in whole[1:] if c != whole[0])
    stopped = scorer.generate(long, {"max_gen_toks": 6, "until": [letter]})
    assert stopped == whole[: whole.index(letter)]
    assert stopped == scorer.generate(long, {"max_gen_toks": 6, "until": letter})
    hot = {"max_gen_toks": 6, "do_sample": True, "temperature": 5.0}
    assert scorer.generate(long, hot) != whole
    scorer.generate("", {"max_gen_toks": 10_000})


def test_requests_of_the_harness_are_passed_on(scorer: Scorer) -> None:
    pytest.importorskip("lm_eval", reason="the extra hotcold[harness] is not installed")
    seen: list[int] = []
    model = harness_model(scorer, lambda done, share: seen.append(done))
    pair = SimpleNamespace(args=("the old", " boat"))
    assert model.loglikelihood([pair, pair]) == [scorer.loglikelihood("the old", " boat")] * 2
    assert seen == [1, 2]
    assert model.loglikelihood_rolling([SimpleNamespace(args=(TEXT,))]) == [scorer.rolling(TEXT)]
    options = {"max_gen_toks": 3, "until": []}
    asked = [SimpleNamespace(args=("the", options))]
    assert model.generate_until(asked) == [scorer.generate("the", options)]


TASK = """
task: which_boat
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""


def test_a_task_of_ones_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy as counted by hand from the scores, data from a file, no network."""
    pytest.importorskip("lm_eval", reason="the extra hotcold[harness] is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    words = ["sea", "old", "fish", "boat", "the", "and"]
    documents = [
        {
            "question": " ".join(rng.choice(words, 4)),
            "choices": [str(w) for w in rng.choice(words, 2, replace=False)],
            "answer": int(rng.integers(2)),
        }
        for _ in range(8)
    ]
    data = tmp_path / "boats.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "boats.yaml").write_text(TASK.format(data=data))
    config = EngineConfig(model=folder, predictor="exact", context=64)
    found = run_tasks(config, ["which_boat"], tmp_path)
    with open_session(prepare_model(config)) as session:
        scorer = Scorer(session)
        right = 0
        for document in documents:
            choices = [f" {choice}" for choice in document["choices"]]
            scores = [scorer.loglikelihood(document["question"], c)[0] for c in choices]
            right += int(np.argmax(scores)) == document["answer"]
    assert found["which_boat"]["acc"] == pytest.approx(right / 8)
    assert math.isfinite(found["which_boat"]["acc_stderr"])
    with pytest.raises(ConfigError, match="no task 'nonsense_task'"):
        run_tasks(config, ["nonsense_task"], tmp_path)


def test_without_the_harness_one_line_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"hotcold\[harness\]"):
        run_tasks(EngineConfig(model=folder), ["piqa"])
