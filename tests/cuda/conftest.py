"""A GPU and its plug-in, or a skip that says what is missing."""

from typing import Any

import pytest
from support.gpu import usable_plugin


@pytest.fixture(scope="session")
def plugin() -> Any:
    return usable_plugin()
