"""MachineFile: a hardware profile on disk, with units and where every figure comes from.

Written by `hotcold hardware`, shipped for reference machines, read wherever `--hardware` is taken.
People read these files and share them, so each figure has its unit and its source:

    "host_gb_per_s": {"value": 67.2, "unit": "GB/s", "source": "paper", "from": "section 8.1"}

`source` is "measured" (on that machine), "paper" (the PowerInfer paper; `from` names the section)
or "estimated" (`from` says how). Tables hold what was measured in more detail; their columns carry
the units. GB are 10**9 bytes.

What is read is not trusted: units, signs, NaN, missing and unknown keys give one clear error.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.hardware.profile import MAY_BE_ZERO, HardwareProfile, check_number

MACHINES = Path(__file__).parent / "machines"
FORMAT = "hotcold hardware"
VERSION = 1
SOURCES = ("measured", "paper", "estimated")
# Fields of HardwareProfile, with their units; the first seven must be there.
UNITS = {
    "host_gb_per_s": "GB/s",
    "gpu_gb_per_s": "GB/s",
    "pcie_gb_per_s": "GB/s",
    "host_gflops": "GFLOP/s",
    "gpu_gflops": "GFLOP/s",
    "sync_s": "s",
    "pcie_back_gb_per_s": "GB/s",  # GPU to host; for readers, no policy uses it
    "gap_s": "s",
    "context_bytes": "B",
}
_OPTIONAL = ("pcie_back_gb_per_s", "gap_s", "context_bytes")
_FOR_READERS = ("pcie_back_gb_per_s",)
# Columns of the tables: words, then numbers above 0.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "host_reads": (("store",), ("threads", "record_bytes", "gb_per_s", "best_gb_per_s")),
    "neurons": (("device", "dtype"), ("threads", "d_model", "us_per_neuron", "gb_per_s")),
    "exchanges": (("what",), ("round_trip_us", "p99_round_trip_us")),
}
YARDSTICK = 30 << 10  # bytes of a record (13B, float16) that the figure of host reads is of
_FILE_LIMIT = 2**20
_ROW_LIMIT = 4096
_KEYS = ("format", "version", "name", "about", "date", "has_gpu", "machine", "figures", "tables")


@dataclass(frozen=True)
class Figure:
    """One figure and its source.

    Args:
        value: in the unit that UNITS gives the figure of this name.
        source: one of SOURCES.
        origin: how it was measured, the paper's section, or how it was estimated.
    """

    value: float
    source: str
    origin: str


@dataclass(frozen=True)
class MachineFile:
    """A machine's figures and tables.

    Args:
        name: of the machine, for tables.
        about: its parts, in words.
        date: of the measurement, "2026-11-22"; of a file that was not measured, its making.
        has_gpu: as in HardwareProfile.
        figures: by name, those of UNITS.
        machine: what tells this machine from others (this_machine.py), {} where not measured.
        tables: rows by name, columns as in TABLES.
    """

    name: str
    about: str
    date: str
    has_gpu: bool
    figures: Mapping[str, Figure]
    machine: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def profile(self) -> HardwareProfile:
        """What policies and the cost model get; measured if all its figures are.

        Raises:
            CheckpointError: a figure is not finite or below what it may be.
        """
        used = {name: one for name, one in self.figures.items() if name not in _FOR_READERS}
        values: dict[str, Any] = {name: one.value for name, one in used.items()}
        measured = all(one.source == "measured" for one in used.values())
        return HardwareProfile(name=self.name, measured=measured, has_gpu=self.has_gpu, **values)

    def with_threads(self, threads: int | None) -> HardwareProfile:
        """The profile where each executor has this many threads; None: all cores.

        Host read rates come from the table of reads; arithmetic scales with the threads. Without a
        GPU this holds for both executors, at the same time where there are cores for both.
        """
        profile, rates = self.profile, self._host_rates
        most = self._own_threads(rates)
        known = [count for count in rates if threads is not None and count <= threads]
        if threads is None or not known or threads >= most:
            return profile
        share, flops = rates[max(known)] / rates[most], threads / most
        changes: dict[str, Any] = {
            "host_gb_per_s": profile.host_gb_per_s * share,
            "host_gflops": profile.host_gflops * flops,
        }
        if not self.has_gpu:
            changes |= {"gpu_gb_per_s": profile.gpu_gb_per_s * share}
            changes |= {"pcie_gb_per_s": profile.pcie_gb_per_s * share}
            changes |= {"gpu_gflops": profile.gpu_gflops * flops, "at_once": 2 * threads <= most}
        return replace(profile, name=f"{profile.name}, --threads {threads}", **changes)

    def _own_threads(self, rates: Mapping[int, float]) -> int:
        """Threads that the host's figures are of: all, beside a GPU all but two (cores.py)."""
        cores, figure = self.machine.get("cores"), self.figures["host_gb_per_s"].value
        fewer = cores - 2 if isinstance(cores, int) and self.has_gpu else 0
        return fewer if rates.get(fewer) == figure else max(rates, default=0)

    @property
    def _host_rates(self) -> dict[int, float]:
        """Bytes of long records read, 10**9 a second by threads, from the best kind of store."""
        rows = self.tables.get("host_reads", ())
        lengths = (row["record_bytes"] for row in rows)
        length = min(lengths, key=lambda size: abs(size - YARDSTICK), default=0)
        rates: dict[int, float] = {}
        for row in rows:
            if row["record_bytes"] == length:
                threads = int(row["threads"])
                rates[threads] = max(rates.get(threads, 0.0), float(row["gb_per_s"]))
        return rates

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "about": self.about,
            "date": self.date,
            "has_gpu": self.has_gpu,
            "machine": dict(self.machine),
            "figures": {
                name: {
                    "value": one.value,
                    "unit": UNITS[name],
                    "source": one.source,
                    "from": one.origin,
                }
                for name, one in self.figures.items()
            },
            "tables": {name: [dict(row) for row in rows] for name, rows in self.tables.items()},
        }

    @staticmethod
    def from_json(data: object) -> "MachineFile":
        """Inverse of to_json.

        Raises:
            CheckpointError: what is missing, unknown, of another unit or out of range.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CheckpointError(f"not a hardware file (its format is not {FORMAT!r})")
        if data.get("version") != VERSION:
            raise CheckpointError(
                f"hardware file of version {data.get('version')!r:.40}, this hotcold reads "
                f"{VERSION}; measure again with `hotcold hardware`"
            )
        _same_keys("hardware file", data, _KEYS)
        for key in ("name", "about", "date"):
            if not isinstance(data[key], str) or len(data[key]) > 1000:
                raise CheckpointError(f"hardware file: {key} is {data[key]!r:.60}; it must be text")
        if not isinstance(data["has_gpu"], bool) or not isinstance(data["machine"], dict):
            raise CheckpointError("hardware file: has_gpu is true or false, machine an object")
        file = MachineFile(
            data["name"],
            data["about"],
            data["date"],
            data["has_gpu"],
            _figures(data["figures"]),
            data["machine"],
            _tables(data["tables"]),
        )
        _ = file.profile  # checks the ranges
        return file

    def save(self, path: Path) -> None:
        """Write the file; it is the old or the new one, whatever happens meanwhile.

        Raises:
            ConfigError: the folder cannot be written.
        """
        text = _layout(self.to_json())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            raise ConfigError(
                f"cannot write {path}: {error.strerror or error}; give --out another file"
            ) from error

    @staticmethod
    def load(path: Path) -> "MachineFile":
        """Read what save wrote.

        Raises:
            CheckpointError: the file cannot be read or is not such a file; names it.
        """
        data = read_json(path)
        try:
            return MachineFile.from_json(data)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error


def read_json(path: Path) -> object:
    """The JSON of a file of moderate size.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        if path.stat().st_size > _FILE_LIMIT:
            raise ValueError(f"it is larger than {_FILE_LIMIT} bytes")
        data: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"hardware profile {path} cannot be read: {error}") from error
    return data


