"""What the steps of a session's programs say that it read, beside what its counters say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.oracle import Oracle

from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.exchange.segment import ActorState
from hotcold.runtime.plan.program import work_of

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Neurons whose rows an actor read: gate rows, and the rest of those that fired."""

    gates: int = 0
    fired: int = 0


@dataclass(frozen=True)
class Run:
    """A text that went through a session in blocks, logits wanted for all of it."""

    local: LocalSession
    ids: Sequence[int]
    masks_TLN: Mask
    batch: int

    @classmethod
    def of(cls, local: LocalSession, ids: Sequence[int]) -> "Run":
        """Run the text through a new session."""
        _, masks_TLN = local.logits(ids)
        return cls(local, ids, masks_TLN, local.deployment.layout.max_batch)

    def state(self, actor: str) -> ActorState:
        """What an actor counted."""
        return self.local.segment.actor_state(actor)

    def counted(self, actor: str) -> Rows:
        """Its rows, a row of each token alone."""
        state = self.state(actor)
        return Rows(state.gate_rows + state.audit_rows, state.up_down_rows)

    def stated(self, actor: str, rows: Rows) -> int:
        """Bytes by its steps, with so many rows."""
        works = [work_of(step).bytes for step in self.local.deployment.programs[actor]]
        ends = [min(at + self.batch, len(self.ids)) for at in range(0, len(self.ids), self.batch)]
        dense = sum(work.fixed + work.position * end for work in works for end in ends)
        neurons = {(work.proposed, work.fired) for work in works} - {(0, 0)}
        proposed, fired = neurons.pop() if neurons else (0, 0)
        assert not neurons, "layers of one model differ"
        return dense + proposed * rows.gates + fired * rows.fired

    def read_once(self, oracle: Oracle, actor: str) -> Rows:
        """Its rows where a row that serves several tokens of a block counts once."""
        masks_LTN = self.masks_TLN.transpose(1, 0, 2)
        fires_LTN = masks_LTN & (oracle.forward(self.ids, masks_LTN=masks_LTN).gates_LTN > 0)
        state, deployment = self.state(actor), self.local.deployment
        if actor == "predictor":  # only a window counts neurons, and all of them in a block
            return Rows(masks_LTN.size // len(self.ids) * self._blocks if self.batch > 1 else 0)
        own_LN = deployment.computed_plan.device_LN == ("gpu", "cpu").index(actor)
        gates = self._once(masks_LTN, own_LN) if state.gate_rows else 0
        return Rows(gates + state.audit_rows, self._once(fires_LTN, own_LN))

    @property
    def _blocks(self) -> int:
        return -(-len(self.ids) // self.batch)

    def _once(self, asked_LTN: Mask, own_LN: Mask) -> int:
        blocks = np.array_split(asked_LTN, range(self.batch, len(self.ids), self.batch), axis=1)
        return sum(int((block.any(axis=1) & own_LN).sum()) for block in blocks)


def tensor_bytes(bundle: Any, *kinds: str) -> int:
    """Bytes of the tensors of a bundle whose names end in one of these words."""
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    return sum(
        int(np.prod(entry.shape)) * sizes[entry.dtype]
        for name, entry in bundle.tensors.items()
        if name.rpartition(".")[2] in kinds
    )
