"""What held-out data is scored with."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from adaptsft.config.schema import Config
from adaptsft.data.tokenized import open_data
from adaptsft.train import train
from tests.runs import metrics_of, small_config, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sums, lines of another kind that a model finds about as hard, and a validation file."""
    made = tmp_path_factory.mktemp("held_out")
    write_data(made / "data.jsonl", 12)
    write_data(made / "held_out.jsonl", 5, seed=1)
    lines = [json.dumps({"prompt": f"{i}?", "completion": "zzz " * (i + 1)}) for i in range(8)]
    (made / "other.jsonl").write_text("\n".join(lines))
    return made


@pytest.fixture(scope="module")
def config(folder, tiny_model):
    def of(name: str, **overrides) -> Config:
        settings = {
            "objective__name": "threshold",
            "data__validation_path": str(folder / "held_out.jsonl"),
            "train__max_steps": 1,
            "eval__every": 1,
        }
        return small_config(folder, tiny_model("llama"), name, **settings | overrides)

    return of


def first_evaluation(config: Config) -> dict:
    """The held-out figures before the first step: of the same model in every run here."""
    return json.loads((Path(config.run_dir) / "eval.jsonl").read_text().splitlines()[0])


def test_a_validation_file_is_scored_with_the_mean_of_the_sources(config, folder):
    """Weighted by their target tokens in an epoch: the figures are those of a run of one source
    with that threshold, and not of the first source's."""
    sources = [{"path": str(folder / "data.jsonl"), "name": "sums"}]
    sources.append({"path": str(folder / "other.jsonl"), "weight": 3})
    both = config("both", data__path="", data__sources=sources, objective__lower_quantile=0.4)
    train(both)
    by_source = metrics_of(both)[0]["sources"]
    lower = {name: values["lower"] for name, values in by_source.items()}
    assert lower["sums"] != lower["other"]

    tokenizer = AutoTokenizer.from_pretrained(both.model.path)
    data, _ = open_data(both.data, tokenizer, both.seed, log=lambda line: None)
    tokens = [data.target_tokens[data.source == i].sum() * data.weights[i] for i in (0, 1)]
    mean = (tokens[0] * lower["sums"] + tokens[1] * lower["other"]) / sum(tokens)
    found = first_evaluation(both)
    one = config("one", objective__lower=float(mean))
    train(one)
    expected = first_evaluation(one)
    assert found["kept"] == expected["kept"] > 0
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["nll"] == expected["nll"]
    assert "sources" not in found

    first = config("first", objective__lower=lower["sums"])
    train(first)
    assert first_evaluation(first)["kept"] != found["kept"]


def test_held_out_examples_keep_their_sources(config, folder):
    sources = [{"path": str(folder / f"{name}.jsonl")} for name in ("data", "other")]
    data = {"data__path": "", "data__sources": sources, "data__validation_path": ""}
    data["data__validation_examples"] = 8
    both = config("held-out", objective__lower_quantile=0.4, **data)
    train(both)
    found = first_evaluation(both)
    assert set(found["sources"]) == {"data", "other"}
    for name, values in found["sources"].items():
        lower = metrics_of(both)[0]["sources"][name]["lower"]
        assert values["sequences"] > 0 and lower > 0
        assert 0 < values["kept"] < values["tokens"]
