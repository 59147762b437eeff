"""Curves: how fast a layer can be with n neurons on the GPU; and sharing memory by them.

`LayerCurve` answers for one layer: the least time of max(hot, cold) + exchange with at most c
neurons on the GPU, and which neurons those are. Until both executors take equally long these are
the c hottest. Near that balance they need not be, since a less hot neuron may fit better: layers of
up to 12 neurons are solved by trying every subset; in larger ones the hottest are followed by
single neurons that fill the gap to the balance.

`share_memory` then chooses each layer's count under the budget: by dynamic programming where that
is small enough, which is optimal for these curves, else by a price per byte (see prefixes.py) with
a bound.

Used by the policy `latency`. Shape suffixes: L layers, N neurons, C counts from 0 to N, G grid.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.plan.cost import CostModel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_ALL_SUBSETS = 12  # neurons of a layer up to which every subset is tried
_BACK, _EXTRAS = 4, 6  # of a larger layer: prefixes tried short of the balance, neurons added
_FILLED = 1024  # in larger layers one neuron is too small a part to matter
_GRID = 8192
_CELLS = 3 * 10**8  # of the dynamic program, about half a second
_HALVINGS = 60
_SHARES = 16  # share of the leftovers that is given away at a time


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """The least time of one layer by neurons on the GPU.

    Args:
        load_N: bytes that each neuron makes a token read, hottest first.
        quiet_N: log of the probability that it is not proposed, in the same order.
        hot_s, cold_s: seconds a byte on either side.
    """

    load_N: F64
    quiet_N: F64
    hot_s: float
    cold_s: float
    sync_s: float
    selective: bool
    overlap: bool = True

    @classmethod
    def of(cls, cost: CostModel, layer: int, order_N: I64) -> "LayerCurve":
        """The curve of a layer whose neurons are ordered so."""
        return cls(
            cost.bytes_LN[layer, order_N],
            cost.log_quiet_LN[layer, order_N],
            cost.hot_s_per_byte,
            cost.cold_s_per_byte,
            cost.problem.hardware.sync_s,
            cost.selective,
            cost.overlap,
        )

    def time(self, hot_load: F64, quiet: F64, all_hot: NDArray[np.bool_]) -> F64:
        """Seconds for loads on the GPU, logs of no cold neuron being proposed, and none there."""
        cold_load = np.maximum(self._total - hot_load, 0.0)
        exchange = self.sync_s * (1 - np.exp(quiet)) if self.selective else self.sync_s
        busy = self._busy(hot_load, cold_load)
        return np.where(all_hot, self._total * self.hot_s, busy + exchange)

    def _busy(self, hot_load: F64, cold_load: F64) -> F64:
        both = np.maximum if self.overlap else np.add
        busy: F64 = both(hot_load * self.hot_s, cold_load * self.cold_s)
        return busy

    @property
    def _total(self) -> float:
        return float(self._load_C[-1])

    @cached_property
    def _load_C(self) -> F64:
        return np.append(0.0, np.cumsum(self.load_N))

    @cached_property
    def _quiet_C(self) -> F64:
        """Log of the probability that none of what a prefix leaves is proposed."""
        return np.append(np.cumsum(self.quiet_N[::-1])[::-1], 0.0)

    @cached_property
    def prefix_C(self) -> F64:
        """Seconds with exactly the c hottest neurons on the GPU."""
        all_hot = np.arange(len(self._load_C)) == len(self.load_N)
        return self.time(self._load_C, self._quiet_C, all_hot)

    @cached_property
    def least_C(self) -> F64:
        """A lower bound of the time of every set of c neurons, and of fewer.

        What matters of a set is the load it leaves cold and how quiet that is. The quietest way to
        leave a load, if neurons could be split, is by noise per load: that gives, for every step of
        the cold load, the least exchange, and both loads are known up to the step.
        """
        noise_N = -self.quiet_N if self.selective else np.full(len(self.quiet_N), np.inf)
        with np.errstate(invalid="ignore"):
            by_noise = np.argsort(noise_N / np.maximum(self.load_N, 1e-300))
        cold_N = np.append(0.0, np.cumsum(self.load_N[by_noise]))  # and its end
        noise = np.append(0.0, np.cumsum(noise_N[by_noise])[:-1])
        exchange_N = self.sync_s * (1 - np.exp(-np.maximum(noise, noise_N.min())))
        hot_N = np.maximum(self._total - cold_N[1:], 0.0)
        time_N = self._busy(hot_N, cold_N[:-1]) + exchange_N
        ahead_N = np.minimum.accumulate(time_N[::-1])[::-1]
        steps = np.searchsorted(cold_N[1:], (self._total - self._load_C) * (1 - 1e-12))
        bound_C = ahead_N[np.minimum(steps, len(ahead_N) - 1)]
        bound_C[-1] = min(bound_C[-1], self._total * self.hot_s)
        return np.minimum.accumulate(bound_C) * (1 - 1e-12)

    @cached_property
    def _sets(self) -> dict[int, I64]:
        if len(self.load_N) <= _ALL_SUBSETS:
            return self._subsets()
        return self._filled() if len(self.load_N) <= _FILLED else {}

    def _subsets(self) -> dict[int, I64]:
        n = len(self.load_N)
        member_SN = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        size_S = member_SN.sum(axis=1)
        # Where a neuron is always proposed, its log is minus infinity; zero times that is NaN.
        quiet_N = np.maximum(self.quiet_N, -1e6)
        left_S: F64 = np.asarray((1 - member_SN) @ quiet_N, np.float64)
        time_S = self.time(member_SN @ self.load_N, left_S, size_S == n)
        best = {}
        for size in range(1, n):
            of_size = np.flatnonzero(size_S == size)
            found = of_size[np.argmin(time_S[of_size])]
            best[size] = np.flatnonzero(member_SN[found])
        return best

    def _filled(self) -> dict[int, I64]:
        """The hottest short of the balance, then neurons that fill what is missing to it.

        After each the largest that fits is added, and the pair that then comes closest is tried.
        """
        goal = self._total * self.cold_s / (self.hot_s + self.cold_s)
        start = int(np.searchsorted(self._load_C, goal, side="right")) - 1
        found: dict[int, I64] = {}
        for base in range(max(start - _BACK, 0), start + 1):
            chosen, missing, at = list(range(base)), goal - self._load_C[base], base
            for _ in range(_EXTRAS):
                rest_N = self.load_N[at:]
                if not len(rest_N):
                    break
                nearest = at + int(np.argmin(np.abs(rest_N - missing)))
                self._keep(found, np.array([*chosen, nearest]))
                self._keep(found, np.array([*chosen, *(at + _closest_pair(rest_N, missing))]))
                fits = np.flatnonzero(rest_N <= missing)
                if not len(fits):
                    break
                chosen.append(at + int(fits[0]))
                missing -= self.load_N[chosen[-1]]
                at = chosen[-1] + 1
                self._keep(found, np.array(chosen))
        return found

    def _keep(self, found: dict[int, I64], chosen: I64) -> None:
        known = self.seconds(found[len(chosen)]) if len(chosen) in found else np.inf
        if self.seconds(chosen) < min(known, float(self.prefix_C[len(chosen)])):
            found[len(chosen)] = chosen

    def seconds(self, chosen: I64) -> float:
        """Time with these positions of the order on the GPU."""
        cold = np.ones(len(self.load_N), dtype=bool)
        cold[chosen] = False
        load = np.array(self.load_N[chosen].sum())
        return float(self.time(load, np.array(self.quiet_N[cold].sum()), np.array(not cold.any())))

    @cached_property
    def best_C(self) -> F64:
        """The least time with at most c neurons on the GPU, falling."""
        return np.minimum.accumulate(self._exact_C)

    @cached_property
    def _exact_C(self) -> F64:
        exact_C: F64 = self.prefix_C.copy()
        for size, chosen in self._sets.items():
            exact_C[size] = min(exact_C[size], self.seconds(chosen))
        return exact_C

    def pick(self, count: int) -> I64:
        """Positions of the neurons that make best_C[count]; maybe fewer than count."""
        size = int(np.argmin(self._exact_C[: count + 1]))
        chosen = self._sets.get(size)
        if chosen is not None and self.seconds(chosen) < self.prefix_C[size]:
            return chosen
        return np.arange(size)


def _closest_pair(falling_N: F64, goal: float) -> I64:
    """Positions of the two whose sum is closest to the goal; of one, if there is only one."""
    last = len(falling_N) - 1
    first_N = np.arange(last + 1)
    place_N = last + 1 - np.searchsorted(falling_N[::-1], goal - falling_N)
    pairs = [(first_N, np.clip(place_N + shift, 0, last)) for shift in (-2, -1, 0, 1)]
    misses = [
        np.where(one == two, np.inf, np.abs(falling_N[one] + falling_N[two] - goal))
        for one, two in pairs
    ]
    best = int(np.argmin(misses)) if last else 0
    shift, first = divmod(best, last + 1)
    return np.unique([first, int(pairs[shift][1][first])])


def share_memory(curves: list[LayerCurve], bytes_L: I64, room: int) -> tuple[I64, float]:
    """Counts for each layer whose bytes fit the room, of least total time; and a lower bound.

    The bound holds for every choice of neurons, not only for those on the curves.
    """
    size = int(bytes_L[0])
    most = sum(len(curve.load_N) for curve in curves)
    uniform = bool((bytes_L == size).all())
    if uniform:
        slots = min(room // size, most)
        if most * (slots + 1) <= _CELLS:
            count_L, value = _by_table([curve.best_C for curve in curves], slots)
            if all(len(curve.load_N) <= _ALL_SUBSETS for curve in curves):
                return count_L, value
            return count_L, _by_table([curve.least_C for curve in curves], slots)[1]
    return _by_price(curves, bytes_L, room), _bound(curves, bytes_L, room)


def _by_table(times_L: list[F64], slots: int) -> tuple[I64, float]:
    """Dynamic programming over neurons in use: table[s] = least time of the layers so far."""
    table_S = np.zeros(slots + 1)
    chosen_LS = np.zeros((len(times_L), slots + 1), np.int32)
    for layer, time_C in enumerate(times_L):
        next_S = np.full(slots + 1, np.inf)
        falls = np.flatnonzero(np.append(True, np.diff(time_C) < 0))
        for count in falls[falls <= slots]:
            time_S = table_S[: slots + 1 - count] + time_C[count]
            better = time_S < next_S[count:]
            next_S[count:][better] = time_S[better]
            chosen_LS[layer, count:][better] = count
        table_S = next_S
    count_L, left = np.zeros(len(times_L), np.int64), slots
    for layer in reversed(range(len(times_L))):
        count_L[layer] = chosen_LS[layer, left]
        left -= int(count_L[layer])
    return count_L, float(table_S[slots])


def _grid(curve: LayerCurve) -> I64:
    last = len(curve.load_N)
    end = int(np.argmin(curve.best_C[:last])) if last else 0
    step = max(1, end // _GRID)
    return np.unique(np.r_[np.arange(0, end + 1, step), end, last])


def _price(
    times_L: list[F64], grids_L: list[I64], bytes_L: I64, room: int
) -> tuple[list[int], float]:
    """Bisect the price per byte: grid indices that fit the room, and the best dual value."""

    def choose(price: float) -> tuple[list[int], int, float]:
        picks, used, total = [], 0, -price * room
        for time_G, grid_G, size in zip(times_L, grids_L, bytes_L, strict=True):
            paid_G = time_G + price * size * grid_G
            pick = int(np.argmin(paid_G))
            picks.append(pick)
            used += int(grid_G[pick]) * int(size)
            total += float(paid_G[pick])
        return picks, used, total

    picks, used, bound = choose(0.0)
    if used <= room:
        return picks, bound
    low, high = 0.0, max(float(time_G[0]) for time_G in times_L) / float(bytes_L.min()) + 1e-300
    picks = [0] * len(times_L)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found, used, value = choose(middle)
        bound = max(bound, value)
        if used <= room:
            high, picks = middle, found
        else:
            low = middle
    return picks, bound


def _bound(curves: list[LayerCurve], bytes_L: I64, room: int) -> float:
    """A bound below the time of any choice: each count takes the time of the grid's next count."""
    grids_L = [_grid(curve) for curve in curves]
    times_L = []
    for curve, grid_G in zip(curves, grids_L, strict=True):
        reach_G = np.append(grid_G[1:] - 1, grid_G[-1])
        times_L.append(curve.least_C[np.maximum(reach_G, grid_G)])
    return _price(times_L, grids_L, bytes_L, room)[1]


