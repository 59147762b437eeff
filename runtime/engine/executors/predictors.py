"""What an executor that predicts computes with, and what the predictor's classes have in common."""

from abc import abstractmethod
from typing import Any

from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor
from hotcold.runtime.predictors.predictor import ModelView
from hotcold.runtime.predictors.predictor_choice import choose_predictor
from hotcold.runtime.predictors.preparing import prepare_predictor
from hotcold.runtime.topology import Member
from hotcold.runtime.weights.pages import packed

_NUMBERS = ("relu", "input_bits", "window", "probe_every")  # of a predictor's layer, by form


class PredictorExecutor(Executor):
    """The predictor, which owns no neurons."""

    @classmethod
    def role(cls, deployment: Deployment, member: Member) -> str:
        """How it predicts, and why so."""
        if not deployment.predicts:
            return "stands by: the executors evaluate the gate of every neuron they own"
        note = deployment.predictor_note
        return cls._predicts(deployment) + (f"; chosen by auto: {note}" if note else "")

    @classmethod
    @abstractmethod
    def _predicts(cls, deployment: Deployment) -> str:
        """What it does where something is predicted, in words."""


def predictor_arrays(
    executor: Executor, pack: bool = False, matrices: bool = True
) -> list[dict[str, Any]]:
    """Fields of each layer's hc_predictor_layer (abi/predict.h); none where it stands by.

    pack: copy what is read every token to pages of its own. matrices False: forms and thresholds
    alone, where another process has the rest.
    """
    deployment, bundle = executor.deployment, executor.bundle
    if not deployment.predicts:
        return []
    predictor = choose_predictor(deployment.predictor, bundle, deployment.predictor_settings)
    view = ModelView.of(bundle, executor.store)
    layers = prepare_predictor(predictor, deployment.predictor, view, deployment.profile)
    parts: list[Any] = [part for layer in layers for part in layer.arrays.values()]
    ready = iter(packed(parts) if pack else parts)
    made = []
    for layer in layers:
        own: dict[str, Any] = {name: next(ready) for name in layer.arrays}
        if (fc1 := own.get("fc1")) is not None:
            own |= {"hidden": fc1.shape[0], "dtype": str(fc1.dtype)}
        own |= {name: getattr(layer, name) for name in _NUMBERS if hasattr(layer, name)}
        kind = {"form": layer.form, "threshold": layer.threshold}
        kind["input"] = layer.input == "residual"
        made.append(kind | (own if matrices else {}))
    return made
