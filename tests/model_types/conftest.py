"""What the tests of model types share."""

import pytest

from adaptsft.distributed.ranks import process_group


@pytest.fixture
def one_rank():
    """A process group of one rank."""
    with process_group("cpu"):
        yield
