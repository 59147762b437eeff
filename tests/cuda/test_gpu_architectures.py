"""Every architecture with the GPU executor on a GPU: the logits of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import session
from support.references import LOW_RANK, check_on_gpu
from support.tiny_models import MODELS

from hotcold.native.gpu import mps
from hotcold.runtime.tracing.spans import read

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_are_the_references(tmp_path: Path, plugin: Any, name: str) -> None:
    folder = MODELS[name].write(tmp_path)
    check_on_gpu(folder, MODELS[name].reference(folder))


@pytest.mark.skipif(mps.control_path() is None, reason="nvidia-cuda-mps-control is not here")
@pytest.mark.parametrize("name", ["falcon, 7b", "falcon, 40b"])
@pytest.mark.parametrize("schedule", ["selective", "lookahead"])
def test_a_remote_predictor_is_asked_where_attention_is_beside(
    tmp_path: Path, plugin: Any, name: str, schedule: str
) -> None:
    folder = MODELS[name].write(tmp_path)
    reference = MODELS[name].reference(folder)
    ids, options = reference.ids(45), {"schedule": schedule, **LOW_RANK}
    with session(folder, 0.5, predictor_process="mps", **options) as local:
        logits, masks_TLN = local.logits(ids)
        spans = read(local.segment, "gpu")
    masked = reference.forward(ids, masks_TLN.transpose(1, 0, 2)).logits_TV
    np.testing.assert_allclose(logits, masked, atol=1e-3, rtol=0)
    assert {span.op for span in spans} >= {"input", "predict", "attention"}
    assert all(span.begin_ns <= span.ready_ns <= span.end_ns for span in spans)
