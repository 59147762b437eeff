"""A GPU and its plug-in, or a skip that says what is missing."""

from typing import Any

import pytest
from support.gpu import usable_plugin

from hotcold.native.gpu import cuda_probe

CONTEXT_BYTES = 700 << 20  # some more than an H100's or an H200's


@pytest.fixture(scope="session")
def plugin() -> Any:
    return usable_plugin()


@pytest.fixture(autouse=True)
def context_assumed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context is measured, in a process of its own, only for tests with the GPU to themselves."""
    if request.node.get_closest_marker("alone") is None:
        monkeypatch.setattr(cuda_probe, "context_bytes", lambda *_: CONTEXT_BYTES)
