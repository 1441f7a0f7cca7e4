"""The controller `remembering` and a clean registry for the tests of controllers."""

from collections.abc import Iterator

import pytest

from tests.controllers.steps import only_shipped, register_remembering


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Ours alone, and as it was afterwards."""
    with only_shipped():
        yield


@pytest.fixture
def remembering(registry: None) -> None:
    register_remembering()
