"""Bamboo (TurboSparse) against transformers' Mistral with ReLU on both projections."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.references import check_in_torch, check_on_cpu, cpu_session, refused, rewrite
from support.tiny_models import BAMBOO

from hotcold.runtime.model.checkpoints.bundle import look_at


@pytest.mark.parametrize("form", list(BAMBOO))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = BAMBOO[form].write(tmp_path)
    reference = BAMBOO[form].reference(folder)
    check_on_cpu(folder, reference)
    check_in_torch(folder, reference)


def test_a_window_reads_fewer_bytes_of_the_cache(tmp_path: Path) -> None:
    """Two layers, two key heads of 8 floats: beyond the window 7 positions of them."""
    ids, read = list(range(3, 53)), {}
    for form in ("window", "no window"):
        folder = BAMBOO[form].write(tmp_path / form)
        with cpu_session(folder, max_batch=1, vram=0) as local:
            local.logits(ids)
            read[form] = local.segment.actor_state("gpu").bytes
    positions = np.arange(1, len(ids) + 1)
    fewer = (positions - np.minimum(positions, 7)).sum()
    assert read["no window"] - read["window"] == fewer * 2 * (2 * 8) * 2 * 4


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    """Absent keys are as in the model's own class: a window of 4096 positions, 8 key heads."""
    folder = BAMBOO["no window"].write(tmp_path)
    assert json.loads((folder / "config.json").read_text())["sliding_window"] is None
    assert look_at(folder)[1].attention_window is None
    rewrite(folder, {"sliding_window": ...})
    assert look_at(folder)[1].attention_window == 4096
    words = "num_attention_heads 4 is not a multiple of num_key_value_heads 8"
    refused(folder, {"num_key_value_heads": ...}, words)
    refused(folder, {"num_key_value_heads": None}, "k_proj.weight", "[32, 32]")


def test_inspect_shows_it(tmp_path: Path) -> None:
    from hotcold.actors.cli.commands.inspect import command

    result = CliRunner().invoke(command, [str(BAMBOO["window"].write(tmp_path))])
    assert result.exit_code == 0, result.output
    assert "8 each, a window of 7 positions" in result.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "silu"}, ["'silu'", "hidden_act 'relu'"]),
        ({"sliding_window": 0}, ["sliding_window is 0", "1 to"]),
        ({"sliding_window": "all"}, ["sliding_window is 'all'"]),
        ({"rope_parameters": {"rope_type": "axial", "factor": 2.0}}, ["'axial'"]),
        ({"architectures": ["BambaForCausalLM"]}, ["BambaForCausalLM", "BambooForCausalLM"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(BAMBOO["window"].write(tmp_path), changes, *words)
