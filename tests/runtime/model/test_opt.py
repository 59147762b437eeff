"""OPT in the three loops: right tokens for every form, plan, batch, thread count and predictor."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.opt_models import FORMS, TinyOpt, random_opt_tensors, write_opt
from support.opt_oracle import OptOracle
from support.oracle import top2_margin
from support.weights import VARIANTS, forced
from transformers import GPT2TokenizerFast, OPTForCausalLM

from hotcold.native.errors import CheckpointError
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.predictors.predictor import ModelView
from hotcold.runtime.predictors.predictor_choice import choose_predictor
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.weights.weights import WeightStore

ODD, POST = FORMS["odd"], FORMS["350m"]


def session(model: Path, **options: Any) -> LocalSession:
    prepared = prepare_model(EngineConfig(model=model, **options))
    return LocalSession(deploy(prepared, solve(prepared)))


def ids_of(model: TinyOpt, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(4, model.vocab, count).tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_opt(root / str(i), form) for i, (name, form) in enumerate(FORMS.items())}


@pytest.mark.parametrize("by", ["predictor", "executors"])
@pytest.mark.parametrize("form", list(FORMS))
def test_logits_are_the_oracles(written: dict[str, Path], form: str, by: str) -> None:
    ids = ids_of(FORMS[form], 50)
    expected = OptOracle.load(written[form]).forward(ids).logits_TV
    with session(written[form], settings={"predictor.by": by}) as local:
        logits, _ = local.logits(ids)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["odd", "350m", "float16", "bfloat16"])
def test_tokens_are_those_transformers_chooses(
    written: dict[str, Path], form: str, variant: str
) -> None:
    theirs = OPTForCausalLM.from_pretrained(written[form], dtype=torch.float32).eval()
    prompt = [2, *ids_of(FORMS[form], 8)]
    with forced(variant), session(written[form]) as local:
        sampling = Sampling(max_tokens=40, ignore_eos=True)
        ours = [id_ for id_, _ in local.sample(prompt, sampling)]
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt + ours])).logits[0].double().numpy()
    at = expected[len(prompt) - 1 : -1]
    clear = top2_margin(at) > 2e-3
    assert len(ours) == 40 and clear.mean() > 0.9
    assert np.array(ours)[clear].tolist() == at.argmax(axis=-1)[clear].tolist()


@pytest.mark.parametrize("vram", [None, 0, "1GiB", "60KiB"])
@pytest.mark.parametrize("schedule", ["paper", "selective"])
@pytest.mark.parametrize("form", ["odd", "350m"])
def test_any_split_gives_the_same_logits(
    written: dict[str, Path], form: str, schedule: str, vram: Any
) -> None:
    ids = ids_of(FORMS[form], 40)
    expected = OptOracle.load(written[form]).forward(ids).logits_TV
    with session(written[form], vram=vram, schedule=schedule) as local:
        logits, _ = local.logits(ids)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
@pytest.mark.parametrize("form", ["odd", "350m", "float16"])
def test_threads_and_batch_change_no_bit(
    written: dict[str, Path], form: str, predictor: str
) -> None:
    ids = ids_of(FORMS[form], 37)
    runs = []
    for threads, batch in [(1, 32), (2, 32), (2, 1), (1, 5)]:
        options = {"threads": threads, "max_batch": batch, "predictor": predictor}
        with session(written[form], **options) as local:
            runs.append(local.logits(ids)[0])
    for other in runs[1:]:
        np.testing.assert_array_equal(runs[0], other)


def test_gates_by_predictor_or_executors_are_the_same_bits(written: dict[str, Path]) -> None:
    ids, runs = ids_of(ODD, 30), []
    for by in ("predictor", "executors"):
        with session(written["odd"], settings={"predictor.by": by}) as local:
            runs.append(local.logits(ids)[0])
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("form", ["odd", "350m"])
def test_low_rank_leaves_out_exactly_the_unpredicted(written: dict[str, Path], form: str) -> None:
    ids = ids_of(FORMS[form], 45)
    settings = {"predictor.rank": "9", "predictor.margin": "0.5"}
    with session(written[form], predictor="low-rank", settings=settings) as local:
        logits, masks_TLN = local.logits(ids)
    oracle = OptOracle.load(written[form])
    expected = oracle.forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    assert 0.05 < masks_TLN.mean() < 0.95
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    assert np.abs(logits - oracle.forward(ids).logits_TV).max() > 1e-2, "nothing was left out"


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("form", ["odd", "350m", "no norm parameters"])
def test_scores_of_full_rank_are_the_pre_activations(
    written: dict[str, Path], form: str, profiled: bool
) -> None:
    """Biases of neuron and norm included, before or after the block: nothing is left out then."""
    bundle = resolve_model(written[form])
    trace = OptOracle.load(written[form]).forward(ids_of(FORMS[form], 30))
    profile = None
    if profiled:
        profile = ActivationProfile(trace.counts_LN, 30, bundle.checksum, "test")
    rank = {"rank": str(bundle.spec.d_model), "margin": "1"}
    with WeightStore.open(bundle) as store:
        view = ModelView.of(bundle, store)
        for name, settings in (("exact", {}), ("low-rank", rank)):
            predictor = choose_predictor(name, bundle, settings)
            predictor.prepare(view, profile)
            for layer in range(bundle.spec.n_layers):
                x_TD = trace.inputs_LTD[layer].astype(np.float32)
                scores = predictor.scores(x_TD, layer)
                np.testing.assert_allclose(scores, trace.gates_LTN[layer], atol=2e-3)


def test_masks_counts_and_counters(written: dict[str, Path]) -> None:
    """Rows of fc1 count as gate rows, columns of fc2 as up and down rows; bytes are the rows'."""
    ids = ids_of(ODD, 20)
    trace = OptOracle.load(written["odd"]).forward(ids)
    prepared = prepare_model(EngineConfig(model=written["odd"], vram="60KiB"))
    fired_LN = np.zeros(prepared.problem.shape, np.int64)
    with LocalSession(deploy(prepared, solve(prepared)), fired_LN) as local:
        _, masks_TLN = local.logits(ids)
        states = {actor: local.segment.actor_state(actor) for actor in local.executors}
    clear = np.abs(trace.gates_LTN) > 1e-5
    fired = masks_TLN.transpose(1, 0, 2)
    np.testing.assert_array_equal(fired[clear], (trace.gates_LTN > 0)[clear])
    assert np.abs(fired_LN - trace.counts_LN).sum() <= (~clear).sum()
    used = states["gpu"].up_down_rows + states["cpu"].up_down_rows
    assert abs(used - trace.counts_LN.sum()) <= (~clear).sum()
    assert states["predictor"].gate_rows == 20 * trace.counts_LN.size
    layers, neurons = trace.counts_LN.shape
    assert states["predictor"].bytes == layers * neurons * (ODD.d + 1) * 4


