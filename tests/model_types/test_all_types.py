"""Every model type is what the table says, compiled too, and by real runs; a test for each."""

import pytest
import torch

from adaptsft.config.schema import TrainConfig
from adaptsft.model import compile
from adaptsft.model.attention import HF_ATTENTION_NAMES
from adaptsft.model.language import causal_lm
from adaptsft.model.mixers import mixers
from adaptsft.model.modules import blocks
from adaptsft.model.router import Routers
from adaptsft.model.supported import is_exact, verified
from tests.model_types.__main__ import differences, found, found_trained
from tests.model_types.test_model_types import UNTRACED, assert_reached
from tests.model_types.trained import SLOW, trained_variants
from tests.model_types.variants import config_of, variants

pytestmark = pytest.mark.nightly


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", variants())
def test_a_type_is_what_the_table_says_compiled_too(name):
    rows = found([name], compiled=name not in SLOW)
    assert not differences(verified()["variants"], rows)


@pytest.mark.parametrize("name", trained_variants())
def test_real_runs_of_a_type_are_what_the_table_says(name):
    """With the loss of the routers and without, packed and padded, killed, and shared packs."""
    rows = found_trained([name])
    assert not differences(verified()["variants"], rows)
    assert_reached(name, rows[name])


@pytest.mark.usefixtures("one_rank")
def test_layers_of_all_types_that_train_packed_are_traced_as_a_whole_but_those_of_the_guide(
    monkeypatch,
):
    monkeypatch.setattr(compile, "has_triton", lambda: True)
    rows = {name: row for name, row in verified()["variants"].items() if is_exact(row, "packed")}
    off: dict[str, str] = {}
    for name, row in rows.items():
        with torch.device("meta"):
            config = config_of(*variants()[name])
            # in fp32 grouped products have another path
            model = causal_lm(config, HF_ATTENTION_NAMES["varlen"], torch.bfloat16, False)
        if any(mixers(block) for block in blocks(model)):
            continue  # run outside of the graph
        gpu = torch.device("cuda")
        routers = Routers(model, TrainConfig())
        choice = compile.choose_compilation(model, TrainConfig(), "varlen", gpu, True, routers)
        if not choice.on:
            off[row["model_type"]] = choice.reason
    assert len(rows) > 100 and off.keys() == UNTRACED, off
