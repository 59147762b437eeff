"""The loop: windows in, updates of the weights, a checkpoint every so many of them.

Everything random is a function of the seed and the number of the update, so an interrupted training
resumes with the same windows and ends with the same weights. A first Ctrl-C (or SIGTERM) ends it
after the update under way, with a checkpoint; SIGKILL costs at most `save_every` updates.
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch.nn import functional as F

from relu_recipe.recipe import Recipe, TrainingError
from relu_recipe.sparsity import RESCUE, Gate, SparsityControl
from relu_recipe.state import load_state, read_state, save_state
from relu_recipe.text import TokenWindows

Say = Callable[[str], None]
SAY_EVERY_S = 10.0
WARMUP, LAST_RATE = 0.02, 0.05  # share of the updates; share of the peak the rate ends with
CLIP = 1.0
TEMPERATURE = 2.0  # of distillation


class Stopped(Exception):
    """Ended on demand, after a checkpoint.

    Attributes:
        signal: what asked for it.
        step: updates done.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped after {step} updates")
        self.signal = number
        self.step = step


class Trainer:
    """One training: model, optimiser and control, and the update they share.

    Args:
        recipe: what is asked for.
        model: the network, on its device; `gates` are in it.
        gates: of every layer; none where the model is not to be made sparse.
        teacher: the source as it was, to learn from; None: from the text alone.
        windows: the text.
        steps: updates in all.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        gates: list[Gate],
        teacher: Any,
        windows: TokenWindows,
        steps: int,
    ) -> None:
        self.recipe, self.model, self.gates = recipe, model, gates
        self.teacher, self.windows, self.steps = teacher, windows, steps
        self.device = next(model.parameters()).device
        named = dict(model.named_parameters())
        matrices = [value for value in named.values() if value.ndim > 1]
        vectors = [value for value in named.values() if value.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.peak_rate,
            betas=(0.9, 0.95),
        )
        shape = (model.config.num_hidden_layers, model.config.intermediate_size)
        self.control = SparsityControl(
            shape, recipe.sparsity, recipe.contrast, recipe.guard, steps, self.device
        )
        self.step = 0
        self.loss = math.nan
        self.density = math.nan

    def resume(self) -> bool:
        """Load the last checkpoint, if there is one."""
        saved = read_state(self.recipe.work)
        if saved is None:
            return False
        load_state(saved, self.model, self.optimizer)
        self.control.load(saved.tensors["rate"], saved.numbers)
        self.step = saved.step
        return True

    def save(self) -> None:
        """Write a checkpoint."""
        control = self.control
        save_state(
            self.recipe.work,
            self.step,
            self.model,
            self.optimizer,
            control.rate_LN,
            control.numbers,
        )

    def run(self, say: Say) -> None:
        """Do the updates that are left.

        Raises:
            Stopped: a signal asked for it.
            TrainingError: the loss is no number any more.
        """
        self.model.train()
        asked: list[int] = []
        first, began, told = self.step, time.monotonic(), 0.0
        with _ask_politely(asked):
            while self.step < self.steps:
                self.update()
                finished = self.step == self.steps
                if finished or asked or self.step % self.recipe.save_every == 0:
                    self.save()
                now = time.monotonic()
                if now - told >= SAY_EVERY_S or finished:
                    told = now
                    tokens = (self.step - first) * self.recipe.batch * self.recipe.context
                    say(self.line(tokens / max(1e-9, now - began)))
                if asked and not finished:
                    raise Stopped(asked[0], self.step)

    def update(self) -> None:
        """One update of the weights, and of the control by what it saw."""
        recipe = self.recipe
        ids_BT = self.windows.batch(self.step, recipe.batch, recipe.seed)
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, fired_LN = self.passes(ids_BT)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at update {self.step}; give a lower --rate than "
                f"{recipe.peak_rate:g}"
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        if fired_LN is not None:
            self.control.observe(fired_LN, self.step)
            self.density = float(fired_LN.mean())
        self.loss = loss
        self.step += 1

    def passes(self, ids_BT: torch.Tensor) -> tuple[float, torch.Tensor | None]:
        """Gradients of one batch: its loss in nats a token, and what fired [L, N]."""
        self.optimizer.zero_grad(set_to_none=True)
        total, fired_LN = 0.0, None
        for part_RT in ids_BT.split(self.recipe.at_a_time):
            share = len(part_RT) / len(ids_BT)
            ids_RT = part_RT.to(self.device)
            with self._precision():
                logits_RTV = self.model(ids_RT).logits[:, :-1]
            loss = _cross_entropy(logits_RTV, ids_RT[:, 1:])
            total += share * float(loss.detach())
            if self.teacher is not None:
                loss = self._with_teacher(loss, logits_RTV, ids_RT)
            if self.gates and self.recipe.sparsity:
                pre = [gate.take() for gate in self.gates]
                charge, rescue, part_LN = self.control.charge(pre)
                loss = loss + self.control.coefficient * charge + RESCUE * rescue
                fired_LN = share * part_LN + (0 if fired_LN is None else fired_LN)
            (share * loss).backward()
        return total, fired_LN

    def _with_teacher(
        self, loss: torch.Tensor, logits_RTV: torch.Tensor, ids_RT: torch.Tensor
    ) -> torch.Tensor:
        """Part of the loss replaced by the divergence from the source's own predictions."""
        with torch.no_grad(), self._precision():
            wanted_RTV = self.teacher(ids_RT).logits[:, :-1]
        divergence = F.kl_div(
            F.log_softmax(logits_RTV.float() / TEMPERATURE, -1).flatten(0, 1),
            F.log_softmax(wanted_RTV.float() / TEMPERATURE, -1).flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
        share = self.recipe.distill
        return (1 - share) * loss + share * TEMPERATURE**2 * divergence

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 products on a GPU, float32 elsewhere."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def _rate(self) -> float:
        """Learning rate: a short rise, then half a cosine."""
        warm = max(1, round(WARMUP * self.steps))
        if self.step < warm:
            return self.recipe.peak_rate * (self.step + 1) / warm
        done = (self.step - warm) / max(1, self.steps - warm)
        fall = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))
        return self.recipe.peak_rate * fall

    def seconds_an_update(self) -> float:
        """How long an update takes here; changes nothing."""
        ids_BT = self.windows.batch(0, self.recipe.batch, self.recipe.seed)
        self.model.train()
        best = math.inf
        for _ in range(3):
            began = time.monotonic()
            self.passes(ids_BT)
            best = min(best, time.monotonic() - began)
        self.optimizer.zero_grad(set_to_none=True)
        return best * 1.1  # what the optimiser takes

    def line(self, tokens_s: float) -> str:
        """Where the training is, for the person watching."""
        text = f"update {self.step:,}/{self.steps:,}  loss {self.loss:.3f}"
        if math.isfinite(self.density):
            target, control = self.control.target(self.step / self.steps), self.control
            text += (
                f"  density {self.density:.3f} (target {target:.3f})"
                f"  coefficient {control.coefficient:.3g}  rare {control.rare_share:.1%}"
            )
        return f"{text}  {tokens_s:,.0f} tokens/s"


def _cross_entropy(logits_RTV: torch.Tensor, target_RT: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_RTV.float().flatten(0, 1), target_RT.flatten())


@contextlib.contextmanager
def _ask_politely(asked: list[int]) -> Iterator[None]:
    """Signals are noted and obeyed after the update; the second Ctrl-C ends it at once."""

    def note(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        sys.stderr.write("finishing this update; once more to stop at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
