"""What an engine computes with: a built-in CPU variant, or a C or CUDA file of one's own."""

import os

from hotcold.native.bindings.kernels import cpu_variants
from hotcold.native.errors import BackendError
from hotcold.runtime.engine.cuda_variant import prepare_cuda_variant
from hotcold.runtime.engine.variant import Variant, is_variant_file, prepare_variant


def prepare_kernels(kernels: str | None) -> Variant | str | None:
    """What an engine's actors compute with: the option, else a file that HOTCOLD_CPU names.

    Returns:
        A tested variant, the name of a built-in one, or None where nothing was asked for here
        (HOTCOLD_CPU with a built-in name reaches the C code by itself).

    Raises:
        ConfigError, BackendError: a file that cannot be used, or an unknown name.
    """
    name = kernels or os.environ.get("HOTCOLD_CPU") or None
    if name is not None and name.endswith(".cu"):
        return prepare_cuda_variant(name)
    if name is not None and is_variant_file(name):
        return prepare_variant(name)
    if kernels is not None and kernels not in cpu_variants():
        raise BackendError(
            f"CPU kernels {kernels!r} are not supported here; available: "
            f"{', '.join(cpu_variants())}, or a C or CUDA file"
        )
    return kernels
