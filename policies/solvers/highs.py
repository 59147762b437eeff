"""HiGHS as a check of the policy `ilp`: the same integer program, given to an independent solver.

Only for problems of up to 4,000 binaries, which `ilp` claims to solve to the optimum. Needs scipy,
an optional dependency: pip install 'hotcold[solver]'.
"""

import numpy as np

from hotcold.native.errors import BackendError, PolicyError
from hotcold.policies.solvers.prefixes import Items

MAX_BINARIES = 4000
_TIME_LIMIT_S = 30.0


def cross_check(items: Items, objective: float, bound: float) -> str:
    """Compare HiGHS's optimum with ours.

    Returns A remark for the placement's note.

    Raises:
        PolicyError: too many binaries, or the two disagree: one of them is wrong.
        BackendError: scipy is not installed.
    """
    theirs = highs_optimum(items)
    tolerance = 1e-6 * max(1.0, bound)
    if theirs > bound + tolerance or theirs < objective - tolerance:
        raise PolicyError(
            f"policy 'ilp': HiGHS finds {theirs:.9g}, we find {objective:.9g} and prove that "
            f"{bound:.9g} is the limit; please report this problem"
        )
    return f"; HiGHS agrees ({theirs:.9g})"


def highs_optimum(items: Items) -> float:
    """The optimum of the integer program, a binary for every item and for every layer.

    Raises:
        PolicyError: more than 4,000 binaries, or HiGHS did not finish.
        BackendError: scipy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
        from scipy.sparse import csr_array  # type: ignore[import-untyped]
    except ImportError as error:
        raise BackendError(
            f"a cross-check with HiGHS needs scipy ({error}); pip install 'hotcold[solver]'"
        ) from error
    layers, most = items.density_LK.shape
    binaries = layers * (most + 1)
    if binaries > MAX_BINARIES:
        raise PolicyError(
            f"policy 'ilp': a cross-check is for up to {MAX_BINARIES} binaries, this problem has "
            f"{binaries}; leave check off"
        )
    value = np.diff(items.value_LK1, axis=1).reshape(-1)
    size = np.diff(items.bytes_LK1, axis=1).reshape(-1)
    unit = float(size.max())
    # Rows: memory; then by layer  sum a - least * y >= 0  and  sum a - K * y <= 0.
    sums = np.kron(np.eye(layers), np.ones(most))
    memory = np.concatenate([size / unit, np.zeros(layers)])[None, :]
    lower = np.hstack([sums, -np.diag(np.minimum(items.least_L, most + 1).astype(float))])
    upper = np.hstack([sums, -most * np.eye(layers)])
    result = milp(
        c=np.concatenate([-value, np.zeros(layers)]),
        integrality=np.ones(binaries),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(csr_array(memory), -np.inf, items.room / unit),
            LinearConstraint(csr_array(lower), 0, np.inf),
            LinearConstraint(csr_array(upper), -np.inf, 0),
        ],
        options={"time_limit": _TIME_LIMIT_S, "mip_rel_gap": 0.0},
    )
    if not result.success:
        raise PolicyError(f"policy 'ilp': HiGHS did not finish: {result.message}")
    return max(0.0, float(-result.fun))  # which is -0.0 where nothing fits
