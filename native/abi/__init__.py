"""The ABI: C headers, the Python module that the build makes of them, and its names in words.

`generated` holds every constant, enum and struct layout of the headers, `names` the words for them
in files, options and messages. Imports numpy alone, never compiled code.

May import: nothing
"""

import importlib.util

NOT_BUILT = (
    "hotcold's C kernels are not built ({} is missing); in a checkout run `pip install -e .` or "
    "`make setup`, and do not run from the checkout's parent folder with an installed wheel"
)

if importlib.util.find_spec("hotcold.native.abi.generated") is None:
    raise ImportError(NOT_BUILT.format("hotcold.native.abi.generated"))
