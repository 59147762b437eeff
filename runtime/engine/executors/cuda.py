"""Executors of a deployment on a GPU: the GPU executor, and the predictor beside it.

Fused, the GPU executor predicts in its own graph and the predictor's loop stands by; remote, the
predictor has a process of its own on the same GPU and is asked (engine/remote_predictor.py).
"""

from typing import Any

import numpy as np

from hotcold.native.abi.generated import STEP
from hotcold.native.bindings.device import Mailbox
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor, Shared
from hotcold.runtime.engine.executors.leading import LeadingExecutor
from hotcold.runtime.engine.executors.predictors import PredictorExecutor, predictor_arrays
from hotcold.runtime.engine.gpu import (
    GpuChoice,
    check_promise,
    device_arrays,
    host_parts,
    say_parts,
)
from hotcold.runtime.engine.prompt import PromptForm
from hotcold.runtime.engine.remote_predictor import matrix_bytes
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.plan.program import Program, fuse
from hotcold.runtime.topology import Member

NO_STEPS = np.empty(0, STEP)


class CudaGpuExecutor(LeadingExecutor):
    """The GPU executor on a GPU, whose memory also has the KV cache."""

    keeps_kv = False
    walks_steps = False  # a pass is one launch of a graph

    def __init__(
        self, deployment: Deployment, segment: Segment, shared: Shared, member: Member
    ) -> None:
        super().__init__(deployment, segment, shared, member)
        if self._records is not None and not any(deployment.fetch_L):
            self._records.close()  # they are on the device; dense prompts stream those fetched
        if self.takes_memory_last(deployment):
            _check_launch(deployment)

    @classmethod
    def takes_memory_last(cls, deployment: Deployment) -> bool:
        """Where no remote predictor opens its memory."""
        return not gpu_of(deployment).remote_predictor

    def _fields(self, shared: Shared) -> dict[str, Any]:
        remote, programs = gpu_of(self.deployment).remote_predictor, self.deployment.programs
        fields: dict[str, Any] = {"device": _device_arrays(self, not remote)}
        if not remote:
            fields["steps"] = fuse(programs[self.actor], _predictions(self.deployment))
        return self._own(shared) | fields

    def _prompt_form(self) -> PromptForm:
        deployment, gpu = self.deployment, gpu_of(self.deployment)
        identity = f"{deployment.plan.hash} {deployment.cores} {deployment.predictor_settings}"
        return PromptForm(gpu.prompt_form, gpu.prompt_rows, deployment.layout.max_batch, identity)

    @property
    def mailbox(self) -> Mailbox | None:
        """What a remote predictor opens; None where the predictor is fused."""
        device = self.native.device
        asks = device is not None and gpu_of(self.deployment).remote_predictor
        return device.mailbox() if asks and device is not None else None

    @classmethod
    def role(cls, deployment: Deployment, member: Member) -> str:
        """Its share of the neurons, and what it reads or fetches over the bus."""
        plan, words = deployment.plan, super().role(deployment, member)
        if host_parts(plan) is None:
            return words
        return f"{words}; over the bus: {plan.modules_on(plan.devices[-1])}"


class FusedPredictor(PredictorExecutor):
    """The predictor where the GPU executor's graph predicts: its loop has no steps."""

    stands_by = True
    walks_steps = False

    def _fields(self, shared: Shared) -> dict[str, Any]:
        return {"steps": NO_STEPS}

    @classmethod
    def _predicts(cls, deployment: Deployment) -> str:
        return f"stands by: the GPU executor's graph runs predictor {deployment.predictor}"


class RemotePredictor(PredictorExecutor):
    """The predictor in a process of its own on the GPU: its matrices; asked through a mailbox."""

    opens_mailbox = True
    walks_steps = False

    def __init__(
        self, deployment: Deployment, segment: Segment, shared: Shared, member: Member
    ) -> None:
        super().__init__(deployment, segment, shared, member)
        _check_launch(deployment)

    @classmethod
    def takes_memory_last(cls, deployment: Deployment) -> bool:
        """Always: it opens the GPU executor's."""
        return True

    def _fields(self, shared: Shared) -> dict[str, Any]:
        deployment = self.deployment
        leader = deployment.topology.leader
        gpu_steps = deployment.programs[leader.actor]
        device = _device_arrays(self, matrices=True) | {
            "vram_bytes": gpu_of(deployment).predictor_bytes + matrix_bytes(deployment.plan),
            "gpu_steps": gpu_steps,
            "n_gpu_steps": len(gpu_steps),
            "mailbox": vars(shared.mailbox) if shared.mailbox else {},
        }
        return {"owned_L": self._owned(leader.index), "steps": NO_STEPS, "device": device}

    @classmethod
    def _predicts(cls, deployment: Deployment) -> str:
        return f"predicts on the GPU ({deployment.predictor}), in its own process under MPS"


def gpu_of(deployment: Deployment) -> GpuChoice:
    """The GPU of a deployment that has one."""
    assert deployment.gpu is not None
    return deployment.gpu


def _predictions(deployment: Deployment) -> Program:
    return deployment.programs[deployment.topology.predictor.actor]


def _device_arrays(executor: Executor, matrices: bool) -> dict[str, Any]:
    deployment = executor.deployment
    return device_arrays(
        *(gpu_of(deployment), deployment.plan, deployment.fetch_L),
        predictor_arrays(executor, matrices=matrices),
        *(_predictions(deployment), deployment.kernels),
        deployment.layout.spare_flag(1),  # by which it learns of a pass
    )


def _check_launch(deployment: Deployment) -> None:
    """Tell the user what a launch took of the GPU; by the last to take its device memory."""
    check_promise(gpu_of(deployment), "after the launch")
    say_parts(deployment.plan)
