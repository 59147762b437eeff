"""Every error hotcold raises on purpose.

Each also subclasses the built-in a caller would expect, says the value, the limit and the way out,
and carries the exit code the command line ends with: 1 where something failed, 2 where the input
cannot be used.
"""


class HotcoldError(Exception):
    """Base of all errors raised on purpose; never raised itself."""

    exit_code = 1


class ConfigError(HotcoldError, ValueError):
    """An option, a parameter or a request that cannot be used."""

    exit_code = 2


class CheckpointError(HotcoldError, ValueError):
    """A checkpoint, bundle, tokenizer, profile or predictor file that cannot be read."""

    exit_code = 2


class PolicyError(HotcoldError, ValueError):
    """A plug-in that cannot be found, that raised, or whose result breaks a rule."""

    exit_code = 2


class BudgetError(HotcoldError, MemoryError):
    """Something does not fit where it was asked to go.

    Attributes:
        needed_bytes: what it takes; None: not known.
        budget_bytes: what there is for it; None: not known.
    """

    exit_code = 2

    def __init__(
        self, message: str, needed_bytes: int | None = None, budget_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.needed_bytes, self.budget_bytes = needed_bytes, budget_bytes


class BackendError(HotcoldError, RuntimeError):
    """A CPU variant or device that this machine does not offer."""

    exit_code = 2


class KernelError(HotcoldError, RuntimeError):
    """A native call failed."""


class PlanReplaced(KernelError):
    """A plan was replaced while something ran on it; what was running begins again on the new."""


class LaunchError(HotcoldError, RuntimeError):
    """The actors could not be started."""


class ActorLostError(HotcoldError, RuntimeError):
    """An actor died, failed or stopped making progress while it was needed.

    Attributes:
        actor: "gpu", "cpu" or "predictor".
        token_ids: what the generation it ended had produced.
        text: the same as text.
    """

    def __init__(self, actor: str, message: str) -> None:
        super().__init__(message)
        self.actor = actor
        self.token_ids: list[int] = []
        self.text = ""

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.actor, str(self))
