import pytest

from adaptsft.distributed.ranks import process_group


@pytest.fixture
def device():
    with process_group("cpu") as found:
        yield found
