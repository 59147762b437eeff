"""Falcon against transformers, and that neurons are computed while attention is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.gpu import Share
from support.references import check_in_torch, check_on_cpu, cpu_session, refused, rewrite
from support.tiny_models import FALCON, WIDE

from hotcold.runtime.model.block import words
from hotcold.runtime.model.checkpoints.bundle import look_at, resolve_model
from hotcold.runtime.tracing.spans import read
from hotcold.runtime.tracing.timeline import exchanges, passes, perfetto
from hotcold.runtime.weights.weights import WeightStore


@pytest.mark.parametrize("form", list(FALCON))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = FALCON[form].write(tmp_path)
    reference = FALCON[form].reference(folder)
    check_on_cpu(folder, reference)
    check_in_torch(folder, reference)


def test_the_bundle_holds_all_queries_then_all_keys_then_all_values(tmp_path: Path) -> None:
    """Of 40B two key heads of 8 elements; each is followed by its value, and led by two queries."""
    folder = FALCON["40b"].write(tmp_path)
    held: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        held |= load_file(path)
    first, second = np.split(held["transformer.h.1.self_attention.query_key_value.weight"], 2)
    parts = [np.split(group, [16, 24]) for group in (first, second)]
    expected = np.concatenate([group[at] for at in range(3) for group in parts])
    with WeightStore.open(resolve_model(folder)) as store:
        np.testing.assert_array_equal(store.float32("layers.1.qkv"), expected)
        ln_mlp = held["transformer.h.0.ln_mlp.weight"]
        np.testing.assert_array_equal(store.float32("layers.0.ffn_norm"), ln_mlp)


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    """Absent keys are those of transformers' class; 7B's num_kv_heads says nothing of its keys."""
    folder = FALCON["7b"].write(tmp_path)
    absent = ("ffn_hidden_size", "multi_query", "parallel_attn", "alibi", "bias")
    rewrite(
        folder, {**dict.fromkeys(absent, ...), "num_kv_heads": 4, "num_ln_in_parallel_attn": ...}
    )
    spec = look_at(folder)[1]
    assert (spec.n_kv_heads, spec.n_neurons, spec.biases, spec.tied) == (1, 128, False, True)
    assert words(spec.block) == "norm h -> x | attend x | ffn x"
    spec = look_at(FALCON["40b"].write(tmp_path / "40b"))[1]
    assert words(spec.block) == "norm h -> x | norm h -> a | attend a | ffn x"


@pytest.mark.parametrize("kind", ["falcon", "arcee"])
def test_cold_neurons_start_while_attention_runs_side_by_side_alone(
    tmp_path: Path, kind: str
) -> None:
    """Timelines of both executors: input hands x over, and cold waits for that and no longer."""
    folder = WIDE[kind].write(tmp_path)
    options: dict[str, Any] = {"policy": Share(0.5), "threads": 1, "vram": "1GiB"}
    early: list[Any] = []  # pass by pass, of each layer
    with cpu_session(folder, settings={"predictor.by": "executors"}, **options) as local:
        programs = local.deployment.programs
        for _ in range(20):  # a busy machine may hold the CPU executor up for a while
            local.logits(list(range(3, 67)))  # two passes of 32 tokens, milliseconds each
            found = passes({actor: read(local.segment, actor) for actor in ("gpu", "cpu")})
            for one in found[-2:]:
                ends = {s.layer: s.end_ns for s in one.spans["gpu"] if s.op == "attention"}
                cold = [s for s in one.spans["cpu"] if s.op == "cold"]
                early.append([s.ready_ns < ends[s.layer] for s in cold])
            if np.any(early, axis=0).all():
                break
    assert np.shape(early)[1] == 3
    steps = {step[:2]: others for step, others in exchanges(programs).items()}
    waited = {other[:2] for other in steps["cold", 1]}
    shown = {event["name"] for event in perfetto(found, programs, {})["traceEvents"]}
    if kind == "falcon":
        assert np.any(early, axis=0).all()
        assert ("input", 1) in waited and ("attention", 1) not in waited
        assert {"input 1", "attention 1", "cold 1"} <= shown
    else:
        assert not np.any(early)
        assert ("attention", 1) in waited and "input 1" not in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": ...}, ["'gelu' is not supported", "activation 'relu'"]),
        ({"alibi": True}, ["alibi is true", "rotary"]),
        ({"parallel_attn": False}, ["parallel_attn is false"]),
        ({"num_ln_in_parallel_attn": 2}, ["num_ln_in_parallel_attn is 2", "false it must be 1"]),
        ({"num_ln_in_parallel_attn": "x", "new_decoder_architecture": True}, ["'x'", "2 or 1"]),
        ({"new_decoder_architecture": True, "num_kv_heads": 3}, ["multiple of num_kv_heads 3"]),
        ({"bias": True}, ["lacks", "query_key_value.bias"]),
        ({"ffn_hidden_size": 0}, ["ffn_hidden_size is 0"]),
        ({"num_attention_heads": 5}, ["hidden_size 32 is not a multiple"]),
        ({"architectures": ["RWForCausalLM"]}, ["RWForCausalLM", "FalconForCausalLM"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(FALCON["7b"].write(tmp_path), changes, *words)
