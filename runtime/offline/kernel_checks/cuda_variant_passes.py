"""The last part of a CUDA kernel file's test: whole passes with it against the model in torch.

cuda_variant_check.py runs each kernel alone. In a pass a kernel is launched with overlap, its input
is what the kernel before it has just written, and it gets what only passes have: stamps, thresholds
instead of outputs, a normed input that leaves for the host, int8 predictors, caches in float16, the
head's rows. So the embedded model runs with the file's kernels, both executors at work. Its logits
are compared with the same model's under the neurons that were proposed, and those with the ones
that the built-in kernels propose.

Called in the child process of cuda_variant.py. Does not test shapes that the embedded model lacks.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.engine.variant import Variant
from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.offline.kernel_checks.variant_check import Array, Wrong, compare
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.weights.weights import WeightStore

TOKENS = 37  # a block of 32 and one of 5
ALLOWED = {"float32": 2e-3, "float16": 2e-2}  # of the largest logit, by dtype of the caches
FLIPPED = 1e-3  # share of proposals that rounding may decide otherwise
CASES: dict[str, dict[str, Any]] = {
    "predicted, blocks of 32": {"predictor": "learned"},
    "predicted in int8, one token a pass, float16 caches": {
        "predictor": "learned",
        "predictor_dtype": "int8",
        "kv_dtype": "float16",
        "max_batch": 1,
    },
    "gate first, blocks of 8": {"predictor": "exact", "max_batch": 8},
}


@dataclass(frozen=True)
class EveryOther:
    """A placement policy: every other neuron on the GPU, and all modules."""

    def place(self, problem: Any) -> Any:
        """All modules fit: there is no budget."""
        filled = problem.fill(np.ones(problem.shape))
        device_LN = np.tile(np.arange(problem.shape[1]) % 2, (problem.shape[0], 1))
        return type(filled)(device_LN.astype(np.int8), dict.fromkeys(filled.modules, "gpu0"))


def check_passes(variant: Variant) -> None:
    """Every case; Wrong says which result is wrong first."""
    for name, options in CASES.items():
        case = f"a pass of the embedded model ({name})"
        print(case, flush=True)
        prepared = prepare_model(EngineConfig(policy=EveryOther(), prompt_form="sparse", **options))
        made = deploy(prepared, solve(prepared))
        rng = np.random.default_rng(0)
        ids = [int(i) for i in rng.integers(3, made.spec.vocab_size, TOKENS)]
        _, wanted_TLN = _logits(made, ids)
        logits_TV, masks_TLN = _logits(replace(made, kernels=variant), ids)
        flipped = float((masks_TLN != wanted_TLN).mean())
        if flipped > FLIPPED:
            raise Wrong(
                f"{case} proposes otherwise than the built-in kernels for {100 * flipped:.2g} % of "
                f"the neurons; {100 * FLIPPED:g} % are allowed"
            )
        exact_TV = masked_logits(made, ids, masks_TLN)
        allowed = ALLOWED[options.get("kv_dtype", "float32")] * float(np.abs(exact_TV).max())
        compare(case, logits_TV, exact_TV, allowed)


def _logits(made: Deployment, ids: list[int]) -> tuple[Array, Array]:
    with LocalSession(made) as local:
        return local.logits(ids)


def masked_logits(made: Deployment, ids: list[int], masks_TLN: NDArray[np.bool_]) -> Array:
    """Logits [T, V] of a model in which only the neurons of the masks contribute."""
    bundle = open_bundle(made.bundle_path)
    store = WeightStore.open(bundle)
    try:
        model = DenseModel(bundle, store, len(ids))
    finally:
        store.close()
    masks_LTN = torch.from_numpy(masks_TLN.swapaxes(0, 1).copy())
    with torch.inference_mode():
        hidden_TD = model.hidden(torch.tensor([ids]), propose=lambda layer, *_: masks_LTN[layer])
        return np.asarray(model.logits(hidden_TD), np.float64)
