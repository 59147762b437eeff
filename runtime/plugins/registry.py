"""Finding the plug-in that the user named.

Called by the engine, the command line and the policies' child process. The order: 1. an object
passed in; 2. "file.py:Class"; 3. "package.module:Class"; 4. a name in the entry-point group of its
kind, hotcold.placement and so on. Only the named plug-in is imported. Policies are not run here but
in run.py and child.py.
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

from hotcold.native.errors import PolicyError
from hotcold.runtime.plugins.blame import blaming
from hotcold.runtime.plugins.settings import instantiate, split_settings

__all__ = ["BUILT_IN", "Listing", "find", "instantiate", "listing", "load", "split_settings"]

PluginKind = Literal["placement", "schedule", "predictor"]

# The same as pyproject.toml's entry points (a test compares them): a checkout that is run without
# being installed, or was installed before a policy was added, has them only here.
_NAMES: dict[PluginKind, str] = {
    "placement": "greedy all-cpu random ilp latency per-layer layer-split ffn-split oracle "
    "powerinfer-index",
    "schedule": "paper selective serial lookahead fetch",
    "predictor": "exact learned low-rank sign window frequency",
}
BUILT_IN: dict[PluginKind, dict[str, str]] = {
    kind: {
        name: f"hotcold.policies.{kind}.{name.replace('-', '_')}:{name.title().replace('-', '')}"
        for name in names.split()
    }
    for kind, names in _NAMES.items()
}
_METHOD: dict[PluginKind, str] = {
    "placement": "place",
    "schedule": "schedule",
    "predictor": "scores",
}
_DISTRIBUTION = "hotcold"


@dataclass(frozen=True)
class Listing:
    """One installed plug-in."""

    kind: PluginKind
    name: str
    target: str
    version: str
    origin: str


def listing(kind: PluginKind) -> list[Listing]:
    """Every installed plug-in of a kind, by name; nothing is imported.

    Raises:
        PolicyError: two plug-ins have the same name.
    """
    found: dict[str, Listing] = {}
    for entry in _installed(kind):
        other = found.setdefault(entry.name, entry)
        if other.target != entry.target:
            raise PolicyError(
                f"two {kind} policies are named {entry.name!r}: {other.target} of {other.origin} "
                f"and {entry.target} of {entry.origin}; uninstall one, or name the class by module"
            )
    return [found[name] for name in sorted(found)]


def find(kind: PluginKind, name: object) -> object:
    """The plug-in that the user means: a class, or the object that was passed in.

    Raises:
        PolicyError: there is none, it cannot be imported, or it is not of this kind.
    """
    if not isinstance(name, str):
        plugin = name
    elif ":" in name:
        plugin = load(name, _noun(kind))
    else:
        plugin = load(_target(kind, name), _noun(kind))
    if not callable(getattr(plugin, _METHOD[kind], None)):
        shown = name if isinstance(name, str) else type(plugin).__name__
        what = "predictor" if kind == "predictor" else f"{kind} policy"
        raise PolicyError(f"{shown!r} is not a {what}: it has no method {_METHOD[kind]!r}")
    return plugin


def _noun(kind: PluginKind) -> str:
    return "predictor" if kind == "predictor" else "policy"


def load(target: str, noun: str = "policy") -> object:
    """The class that "file.py:Class" or "package.module:Class" names.

    Raises:
        PolicyError: no such file, module or class, or its code raised while it was imported.
    """
    place, _, attribute = target.rpartition(":")
    if place.endswith(".py"):
        module = _load_file(target, Path(place).expanduser(), noun)
    else:
        module = _load_module(target, place, noun)
    if not hasattr(module, attribute):
        names = [n for n, v in vars(module).items() if isinstance(v, type) and n[:1] != "_"]
        own = [n for n in names if getattr(module, n).__module__ == module.__name__]
        close = difflib.get_close_matches(attribute, own, 1) or own
        hint = f"; did you mean {place}:{close[0]}?" if close else "; it defines no class"
        raise PolicyError(f"{place} has no class {attribute!r}{hint}")
    plugin: object = getattr(module, attribute)
    return plugin


def _load_file(target: str, path: Path, noun: str) -> ModuleType:
    """Run a file as a module of its own; files beside it can be imported by it."""
    if not path.is_file():
        raise PolicyError(f"{target!r}: there is no file {path}; paths start at {Path.cwd()}")
    path = path.resolve()
    # Behind everything else: a neighbour called random.py must not replace the library's.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = f"hotcold_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"{target!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    with blaming(target, str(path), noun):
        # Compiled here, not by the loader: its bytecode cache would leave files beside the user's.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def _load_module(target: str, name: str, noun: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise PolicyError(f"{target!r} is neither 'file.py:Class' nor 'package.module:Class'")
    try:
        found = importlib.util.find_spec(name)
    except (Exception, SystemExit):  # a parent package fails to import; the import below reports it
        found = None
    with blaming(target, found.origin if found is not None else None, noun):
        return importlib.import_module(name)


def _target(kind: PluginKind, name: str) -> str:
    entries = {entry.name: entry for entry in listing(kind)}
    if name in entries:
        return entries[name].target
    close = difflib.get_close_matches(name, entries, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if name.endswith(".py"):
        hint = f"; name its class too: '{name}:Class'"
    noun = "predictor" if kind == "predictor" else f"{kind} policy"
    raise PolicyError(
        f"no {noun} named {name!r}{hint}; installed: {', '.join(entries)}; or pass 'file.py:Class'"
    )


def _installed(kind: PluginKind) -> list[Listing]:
    """Built-ins, then what distributions register; the same class registered twice is one."""
    try:
        version = metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "not installed"
    entries = [
        Listing(kind, name, target, version, _DISTRIBUTION)
        for name, target in BUILT_IN[kind].items()
    ]
    for point in metadata.entry_points(group=f"hotcold.{kind}"):
        dist = point.dist
        origin, release = (dist.name, dist.version) if dist is not None else ("unknown", "unknown")
        entries.append(Listing(kind, point.name, point.value, release, origin))
    return entries
