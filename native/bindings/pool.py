"""The CPU variants and the thread pool the operators run on.

Called by the executors and by kernels.py. A variant is the primitives of one instruction set
(avx512, avx2, neon, ref), chosen once a process: by HOTCOLD_CPU, or the best one; or a file of the
user's own that was loaded. Does no arithmetic itself.
"""

import os
from collections.abc import Sequence
from typing import Any

from hotcold.native.abi.generated import MAX_THREADS
from hotcold.native.bindings._ffi import check, failure, ffi, lib
from hotcold.native.errors import ConfigError

CPointer = Any


def cpu_variants() -> tuple[str, ...]:
    """Names of the CPU variants this machine supports, best first."""
    names: list[str] = []
    while (name := lib.hc_cpu_variant(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return tuple(names)


def active_cpu_variant() -> str:
    """Name of the CPU variant in force.

    Call it before work starts: HOTCOLD_CPU is read once, at the first use of a kernel.

    Raises:
        BackendError: HOTCOLD_CPU names a variant this machine does not support.
    """
    name = lib.hc_cpu_active()
    if name == ffi.NULL:
        raise failure()
    return str(ffi.string(name).decode())


def force_cpu_variant(name: str | None) -> None:
    """Use a variant in the whole process; None: the best one. BackendError: not supported here."""
    check(lib.hc_cpu_force(ffi.NULL if name is None else name.encode()))


def load_cpu_variant(library: str, name: str) -> None:
    """Open a shared object (abi/variant.h), so that force_cpu_variant knows it by that name.

    The name has at most 127 bytes, and a dot in it.

    Raises:
        BackendError: it does not open, exports no table, or was made for another ABI.
        ConfigError: a path or a name too long.
    """
    check(lib.hc_cpu_load(library.encode(), name.encode()))


class Pool:
    """Threads the operators share, the caller's own included; a context manager.

    One operator at a time runs on a pool; a second one that comes meanwhile uses its caller's
    thread alone. Idle threads sleep after 1 ms, without spins at once. cores: None, or one a
    thread; the first one is the caller's, who pins itself.

    Raises:
        ConfigError: fewer than one thread, or a core this process may not use.
        KernelError: the threads could not be started.
    """

    def __init__(
        self, threads: int, cores: Sequence[int] | None = None, spins: bool = True
    ) -> None:
        self._pool: Any = ffi.NULL
        if not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"a pool of {threads} threads; 1 to {MAX_THREADS} are possible")
        if cores is not None:
            if len(cores) != threads:
                raise ConfigError(f"{len(cores)} cores for {threads} threads; give one each")
            allowed = os.sched_getaffinity(0)
            if missing := sorted(set(cores) - allowed):
                raise ConfigError(
                    f"cores {missing} are not among those this process may use: {sorted(allowed)}"
                )
        c_cores = ffi.NULL if cores is None else ffi.new("int32_t[]", list(cores))
        self._pool = lib.hc_pool_create(threads, c_cores, spins)
        if self._pool == ffi.NULL:
            raise failure()

    @property
    def handle(self) -> CPointer:
        """The C pointer, NULL once closed."""
        return self._pool

    @property
    def threads(self) -> int:
        """Threads, the caller's own included; 1 once closed."""
        return int(lib.hc_pool_threads(self._pool))

    def close(self) -> None:
        """End the threads; operators still given this pool use the caller's thread alone."""
        pool, self._pool = self._pool, ffi.NULL
        lib.hc_pool_destroy(pool)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", ffi.NULL) != ffi.NULL:
            self.close()
