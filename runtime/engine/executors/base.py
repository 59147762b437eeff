"""An executor: one actor's part of a deployment, ready to run on this machine.

Opens the weight store, gathers what its role needs and hands addresses to the native loop. No Ray
in here: the actors open and close executors, and `LocalSession` runs them as threads.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings.device import Mailbox
from hotcold.native.bindings.executor import NativeExecutor
from hotcold.native.errors import KernelError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.model_addresses import model_addresses
from hotcold.runtime.engine.kv import KvHandle
from hotcold.runtime.engine.moving import Places, by_layer
from hotcold.runtime.engine.variant import Variant, use_kernels
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.topology import Member
from hotcold.runtime.weights.own_records import OwnRecords
from hotcold.runtime.weights.weights import WeightStore


@dataclass(frozen=True)
class Shared:
    """What executors get from others, each taking what it has a use for.

    kv None: private memory. fired_LN: int64 [L, N] counts to add fired gates into (profiling).
    mailbox: of the GPU executor, for a predictor with a process of its own on the GPU.
    """

    kv: KvHandle | None = None
    fired_LN: NDArray[np.int64] | None = None
    mailbox: Mailbox | None = None


class Executor(ABC):
    """One actor's native loop over a bundle and a segment; `make_executor` chooses the class.

    The segment, already attached, must outlive the executor.
    """

    stands_by: ClassVar[bool] = False  # another executor computes its steps
    walks_steps: ClassVar[bool] = True  # one by one, so that its counter says which is next
    opens_mailbox: ClassVar[bool] = False  # so it is made after the GPU executor, and ends before

    def __init__(
        self, deployment: Deployment, segment: Segment, shared: Shared, member: Member
    ) -> None:
        self.deployment, self.segment, self.member = deployment, segment, member
        self.actor = member.actor
        self._records: OwnRecords | None = None
        use_kernels(deployment.kernels)
        self.bundle = open_bundle(deployment.bundle_path)
        self.store = WeightStore.open(self.bundle, deployment.store, self._stored_ids())
        cores = deployment.cores[self.actor]
        fields: dict[str, Any] = {
            "actor": deployment.topology.members.index(member),
            "role": member.role,
            "model": model_addresses(self.bundle, self.store, deployment.context),
            "segment": segment.native.pointer,
            "epoch": segment.epoch,
            "steps": deployment.programs[self.actor],
            "max_batch": deployment.layout.max_batch,
            "n_slots": deployment.sequences,
            "prompt_piece": deployment.prompt_piece,
            "audit_every": deployment.audit_every,
            "audit_seed": deployment.audit_seed,
        }
        fields |= self._fields(shared)
        self.native = NativeExecutor(cores.threads, cores.cores, **fields)

    @abstractmethod
    def _fields(self, shared: Shared) -> dict[str, Any]:
        """What this role computes with, as NativeExecutor takes it."""

    @classmethod
    @abstractmethod
    def role(cls, deployment: Deployment, member: Member) -> str:
        """What it does under a deployment, in words."""

    @classmethod
    def takes_memory_last(cls, deployment: Deployment) -> bool:
        """Whether no actor takes device memory after it at a launch."""
        return False

    def _stored_ids(self) -> list[NDArray[np.int32]] | None:
        """By layer, the only neurons whose records are read; None: any may be."""
        return None

    def _own(self, shared: Shared) -> dict[str, Any]:
        """Its device's neurons, those that the schedule fetches counted in."""
        device = self.member.index
        plan, owned = self.deployment.computed_plan, self._owned(device)
        formats_L = [plan.format(layer, device) for layer in range(len(owned))]
        spare = (
            None if self.deployment.gpu is not None else spare_bytes(self.deployment.plan, device)
        )
        self._records = OwnRecords(self.store, formats_L, [one["ids"] for one in owned], spare)
        for layer in range(len(owned)):
            owned[layer] |= self._records.fields(layer)
        return {"owned_L": owned, "fired_LN": shared.fired_LN}

    def take(self, places: Places) -> int:
        """Have the records of neurons that come, as many of the first as there are slots for.

        Returns how many; nothing has changed after an error.

        Raises:
            ConfigError: a weight that this device's format cannot hold.
        """
        records, taken = self._records, 0
        assert records is not None
        try:
            for layer, ids in by_layer(places).items():
                if not records.has(layer):
                    self.store.take(layer, ids)
                    taken += len(ids)
                    continue
                count = records.take(layer, ids)
                taken += count
                if count < len(ids):
                    break
        except BaseException:
            self.drop(places[:taken])
            raise
        return taken

    def drop(self, places: Places) -> None:
        """Free the slots of neurons that have gone, or have not come after all."""
        assert self._records is not None
        for layer, ids in by_layer(places).items():
            if self._records.has(layer):
                self._records.drop(layer, ids)

    def _owned(self, device: int) -> list[dict[str, Any]]:
        """The ids of its neurons, by layer."""
        return [{"ids": ids, "n_ids": len(ids)} for ids in owned_ids(self.deployment, device)]

    @property
    def mailbox(self) -> Mailbox | None:
        """What a predictor with a process of its own opens; None where none does."""
        return None

    def run(self) -> None:
        """Run the resident loop until poison; KernelError: this executor failed (and poisoned)."""
        failure = self.native.run()
        if failure is not None:
            raise KernelError(f"the {self.actor} executor failed: {failure}")

    def close(self) -> None:
        """Free everything; the loop must have returned. Idempotent."""
        self.native.close()
        if self._records is not None:
            self._records.close()
        self.store.close()


def spare_bytes(plan: Plan, device: int) -> int:
    """What a device's budget leaves."""
    name = plan.devices[device]
    return max(0, plan.budgets[name] - plan.bytes_by_device[name])


def owned_ids(deployment: Deployment, device: int) -> list[NDArray[np.int32]]:
    """Ids of the neurons that a device computes, by layer."""
    plan: Plan = deployment.computed_plan
    return [plan.ids(layer, device) for layer in range(plan.shape[0])]


def kernels_used(deployment: Deployment, on_gpu: bool) -> str:
    """Words for kernels that were chosen by name or file; empty where they are others."""
    kernels = deployment.kernels
    if isinstance(kernels, Variant):
        return f", kernels {kernels.name}" if on_gpu or not kernels.on_gpu else ""
    return f", kernels {kernels}" if kernels else ""
