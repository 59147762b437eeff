"""What `hotcold submit` sends: this package as a wheel holds it, and the user's folder as a zip.

The package goes as folders that Ray puts on the import path of every process of the job: nothing is
installed on the cluster, its dependencies must be there (or come by --install). A wheel handed to
Ray as such would be installed with all its dependencies beside those the cluster has, torch among
them. Ray caches both parts by their content, so a second submission sends what changed. Imports no
Ray.
"""

import importlib.util
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path, PurePosixPath

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.units import format_bytes

PARTS = ("actors", "native", "policies", "runtime")
NOT_SENT = ("__pycache__", "*.pyc", "*.partial")
NEVER_SENT = (".git", "__pycache__", ".venv", "*.pyc")
FOLDER_LIMIT = 256 << 20  # compressed; Ray refuses messages of 512 MiB
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same zip, which Ray then has already


def package_folders(into: Path, wheel: Path | None = None) -> list[Path]:
    """The package and its metadata, ready to be put on an import path.

    Taken from a wheel, or from the running installation.

    Raises:
        CheckpointError: not a wheel of hotcold.
        ConfigError: the running installation has no kernels.
    """
    if wheel is None:
        _copy_running(into)
    else:
        _unpack(wheel, into)
    if not list((into / "hotcold" / "native").glob("_kernels*.so")):
        raise ConfigError(
            f"{wheel or 'the running installation'} has no C kernels to send; build them with "
            "`make native`, or give --wheel a wheel of `make wheel`"
        )
    return sorted(path for path in into.iterdir() if path.is_dir())


def _copy_running(into: Path) -> None:
    for part in PARTS:
        found = importlib.util.find_spec(f"hotcold.{part}")
        if found is None or not found.submodule_search_locations:
            raise ConfigError(f"hotcold.{part} is not in this installation; install hotcold again")
        source = next(iter(found.submodule_search_locations))
        ignore = shutil.ignore_patterns(*NOT_SENT)
        shutil.copytree(source, into / "hotcold" / part, ignore=ignore)
    try:
        told = metadata.distribution("hotcold")
    except metadata.PackageNotFoundError:
        return  # a checkout: the built-in plug-ins are listed in the registry too
    folder = into / f"hotcold-{told.version}.dist-info"
    folder.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        text = told.read_text(name)
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")


def _unpack(wheel: Path, into: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
            ours = all(name.parts[0].startswith("hotcold") for name in names if name.parts)
            if not names or not ours or any(".." in name.parts for name in names):
                raise CheckpointError(f"{wheel} is not a wheel of hotcold; make one: make wheel")
            archive.extractall(into)
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheel} cannot be read as a wheel: {error}") from error


def requirements(folders: list[Path]) -> list[str]:
    """What the package needs, as pip's requirements, without Ray, which the cluster has.

    Raises:
        ConfigError: the package has no metadata that says so.
    """
    for folder in folders:
        if folder.name.endswith(".dist-info"):
            needs = metadata.Distribution.at(folder).requires or []
            return [need for need in needs if "extra ==" not in need and not _is_ray(need)]
    raise ConfigError(
        "--install needs to know what hotcold depends on, and this checkout is not installed; "
        "give --wheel a wheel of `make wheel`"
    )


def _is_ray(need: str) -> bool:
    return need.startswith("ray") and not need[3:4].isalpha()


def zip_folder(folder: Path, target: Path, excluded: tuple[str, ...] = ()) -> list[str]:
    """Put a user's folder into a zip: what git would not ignore, where it is a git checkout.

    `excluded` are relative paths, names or patterns that stay here. Returns the relative paths
    sent.

    Raises:
        ConfigError: no such folder, a file that cannot be read, too much for one submission.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder} to send; see --working-dir")
    sizes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in sorted(_sendable(folder, excluded)):
                path = folder / name
                info = zipfile.ZipInfo(name, _EPOCH)
                info.external_attr = (path.stat().st_mode & 0o755 | 0o644) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                sizes[name] = path.stat().st_size
                with path.open("rb") as source, archive.open(info, "w") as sink:
                    shutil.copyfileobj(source, sink)
                if target.stat().st_size > FOLDER_LIMIT:
                    largest = max(sizes, key=lambda one: sizes[one])
                    raise ConfigError(
                        f"{folder.resolve()} is more than {format_bytes(FOLDER_LIMIT)} compressed, "
                        f"too much to send ({largest}: {format_bytes(sizes[largest])}); leave out "
                        "what the job does not need with --exclude, and name models by a path "
                        "that the cluster sees"
                    )
            if not sizes:
                archive.writestr(zipfile.ZipInfo(".hotcold", _EPOCH), "")  # Ray refuses an empty
    except OSError as error:
        raise ConfigError(f"cannot send {folder}: {error}") from error
    return list(sizes)


def _sendable(folder: Path, excluded: tuple[str, ...]) -> Iterator[str]:
    for name in _not_ignored(folder) or _all_files(folder):
        parts = PurePosixPath(name).parts
        inside = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        patterns = (*NEVER_SENT, *(pattern.strip("/") for pattern in excluded))
        if any(fnmatch(one, pattern) for one in (*inside, *parts) for pattern in patterns):
            continue
        if (folder / name).is_file():
            yield name


def _not_ignored(folder: Path) -> list[str] | None:
    """What git tracks or would track below a folder; None where git does not say."""
    if shutil.which("git") is None:
        return None
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode != 0:
        return None
    return sorted({os.fsdecode(name) for name in done.stdout.split(b"\0") if name})


def _all_files(folder: Path) -> list[str]:
    found = []
    for at, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not any(fnmatch(one, no) for no in NEVER_SENT)]
        found += [(Path(at) / one).relative_to(folder).as_posix() for one in files]
    return found
