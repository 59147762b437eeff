"""The last part of a CUDA kernel file's test: whole passes with it against numpy in float64.

cuda_variant_check.py runs each kernel alone. In a pass a kernel is launched with overlap, its input
is what the kernel before it has just written, and it gets what only passes have: stamps, thresholds
instead of outputs, a normed input that leaves for the host, int8 predictors, caches in float16, the
head's rows. So the embedded model runs with the file's kernels, both executors at work. Its logits
are compared with the same model's under the neurons that were proposed, and those with the ones
that the built-in kernels propose.

Called in the child process of cuda_variant.py. Does not test shapes that the embedded model lacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.engine.variant import Variant
from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.model.rotary import rotary_tables
from hotcold.runtime.offline.kernel_checks.variant_check import Array, Wrong, compare
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
    """Every case.

    Raises:
        Wrong: the first result that is wrong.
    """
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
    """Logits [T, V] in float64 of a Llama whose other neurons contribute nothing."""
    bundle = open_bundle(made.bundle_path)
    store = WeightStore.open(bundle)
    try:
        weights = store.float32
        h_TD = weights("embed")[ids].astype(np.float64)
        for layer, mask_TN in enumerate(masks_TLN.swapaxes(0, 1)):
            x_TD = _norm(made, h_TD, weights(f"layers.{layer}.attention_norm"))
            mixed_TQ = _attention(made, x_TD @ weights(f"layers.{layer}.qkv").T)
            h_TD = h_TD + mixed_TQ @ weights(f"layers.{layer}.o").T
            x_TD = _norm(made, h_TD, weights(f"layers.{layer}.ffn_norm"))
            gate_TN = np.maximum(x_TD @ store.neuron_rows(layer, "gate").T, 0) * mask_TN
            fired_TN = gate_TN * (x_TD @ store.neuron_rows(layer, "up").T)
            h_TD = h_TD + fired_TN @ store.neuron_rows(layer, "down")
        head_VD = weights("embed" if made.spec.tied else "head")
        logits_TV: Array = _norm(made, h_TD, weights("final_norm")) @ head_VD.T
        return logits_TV
    finally:
        store.close()


def _norm(made: Deployment, x_TD: Array, weight_D: Array) -> Array:
    mean_T1 = (x_TD**2).mean(axis=1, keepdims=True)
    normed: Array = x_TD / np.sqrt(mean_T1 + made.spec.norm_eps) * weight_D
    return normed


def _attention(made: Deployment, qkv_TE: Array) -> Array:
    """Causal attention of rotated heads, [T, heads * head_dim]."""
    spec, T = made.spec, len(qkv_TE)
    parts_THE = qkv_TE.reshape(T, -1, spec.head_dim)
    q_THE, k_TKE, v_TKE = np.split(
        parts_THE, [spec.n_heads, spec.n_heads + spec.n_kv_heads], axis=1
    )
    q_THE, k_TKE = (_rotated(part, *rotary_tables(spec, T)) for part in (q_THE, k_TKE))
    out_THE = np.zeros_like(q_THE)
    for head, at in _heads(spec.n_heads, spec.n_kv_heads):
        scores_TT = q_THE[:, head] @ k_TKE[:, at].T / np.sqrt(spec.head_dim)
        scores_TT = np.where(np.tri(T, dtype=bool), scores_TT, -np.inf)
        share_TT = np.exp(scores_TT - scores_TT.max(axis=1, keepdims=True))
        out_THE[:, head] = share_TT / share_TT.sum(axis=1, keepdims=True) @ v_TKE[:, at]
    return out_THE.reshape(T, -1)


def _heads(heads: int, kv_heads: int) -> Iterator[tuple[int, int]]:
    """Each head, and that of keys and values it reads."""
    return ((head, head * kv_heads // heads) for head in range(heads))


def _rotated(x_THE: Array, cos_TE: Array, sin_TE: Array) -> Array:
    first, second = np.split(x_THE, 2, axis=-1)
    cos, sin = cos_TE[:, None, :], sin_TE[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