def _by_price(curves: list[LayerCurve], bytes_L: I64, room: int) -> I64:
    grids_L = [_grid(curve) for curve in curves]
    times_L = [curve.best_C[grid] for curve, grid in zip(curves, grids_L, strict=True)]
    picks, _ = _price(times_L, grids_L, bytes_L, room)
    count_L = np.array([int(grid[pick]) for grid, pick in zip(grids_L, picks, strict=True)])
    left = room - int((count_L * bytes_L).sum())
    chunk = left  # neurons added at once, first many, then few
    while left > 0 and chunk > 0:
        chunk = min(chunk, max(1, left // int(bytes_L.min()) // _SHARES))
        gains = [
            _best_step(curve, int(count), left // int(size), int(size), chunk)
            for curve, count, size in zip(curves, count_L, bytes_L, strict=True)
        ]
        layer = int(np.argmax([gain for gain, _ in gains]))
        gain, step = gains[layer]
        if gain <= 0:
            chunk //= 2
            continue
        count_L[layer] += step
        left -= step * int(bytes_L[layer])
    return count_L


def _best_step(
    curve: LayerCurve, count: int, most: int, size: int, chunk: int
) -> tuple[float, int]:
    ahead = curve.best_C[count + chunk : count + 1 + most : chunk]
    if not len(ahead):
        return 0.0, 0
    rate = (curve.best_C[count] - ahead) / (np.arange(1, len(ahead) + 1) * chunk * size)
    best = int(np.argmax(rate))
    return float(rate[best]), (best + 1) * chunk
