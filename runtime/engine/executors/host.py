"""Executors that compute on the CPU; beside a GPU, the CPU executor alone does."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor, Shared, kernels_used, owned_ids
from hotcold.runtime.engine.executors.leading import LeadingExecutor
from hotcold.runtime.engine.executors.predictors import PredictorExecutor, predictor_arrays
from hotcold.runtime.engine.kv import KvCache
from hotcold.runtime.topology import Member


class HostGpuExecutor(LeadingExecutor):
    """The GPU executor on its CPU device: dense parts, hot neurons, the KV cache."""

    keeps_kv = True

    def _fields(self, shared: Shared) -> dict[str, Any]:
        shape = self.bundle.spec, self.deployment.context, self.deployment.sequences
        if shared.kv is None:
            kv = KvCache.private(*shape)
        else:
            kv = KvCache.attach(shared.kv, *shape)
        return self._own(shared) | {
            "k_cache": kv.keys,
            "v_cache": kv.values,
            "kv_marks_S": kv.marks,
            "kv_tokens_SP": kv.tokens,
            "kv_plan": kv.plan,
        }


class WorkerExecutor(Executor):
    """A CPU executor, or a further GPU executor on its CPU device: the neurons it owns."""

    def _stored_ids(self) -> list[NDArray[np.int32]]:
        plan = self.deployment.computed_plan  # what has a format of its own is copied elsewhere
        device = self.member.index
        ids_L = owned_ids(self.deployment, device)
        return [ids[:0] if plan.format(layer, device) else ids for layer, ids in enumerate(ids_L)]

    def _fields(self, shared: Shared) -> dict[str, Any]:
        return self._own(shared)

    @classmethod
    def role(cls, deployment: Deployment, member: Member) -> str:
        """Its share of the neurons."""
        device_LN = deployment.computed_plan.device_LN
        own = int(np.count_nonzero(device_LN == member.index))
        words = f"{own} of {device_LN.size} neurons{deployment.plan.format_text(member.index)}"
        return words + kernels_used(deployment, on_gpu=False)


class HostPredictor(PredictorExecutor):
    """The predictor on the CPU: its matrices, or the gate rows themselves."""

    def _fields(self, shared: Shared) -> dict[str, Any]:
        device_LN = np.ascontiguousarray(self.deployment.computed_plan.device_LN)
        return {"device_LN": device_LN, "predictors_L": predictor_arrays(self, pack=True)}

    @classmethod
    def _predicts(cls, deployment: Deployment) -> str:
        every = deployment.layout.with_gate and not deployment.remembers
        what = "evaluates every gate" if every else "predicts every layer"
        return f"{what} ({deployment.predictor})"
