"""Model types against plain transformers: some here; all of them in test_all_types, nightly."""

import copy

import pytest

from adaptsft.config.schema import ModelConfig
from adaptsft.errors import ConfigError
from adaptsft.model.__main__ import ON_GPUS, TRAINED, describe_models
from adaptsft.model.supported import MODES, check_verified, is_exact, verified
from adaptsft.model.tiny import ARCHITECTURES
from tests.conftest import REPO
from tests.model_types.__main__ import differences
from tests.model_types.measure import EXACT, HALF, TRACEBACK, measure
from tests.model_types.trained import AMPLIFIED, AMPLIFIED_BAR, BAR
from tests.model_types.variants import config_of, variants

SOME = ["llama: biases", "gemma2: narrow soft caps", "cohere", "phi: q/k norm", "gemma3n_text"]
SOME += ["gpt2", "opt: norm after, projected embeddings", "granite: multipliers", "mamba2", "bloom"]
SOME += ["granitemoehybrid: dense, hybrid", "lfm2", "stablelm", "falcon", "gpt_oss", "ernie"]
SOME += ["qwen3_moe", "deepseek_v3"]


UNTRACED = {"gemma3n_text", "jetmoe"}  # of the guide


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", SOME)
def test_a_type_is_what_the_table_says(name, tmp_path):
    model_type, settings = variants()[name]
    row = measure(model_type, settings, tmp_path, compiled=False)
    stored = copy.deepcopy(verified()["variants"][name])
    for figure in ("compile", *TRAINED):
        stored.pop(figure, None)
    assert row.keys() == stored.keys() and not differences({name: stored}, {name: row})


def assert_reached(name: str, row: dict) -> None:
    """The bar: loss and gradient norm of any way of a type on one rank and on two, packs shared;
    final/; and the weights of a run that was killed, to the bit."""
    assert row["resumed"] == 0.0, (name, row)
    amplified = verified()["variants"][name]["model_type"] in AMPLIFIED
    for figure in TRAINED if "varlen" in row else set(TRAINED) - set(ON_GPUS):
        refused = figure == "context_parallel" or (figure == "graphs" and name in UNTRACED)
        assert refused or isinstance(row[figure], float), (name, figure, row[figure])
        if isinstance(row[figure], str):
            assert not row[figure].startswith(TRACEBACK), (name, figure, row[figure])
        else:
            limit = AMPLIFIED_BAR if figure in ON_GPUS else EXACT
            assert row[figure] <= (limit if amplified else BAR), (name, figure, row[figure])


def test_the_table_holds_what_is_promised():
    rows = verified()["variants"]
    assert rows.keys() == variants().keys(), "run: python -m tests.model_types --write"
    exact = [row for row in rows.values() if any(is_exact(row, mode) for mode in MODES)]
    assert len(exact) > 100
    for name, row in rows.items():
        for figure, value in row.items():
            assert TRACEBACK not in str(value), (name, figure)
            limit = HALF if figure == "bf16" else EXACT
            if figure in ON_GPUS and row["model_type"] in AMPLIFIED:
                limit = AMPLIFIED_BAR
            assert not isinstance(value, float) or value <= limit, (name, figure)
    for row in exact:
        # transformers computes recurrent layers of these in fp32, and their products in bf16: of
        # xLSTM in documents of more than a chunk
        assert is_exact(row, "export")
        assert is_exact(row, "bf16") or row["model_type"] in ("minimax", "xlstm")
        assert "compile" not in row or is_exact(row, "compile")
    for name, row in rows.items():
        if "resumed" in row:
            assert_reached(name, row)
    assert set(ARCHITECTURES.values()) <= {row["model_type"] for row in exact}


def test_the_page_is_printed_from_the_table():
    assert describe_models() in (REPO / "docs" / "models.md").read_text(), "run: make docs"


def check(model_type: str, packing: bool = True, **settings) -> None:
    config = ModelConfig(path="some/model", **settings)
    check_verified(config, config_of(model_type, variants()[model_type][1]), packing)


@pytest.mark.parametrize(
    ("model_type", "ways", "others"),
    [
        ("llama", [{}, {"packing": False}, {"packing": False, "attention": "eager"}], []),
        ("mamba", [{"packing": False}], [({}, "set data.packing=false")]),
        (
            "bloom",
            [{"packing": False, "attention": "eager"}],
            [
                ({}, "set model.attention=eager and data.packing=false"),
                ({"packing": False}, "set model.attention=eager and data.packing=false"),
            ],
        ),
    ],
)
def test_a_type_is_trained_as_the_table_says(model_type, ways, others):
    for way in ways:
        check(model_type, **way)
    for way, fix in others:
        with pytest.raises(ConfigError, match=f"some/model: model_type={model_type}.*{fix}"):
            check(model_type, **way)


def test_another_type_is_refused_until_asked_for():
    with pytest.raises(ConfigError, match=r"own forward.*docs/models\.md lists") as refused:
        check("ernie")
    assert "unverified" not in str(refused.value)  # it was tried, and would be refused again
    check("ernie", unverified=True)
    config = config_of("llama", {"auto_map": {"AutoModelForCausalLM": "own.Model"}})
    with pytest.raises(ConfigError, match=r"has its own code.*model\.unverified=true"):
        check_verified(ModelConfig(path="x", trust_remote_code=True), config, packing=True)


@pytest.mark.parametrize(
    ("model_type", "what"),
    [("zamba", "share parameters"), ("bart", "encoder-decoder")],
)
def test_kinds_of_models_that_are_not_trained_are_named(model_type, what):
    for unverified in (False, True):
        with pytest.raises(ConfigError, match=rf"{what}.*docs/models\.md"):
            check(model_type, unverified=unverified)
