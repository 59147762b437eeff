"""Which predictors to compare on a model, and the configuration of each.

Called by `hotcold evaluate` with several predictors or `all`;
runtime/offline/evaluation/evaluate.py measures them. Does not judge predictors: one is left out
only where it cannot run.
"""

import dataclasses
from collections.abc import Sequence

from hotcold.native.errors import ConfigError, HotcoldError
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

ALL = "all"


def candidates(
    config: EngineConfig, names: Sequence[str]
) -> tuple[dict[str, EngineConfig], dict[str, str]]:
    """A configuration for each predictor, and why others of `all` were left out.

    Args:
        config: what they have in common; its settings of a predictor go to each that has a field
            of that name.
        names: predictors as for --predictor; "all" stands for every installed one that can run.

    Raises:
        ConfigError: a predictor given twice, a setting that none of them has, or none can run.
        HotcoldError: a predictor named by the user cannot run.
    """
    from hotcold.runtime.plugins import registry

    named = [name for name in names if name != ALL]
    if len(set(names)) < len(names):
        raise ConfigError(f"a predictor is given twice in {', '.join(names)}; give each once")
    installed = [entry.name for entry in registry.listing("predictor")] if ALL in names else []
    tried = [*named, *(name for name in installed if name not in named)]
    settings = registry.split_settings(config.settings)["predictor"]
    others = {
        key: value for key, value in config.settings.items() if not key.startswith("predictor.")
    }
    known = {name: _fields(name) for name in tried}
    for key in settings:
        if not any(key in fields for fields in known.values()):
            raise ConfigError(f"none of the predictors {', '.join(tried)} has a setting {key!r}")
    chosen, left_out = {}, {}
    for name in tried:
        own = {f"predictor.{k}": str(v) for k, v in settings.items() if k in known[name]}
        one = dataclasses.replace(config, predictor=name, settings={**others, **own})
        try:
            prepared = prepare_model(one)
            deploy(prepared, solve(prepared))
        except HotcoldError as error:
            if name in named:
                raise
            left_out[name] = str(error)
        else:
            chosen[name] = one
    if not chosen:
        raise ConfigError(f"no predictor can run on this model: {left_out}")
    return chosen, left_out


def _fields(name: str) -> set[str]:
    """Settings of a predictor given by name; those of `learned` for a file or a folder."""
    from hotcold.runtime.plugins import registry

    installed = {entry.name for entry in registry.listing("predictor")}
    if name not in installed and ":" not in name:
        name = "learned" if name != "auto" else "exact"
    plugin = registry.find("predictor", name)
    if not dataclasses.is_dataclass(plugin):
        return set()
    return {field.name for field in dataclasses.fields(plugin) if field.init}
