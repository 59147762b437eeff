"""What the steps of a session's programs say that it read, beside what its counters say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.int8 import requantised
from support.models import TinyLlama, write_llama
from support.opt_models import TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle
from support.references import Reference, Tiny
from support.tiny_models import BAMBOO, FALCON

from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.exchange.segment import ActorState
from hotcold.runtime.plan.program import fuse, work_of
from hotcold.runtime.profiles.profile import ActivationProfile

Mask = NDArray[np.bool_]
Written = tuple[Callable[[Path], Any], Callable[[Path], Oracle | Reference]]


def llama(**shape: Any) -> Written:
    """How one is written and what it computes, by its shape."""
    return partial(write_llama, model=TinyLlama(**shape)), Oracle.load


def opt(**shape: Any) -> Written:
    """The same of an OPT."""
    return partial(write_opt, model=TinyOpt(**shape)), OptOracle.load


def other(tiny: Tiny) -> Written:
    """The same of a model of transformers."""
    return tiny.write, tiny.reference


MODELS: dict[str, Written] = {
    "llama, grouped heads": llama(
        d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301
    ),
    "llama, tied float16": llama(d=24, neurons=40, tied=True, dtype="float16"),
    "opt": opt(d=35, layers=3, neurons=51, heads=5),
    "opt, projected, untied": opt(d=30, heads=3, embed=17, tied=False, seed=3),
    "falcon, one norm": other(FALCON["7b, odd, with biases"]),
    "falcon, two norms": other(FALCON["40b"]),
}
BOTH = "bamboo, a window"  # where up rows say that a neuron gives nothing, down rows stay unread
INT8 = "llama, int8 neurons"  # when the folder is opened so
_WRITE, _LOAD = llama(d=88, layers=3, neurons=51, heads=4, kv_heads=2)
ALL = {
    **MODELS,
    BOTH: other(BAMBOO["window"]),
    INT8: (_WRITE, lambda folder: requantised(_LOAD(folder))),
}


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
        programs, gpu = self.local.deployment.programs, self.local.deployment.gpu
        on_device = gpu is not None and actor == "gpu" and not gpu.remote_predictor
        steps = fuse(programs["gpu"], programs["predictor"]) if on_device else programs[actor]
        works = [work_of(step).bytes for step in steps]
        ends = [min(at + self.batch, len(self.ids)) for at in range(0, len(self.ids), self.batch)]
        window = self.local.deployment.spec.attention_window or len(self.ids)
        seen = [min(end, window + self.batch - 1) for end in ends]
        dense = sum(work.fixed + work.position * positions for work in works for positions in seen)
        neurons = {(work.proposed, work.fired) for work in works} - {(0, 0)}
        proposed, fired = neurons.pop() if neurons else (0, 0)
        assert not neurons, "layers of one model differ"
        return dense + proposed * rows.gates + fired * rows.fired

    def read_once(self, oracle: Any, actor: str) -> Rows:
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


def write_models(folder: Path) -> dict[str, Path]:
    """Checkpoints of all models, with activation profiles beside them."""
    made = {}
    for at, (name, (write, load)) in enumerate(ALL.items()):
        made[name] = own = folder / str(at)
        write(own)
        fired_LN = load(own).forward(ids_of(60, 9)).counts_LN
        ActivationProfile(fired_LN.astype(np.int64), 60).save(own / "activations.npz")
    return made


def ids_of(count: int, seed: int = 0) -> list[int]:
    """Ids that every model has."""
    return np.random.default_rng(seed).integers(3, 290, count).tolist()


@cache
def oracle_of(name: str, folder: Path) -> Any:
    """Of one of them."""
    return ALL[name][1](folder)
