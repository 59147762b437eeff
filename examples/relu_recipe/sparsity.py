"""What makes neurons rare: a penalty on what fires, controlled towards a target, with a guard.

The charge of a layer is the L1 norm of its activations a = relu(z) in units of the root mean square
of its pre-activations z, so that smaller weights do not avoid it and it means the same in every
layer:

    charge = mean over tokens t and neurons n of  w_n relu(z_tn) / rms(z)

Its weights w_n fall with how often a neuron fires (reweighted L1, Candes, Wakin and Boyd 2008):
neurons that are hot anyway are charged less, cold ones more, which widens the contrast. The
coefficient is controlled: it grows while more neurons fire than the ramp to the target allows and
shrinks while fewer do. A neuron that hardly ever fires gets no gradient from the loss and would
stay dead; the guard does not charge it, and raises it where it comes closest to firing. Called by
the training loop.

Axes: L layers, N neurons, T tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor

MEMORY = 0.8  # of the running firing rates, an update: short, or the guard comes late
FLOOR = 0.1  # of a neuron's rate over its layer's in the weights: none is charged without bound
LEAST, MAX_PIECES = 0.02, 1e3  # range of the coefficient; it starts at the lower end
CORRECTION = 1.5  # how strongly it answers to today's error, beside what errors added up to
RAMP = (0.05, 0.55)  # shares of the training between which the target falls to its final value
MARGIN = 0.1  # how far above zero, in rms, the guard lifts a neuron
LIFTED = 0.01  # share of the tokens for which it does
RESCUE = 0.1  # weight of the guard in the loss


class Gate(nn.Module):
    """ReLU that keeps its input for the charge; takes the place of a Llama's `act_fn`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        """relu(z)."""
        self.seen = z
        return F.relu(z)

    def take(self) -> Tensor:
        """The last input as [T, N], once."""
        seen, self.seen = self.seen, None
        assert seen is not None, "the gate has not been run"
        return seen.flatten(0, -2)


class SparsityControl:
    """Weights, guard and steering of the charge; all its state is `rate_LN` and `numbers`.

    Args:
        shape: L, N.
        sparsity: wanted share of silent neurons, above 0.
        contrast: exponent of the weights; 0 charges all neurons alike.
        guard: firing rate below which a neuron is helped; 0: none is.
        steps: updates of the training.
        device: where the layers run.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        sparsity: float,
        contrast: float,
        guard: float,
        steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._goal = 1.0 - sparsity
        self._contrast, self._guard, self._steps = contrast, guard, steps
        self.rate_LN = torch.full(shape, -1.0, device=device)  # negative: nothing seen yet
        self.numbers: dict[str, float] = {"summed": math.log(LEAST), "coefficient": 0.0, "first": 0}

    @property
    def coefficient(self) -> float:
        """What the charge is multiplied by in the loss now."""
        return self.numbers["coefficient"]

    def charge(self, gates: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What to add to the loss for one pass.

        Args:
            gates: pre-activations [T, N] of every layer, with their graph.

        Returns:
            The charge, the guard's term (both means over layers), and the share of tokens for which
            each neuron fired [L, N].
        """
        fired_LN = torch.stack([(z_TN.detach() > 0).float().mean(0) for z_TN in gates])
        rate_LN = torch.where(self.rate_LN < 0, fired_LN, self.rate_LN)
        rare_LN = rate_LN < self._guard
        weight_LN = self._weights(rate_LN, rare_LN)
        charge = rescue = gates[0].new_zeros((), dtype=torch.float32)
        for layer, z_TN in enumerate(gates):
            rms = z_TN.detach().float().square().mean().sqrt() + 1e-12
            mean_N = F.relu(z_TN).mean(0, dtype=torch.float32) / rms
            charge = charge + (weight_LN[layer] * mean_N).mean()
            rescue = rescue + self._lift(z_TN, rms, rare_LN[layer])
        return charge / len(gates), rescue / len(gates), fired_LN

    def _weights(self, rate_LN: Tensor, rare_LN: Tensor) -> Tensor:
        """Charge by neuron: its mean over what fires is 1, so that contrast moves no total."""
        relative_LN = rate_LN / rate_LN.mean(1, keepdim=True).clamp_min(1e-6)
        weight_LN = (relative_LN + FLOOR) ** -self._contrast
        weight_LN = weight_LN.masked_fill(rare_LN, 0.0)
        return weight_LN / (weight_LN * relative_LN).mean(1, keepdim=True).clamp_min(1e-6)

    def _lift(self, z_TN: Tensor, rms: Tensor, rare_N: Tensor) -> Tensor:
        """How far rare neurons are below firing, at the tokens where they come closest."""
        if not bool(rare_N.any()):
            return z_TN.new_zeros((), dtype=torch.float32)
        few = max(1, round(LIFTED * len(z_TN)))
        best_KR = z_TN[:, rare_N].float().topk(few, dim=0).values / rms
        return F.relu(MARGIN - best_KR).mean(0).sum() / len(rare_N)

    def observe(self, fired_LN: Tensor, step: int) -> None:
        """Take in what one update saw and set the coefficient of the next.

        Args:
            fired_LN: share of tokens for which each neuron fired.
            step: updates done before this one.
        """
        new = self.rate_LN < 0
        mixed_LN = MEMORY * self.rate_LN + (1 - MEMORY) * fired_LN
        self.rate_LN = torch.where(new, fired_LN, mixed_LN)
        density = max(1e-6, float(fired_LN.mean()))
        done, numbers = step / self._steps, self.numbers
        if done < RAMP[0]:
            numbers["first"] = density
            return
        error = math.log(density / self.target(done))
        error = max(-1.0, min(1.0, error))
        summed = numbers["summed"] + error * self._gain
        numbers["summed"] = max(math.log(LEAST), min(math.log(MAX_PIECES), summed))
        numbers["coefficient"] = min(MAX_PIECES, math.exp(numbers["summed"] + CORRECTION * error))

    @property
    def _gain(self) -> float:
        """Integral gain an update: errors of a fortieth of the training add up to one e-fold."""
        return min(0.3, max(0.02, 40.0 / self._steps))

    def target(self, done: float) -> float:
        """Share of neurons that may fire when this share of the training is done."""
        first = max(self.numbers["first"] or 0.5, self._goal)
        start, full = RAMP
        way = min(1.0, max(0.0, (done - start) / (full - start)))
        return float(first * (self._goal / first) ** way)

    @property
    def rare_share(self) -> float:
        """Share of neurons the guard helps now."""
        return float((self.rate_LN < self._guard).float().mean())

    def state(self) -> dict[str, Any]:
        """All that `load` needs."""
        return {"rate_LN": self.rate_LN, "numbers": dict(self.numbers)}

    def load(self, rate_LN: Tensor, numbers: dict[str, float]) -> None:
        """Go on from a state."""
        self.rate_LN = rate_LN.to(self.rate_LN.device)
        self.numbers = dict(numbers)
