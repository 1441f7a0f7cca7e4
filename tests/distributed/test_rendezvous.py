"""The environment in which ranks meet: torchrun's, or none of it."""

import pytest

from adaptsft.distributed.ranks import RENDEZVOUS, process_group
from adaptsft.errors import ConfigError

WHOLE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict.fromkeys(RENDEZVOUS[1:]), "and WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ({"MASTER_ADDR": None}, "and MASTER_ADDR not"),
        ({"MASTER_PORT": ""}, "and MASTER_PORT not"),
        ({"WORLD_SIZE": "two"}, "and WORLD_SIZE=two not as a number"),
    ],
)
def test_half_an_environment_is_one_message(monkeypatch, changed, said):
    for name, value in (WHOLE | changed).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=rf"RANK=0, {said}: .*torchrun.* or unset RANK"),
        process_group("cpu"),
    ):
        pass