def test_the_bundle_holds_the_checkpoint(written: dict[str, Path]) -> None:
    model = FORMS["float16"]
    source = {name: value.astype(np.float16) for name, value in random_opt_tensors(model).items()}
    bundle = resolve_model(written["float16"])
    record = bundle.record
    assert [(part.name, part.offset) for part in record.parts] == [
        ("gate", 0),
        ("down", 90),
        ("bias", 180),
    ]
    assert record.bytes == 192 and record.fields()["up"] == -1
    with WeightStore.open(bundle) as store:
        p = "model.decoder.layers.1"
        np.testing.assert_array_equal(store.neuron_rows(1, "gate"), source[f"{p}.fc1.weight"])
        np.testing.assert_array_equal(store.neuron_rows(1, "down"), source[f"{p}.fc2.weight"].T)
        np.testing.assert_array_equal(store.neuron_biases(1), source[f"{p}.fc1.bias"])
        np.testing.assert_array_equal(store.float32("layers.1.ffn_bias"), source[f"{p}.fc2.bias"])
        table = source["model.decoder.embed_positions.weight"]
        np.testing.assert_array_equal(store.array("positions"), table[2:])
        with pytest.raises(Exception, match="no up row"):
            store.neuron_rows(1, "up")


def test_text_in_and_out(written: dict[str, Path]) -> None:
    with session(written["even"]) as local:
        ids = local.text.tokenizer.encode("in the thin end\u00e9")
        assert ids[0] == 2 and local.text.tokenizer.decode(ids) == "in the thin end\u00e9"
        tokens = list(local.generate("in the", Sampling(max_tokens=12, ignore_eos=True)))
        whole = local.text.tokenizer.decode([token.id for token in tokens])
    assert "".join(token.text for token in tokens) == whole and len(tokens) == 12
    assert local.deployment.spec.eos_ids == (2,)