def _layout(data: dict[str, Any]) -> str:
    """JSON with one line a figure and a table row."""
    parts = []
    for key, value in data.items():
        if key == "figures":
            rows = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            text = "{\n" + ",\n".join(rows) + "\n  }"
        elif key == "tables":
            tables = []
            for name, rows in value.items():
                lines = ",\n".join(f"      {json.dumps(row)}" for row in rows)
                tables.append(f"    {json.dumps(name)}: [\n{lines}\n    ]")
            text = "{\n" + ",\n".join(tables) + "\n  }" if tables else "{}"
        else:
            text = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _same_keys(what: str, data: Mapping[str, Any], needed: Sequence[str], more: Any = ()) -> None:
    """Raise unless an object has the needed keys and none beside them and more."""
    missing = [key for key in needed if key not in data]
    unknown = [key for key in data if key not in needed and key not in more]
    if missing:
        raise CheckpointError(f"{what}: {missing[0]!r} is missing")
    if unknown:
        raise CheckpointError(f"{what}: {unknown[0]!r:.60} is not known")


def _figures(data: object) -> dict[str, Figure]:
    if not isinstance(data, dict):
        raise CheckpointError("hardware file: figures must be an object")
    _same_keys("figures", data, [name for name in UNITS if name not in _OPTIONAL], _OPTIONAL)
    return {name: _figure(name, value) for name, value in data.items()}


