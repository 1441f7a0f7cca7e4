"""Tasks of lm-eval on our backends: no network, local data, results by our own arithmetic."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'adaptsft[harness]'")

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.backends.replay import Replay
from adaptsft.evals.harness.evaluate import evaluate
from adaptsft.evals.protocol import Likelihood
from tests.evals.hub import (
    CATEGORIES,
    QUESTIONS,
    hub_folder,
    mmlu_prox_sw,
    openbookqa_records,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not only the hub's offline switch: any address but this machine's is out of reach."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"the network was used: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture
def openbookqa(tmp_path: Path) -> Path:
    hub_folder(
        tmp_path / "data" / "allenai" / "openbookqa",
        "main",
        dict.fromkeys(("train", "validation", "test"), openbookqa_records()),
    )
    return tmp_path / "data"


class Interrupted(HuggingFace):
    """A model that stops answering after its first batch."""

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        if self.answered:
            raise KeyboardInterrupt
        self.answered = True
        return super().loglikelihood(pairs)

    answered = False


def test_likelihoods_of_options(
    tiny_model: Callable[..., Path], openbookqa: Path, tmp_path: Path
) -> None:
    """lm-eval's accuracy is that of our own likelihoods.

    An interrupted run resumes, and is scored without a model.
    """
    model = str(tiny_model("llama"))
    backend = HuggingFace(model, batch_size=6)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            "openbookqa", Interrupted(model, batch_size=6), tmp_path / "out", data_dir=openbookqa
        )
    with pytest.raises(DataError, match="14 of 20 answers to openbookqa are missing"):
        evaluate("openbookqa", None, tmp_path / "out", data_dir=openbookqa)
    found = evaluate("openbookqa", backend, tmp_path / "out", data_dir=openbookqa, items=5)
    right = {"acc": [], "acc_norm": []}
    for stem, options, gold in QUESTIONS:
        logprobs = [
            likelihood.logprob
            for likelihood in backend.loglikelihood([(stem, f" {option}") for option in options])
        ]
        right["acc"].append(max(range(4), key=lambda i: logprobs[i]) == gold)
        right["acc_norm"].append(max(range(4), key=lambda i: logprobs[i] / len(options[i])) == gold)
    for metric, verdicts in right.items():
        assert found.metrics[metric]["value"] == pytest.approx(sum(verdicts) / 5)
        assert found.metrics[metric]["n"] == 5
        assert [record["scores"][metric] for record in found.records] == [
            float(verdict) for verdict in verdicts
        ]
    assert len((tmp_path / "out" / "samples.rank0.jsonl").read_text().splitlines()) == 20
    assert evaluate("openbookqa", None, tmp_path / "out", data_dir=openbookqa) == found
    assert found.temperature is None, "nothing was generated"


def test_generated_answers(tmp_path: Path) -> None:
    """MMLU-ProX in Swahili: 5 examples by default, the share without an answer, the mean."""
    mmlu_prox_sw(tmp_path / "data")
    answers = ["Jibu ni (B).", "Jibu ni B", "Jibu ni (A). Jibu ni (B).", "sijui"]
    outputs = [
        {"item_id": f"mmlu_prox_sw_{category.replace(' ', '_')}/0", "output": answers[i % 4]}
        for i, category in enumerate(CATEGORIES)
    ]
    outputs[3]["output"] = None  # of a request that failed: an error, and no answer
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in outputs))
    backend = Replay(tmp_path / "answers.jsonl", {}, "recorded")
    found = evaluate(
        "mmlu_prox_sw", backend, tmp_path / "out", data_dir=tmp_path / "data", items=14
    )
    assert found.metrics["exact_match"]["value"] == pytest.approx(8 / 14)
    assert found.metrics["exact_match"]["n"] == found.n_items == 14
    assert found.rates == {"unparsed": pytest.approx(3 / 14), "error": pytest.approx(1 / 14)}
    assert set(found.settings["num_fewshot"].values()) == {5}
    assert found.records[0]["prompt"].count("Je, 2 + 2 ni ngapi?") == 6
    assert found.records[0]["fields"] == {
        "options": {"A": "3", "B": "4", "C": "5", "D": "6"},
        "gold": "B",
    }
    zero = evaluate(
        "mmlu_prox_sw", backend, tmp_path / "zero", data_dir=tmp_path / "data", num_fewshot=0
    )
    assert zero.records[0]["prompt"].count("Je, 2 + 2 ni ngapi?") == 1
    assert zero.data_sha256 == found.data_sha256


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    """An lm-eval YAML file with data beside it."""
    (tmp_path / "capitals.jsonl").write_text(
        '{"q": "Capital of France?", "a": "Paris"}\n{"q": "Capital of Peru?", "a": "Lima"}\n'
    )
    (tmp_path / "capitals.yaml").write_text(
        "task: capitals\ndataset_path: json\ndataset_kwargs: "
        f"{{data_files: {{test: {tmp_path / 'capitals.jsonl'}}}}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "answers.jsonl").write_text(
        '{"item_id": "capitals/0", "output": "Paris"}\n'
        '{"item_id": "capitals/1", "output": "Quito"}\n'
    )
    backend = Replay(tmp_path / "answers.jsonl", {}, "recorded")
    found = evaluate(str(tmp_path / "capitals.yaml"), backend, tmp_path / "out")
    assert found.metrics["exact_match"]["value"] == 0.5 and found.temperature == 0.0
    assert [(record["output"], record["gold"]) for record in found.records] == [
        ("Paris", "Paris"),
        ("Quito", "Lima"),
    ]
    ways = "".join(
        f"- {{name: {name}, filter: [{{function: take_first}}]}}\n"
        for name in ("strict", "lenient")
    )
    (tmp_path / "ways.yaml").write_text(
        (tmp_path / "capitals.yaml").read_text() + f"filter_list:\n{ways}"
    )
    with pytest.raises(ConfigError, match=r"in several ways \(strict, lenient\)"):
        evaluate(str(tmp_path / "ways.yaml"), backend, tmp_path / "ways")


def test_data_that_changed_is_read_again(openbookqa: Path, tmp_path: Path) -> None:
    """`datasets` alone would give what it saw in the folder before."""
    path = openbookqa / "allenai" / "openbookqa" / "main" / "test.jsonl"
    with pytest.raises(DataError, match="20 of 20 answers"):
        evaluate("openbookqa", None, tmp_path / "out", data_dir=openbookqa)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(DataError, match="12 of 12 answers"):
        evaluate("openbookqa", None, tmp_path / "out", data_dir=openbookqa)


def test_what_is_refused(openbookqa: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data has 5 items, the task names 500"):
        evaluate("openbookqa", None, tmp_path / "out", data_dir=openbookqa, items=500)
    with pytest.raises(DataError, match="hf download cais/mmlu --repo-type dataset --local-dir"):
        evaluate("mmlu", None, tmp_path / "out", data_dir=openbookqa)
    with pytest.raises(ConfigError, match="choose one of mmlu, arc_challenge"):
        evaluate("hellaswag", None, tmp_path / "out")
    os.remove(openbookqa / "allenai" / "openbookqa" / "main" / "test.jsonl")
    with pytest.raises(DataError, match="openbookqa cannot be loaded: "):
        evaluate("openbookqa", None, tmp_path / "out", data_dir=openbookqa)