def test_vocabulary_and_merges_do_for_a_tokenizer(tmp_path: Path) -> None:
    """OPT's own repositories have no tokenizer.json."""
    from hotcold.runtime.text.tokenizer import Tokenizer

    write_opt(tmp_path / "files", TinyOpt(tokenizer="files"))
    with session(tmp_path / "files") as local:
        ours = local.text.tokenizer
        assert len(list(local.generate("in the", Sampling(max_tokens=3, ignore_eos=True)))) == 3
    same = Tokenizer.load(write_opt(tmp_path / "json", TinyOpt()))
    theirs = GPT2TokenizerFast.from_pretrained(tmp_path / "files")
    for text in ("in the thin end", " the\n\u00e9 \u4e2d </s>x", "", "a" * 3000, "  in  the"):
        ids = ours.encode(text, special=True)
        assert (
            ids
            == same.encode(text, special=True)
            == [2, *theirs.encode(text, add_special_tokens=False)]
        )
        assert ours.decode(ids) == same.decode(ids)
    assert ours.eos_ids == (2,)


@pytest.mark.parametrize(
    ("name", "text"), [("vocab.json", "[1"), ("vocab.json", '{"a": "b"}'), ("merges.txt", "x y z")]
)
def test_damaged_tokenizer_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    from hotcold.runtime.text.tokenizer import Tokenizer

    write_opt(tmp_path, TinyOpt(tokenizer="files"))
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="vocab.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="no tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_inspect_shows_an_opt(written: dict[str, Path]) -> None:
    from hotcold.actors.cli.commands.inspect import command, describe

    result = CliRunner().invoke(command, [str(written["350m"])])
    assert result.exit_code == 0, result.output
    for words in ("45 neurons (ReLU with bias), width 40", "64 learned positions", "of width 24"):
        assert words in result.output
    assert "layer norms after each block" in result.output
    parameters = describe(resolve_model(written["350m"]))["parameters"]
    tensors = random_opt_tensors(POST)
    # two rows of the positions' table belong to no position
    assert parameters["total"] == sum(value.size for value in tensors.values()) - 2 * POST.d
    assert parameters["neurons"] == 3 * (45 * (2 * 40 + 1) + 40)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"activation_function": "gelu"}, ["activation 'gelu'", "only with ReLU"]),
        ({"hidden_size": 34}, ["34 is not a multiple", "4"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"ffn_dim": 0}, ["ffn_dim", "1 to"]),
        ({"enable_bias": False}, ["holds biases", "q_proj.bias", "OPT"]),
        ({"enable_bias": "yes"}, ["enable_bias", "true or false"]),
        ({"do_layer_norm_before": 1}, ["do_layer_norm_before", "true or false"]),
        ({"word_embed_proj_dim": 16}, ["project_in.weight"]),
        ({"word_embed_proj_dim": -1}, ["word_embed_proj_dim"]),
        ({"max_position_embeddings": 63}, ["embed_positions", "[66, 32]", "[65, 32]"]),
        ({"tie_word_embeddings": False}, ["lacks 1", "lm_head.weight"]),
        ({"quantization_config": {}}, ["quantised"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, config: dict[str, Any], words: list[str]
) -> None:
    tensors = random_opt_tensors(TinyOpt())
    write_opt(tmp_path, TinyOpt(config=config), tensors)
    with pytest.raises(CheckpointError) as caught:
        resolve_model(tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["fc1.bias", "self_attn.q_proj.bias", "final_layer_norm.bias"])
def test_a_missing_bias_is_named(tmp_path: Path, name: str) -> None:
    tensors = random_opt_tensors(TinyOpt())
    del tensors[f"model.decoder.layers.1.{name}"]
    write_opt(tmp_path, TinyOpt(), tensors)
    with pytest.raises(CheckpointError, match=rf"lacks 1 .*layers\.1\.{name}"):
        resolve_model(tmp_path)


def test_damaged_kinds_in_a_bundle_are_refused(tmp_path: Path) -> None:
    from hotcold.runtime.model.architectures.limits import check_spec

    spec = resolve_model(write_opt(tmp_path, TinyOpt())).spec
    assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))) == spec
    for changes in (
        {"norm": "batch"},
        {"activation": ["relu"]},
        {"gated": True},
        {"positions": "rotary"},
        {"biases": 1},
        {"embed_dim": 0},
        {"embed_dim": True},
        {"rope_theta": 1e4},
        {"post_norm": None},
    ):
        with pytest.raises(ValueError):
            check_spec(replace(spec, **changes))  # type: ignore[arg-type]
