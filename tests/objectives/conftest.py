"""A clean registry for every test of objectives."""

from collections.abc import Iterator

import pytest

from tests.objectives.tokens import only_shipped


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Ours alone, and as it was afterwards."""
    with only_shipped():
        yield
