"""A GPU and its plug-in, or a skip that says what is missing."""

from typing import Any

import pytest

from hotcold.native import cuda_plugin, nvml
from hotcold.native.device import open_plugin
from hotcold.runtime.errors import BackendError


@pytest.fixture(scope="session")
def plugin() -> Any:
    if not nvml.gpus():
        pytest.skip("no NVIDIA GPU on this machine")
    try:
        found = cuda_plugin.find()
    except BackendError as error:
        pytest.skip(f"no GPU plug-in: {error}")
    if found is None:
        pytest.skip("no GPU plug-in, or HOTCOLD_CUDA=off")
    return open_plugin(found.path)