def _figure(name: str, data: object) -> Figure:
    if not isinstance(data, dict):
        raise CheckpointError(
            f"figure {name} is {data!r:.60}; it must have value, unit, source and from"
        )
    _same_keys(f"figure {name}", data, ("value", "unit", "source", "from"))
    if data["unit"] != UNITS[name]:
        raise CheckpointError(
            f"figure {name} is in {data['unit']!r:.40}; it must be in {UNITS[name]!r}"
        )
    if data["source"] not in SOURCES:
        raise CheckpointError(
            f"figure {name}: source is {data['source']!r:.40}; it must be {', '.join(SOURCES)}"
        )
    if not isinstance(data["from"], str) or not data["from"].strip():
        raise CheckpointError(f"figure {name}: from must say where it comes from")
    check_number(f"figure {name}", data["value"], name in MAY_BE_ZERO)
    return Figure(data["value"], data["source"], data["from"])


def _tables(data: object) -> dict[str, list[dict[str, Any]]]:
    if not isinstance(data, dict):
        raise CheckpointError("hardware file: tables must be an object")
    _same_keys("tables", data, (), tuple(TABLES))
    for name, rows in data.items():
        words, numbers = TABLES[name]
        if not isinstance(rows, list) or len(rows) > _ROW_LIMIT:
            raise CheckpointError(f"table {name} must be a list of at most {_ROW_LIMIT} rows")
        for index, row in enumerate(rows):
            what = f"table {name}, row {index}"
            if not isinstance(row, dict):
                raise CheckpointError(f"{what} is {row!r:.60}; it must be an object")
            _same_keys(what, row, (*words, *numbers))
            for key in words:
                if not isinstance(row[key], str):
                    raise CheckpointError(f"{what}: {key} is {row[key]!r:.60}; it must be text")
            for key in numbers:
                check_number(f"{what}: {key}", row[key], False)
    return data


def reference_machines() -> list[str]:
    """Names of the machines that come with hotcold; machines/__init__.py says what they are."""
    return sorted(path.stem for path in MACHINES.glob("*.json"))


def about(name: str) -> str:
    """The parts of a reference machine, in words; "" for any other name."""
    found = name in reference_machines() and read_json(MACHINES / f"{name}.json")
    return str(found["about"]) if isinstance(found, dict) else ""


def load_hardware(name: str, threads: int | None = None) -> HardwareProfile:
    """A profile by the name of a reference machine, or by the path of a JSON file.

    The file is one that `hotcold hardware` writes, or holds the fields of HardwareProfile alone.

    Args:
        name: of the machine or the file.
        threads: of each executor; None: all cores. Only measured files know what that changes.

    Raises:
        ConfigError: neither of the two.
        CheckpointError: a file that does not hold a profile.
    """
    path = MACHINES / f"{name}.json" if name in reference_machines() else Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"no hardware profile {name!r}: it is neither a file nor one of "
            f"{', '.join(reference_machines())}"
        )
    data = read_json(path)
    try:
        if isinstance(data, dict) and data.get("format") == FORMAT:
            return MachineFile.from_json(data).with_threads(threads)
        return HardwareProfile.from_json(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
