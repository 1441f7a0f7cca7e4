"""Scores by one forward are what sampling, greedy generation and the trainer give."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab.runs import configure, train_logged
from benchmarks.lab.smollm2 import scoring, tasks
from benchmarks.lab.smollm2.tasks import Item, Task

ITEMS = [Item(f"{a} + {b} =", f" {a + b}") for a in range(3) for b in range(40, 50)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny_model(folder, hidden=32, layers=1, initializer_range=0.5)


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def train(model, folder, items, **keys):
    records = [{"prompt": item.prompt, "completion": item.answer} for item in items]
    data = {"sums": tasks.write(folder / "data.jsonl", records)}
    keys = {"train": {"global_batch_size": len(items), "device": "cpu"} | keys}
    train_logged(configure(folder / "run", model, 0, data, folder / "cache", keys))


@torch.no_grad()
def test_the_probability_of_a_whole_answer(tiny):
    """Item by item, without padding, in fp64."""
    model, tokenizer = loaded(tiny)
    right, entropies = [], []
    for item in ITEMS:
        prompt, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in item)
        answer = [*answer, tokenizer.eos_token_id]
        logp = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        steps = logp[len(prompt) - 1 : -1]
        right.append(math.exp(sum(steps[i, token] for i, token in enumerate(answer))))
        entropies += (-(steps.exp() * steps).sum(-1)).tolist()
    scores = scoring.score(model, tokenizer, Task(tasks.sums, "{} ="), ITEMS)
    assert scores["sampled"] == pytest.approx(sum(right) / len(ITEMS), rel=1e-3)
    in_eight = sum(1 - (1 - p) ** 8 for p in right) / len(ITEMS)
    assert scores["pass_at_8"] == pytest.approx(in_eight, rel=1e-3)
    assert scores["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_greedy_answers_are_right_and_similar(tiny, tmp_path):
    """Of a model that has learned to answer 77, whatever is asked."""
    learned = [Item(item.prompt, " 77") for item in ITEMS]
    train(tiny, tmp_path, learned, max_steps=40, lr=1e-2)
    model, tokenizer = loaded(tmp_path / "run" / "final")
    task = Task(tasks.sums, "{} =", graded=True)
    scores = scoring.score(model, tokenizer, task, learned)
    assert scores["greedy"] == scores["top1"] == scores["similarity"] == 1.0
    assert 0.5 < scores["sampled"] < scores["pass_at_8"] <= 1.0
    scores = scoring.score(model, tokenizer, task, [Item(item.prompt, " 78") for item in ITEMS])
    assert scores["greedy"] == 0.0 and scores["similarity"] == 0.5


def test_mean_p_is_the_trainers(tiny, tmp_path):
    train(tiny, tmp_path, ITEMS, max_steps=1)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    model, tokenizer = loaded(tiny)
    place = scoring.place(scoring.measure(model, scoring.encode(tokenizer, ITEMS)))
    assert place["mean_p"] == pytest.approx(row["mean_p"], rel=1e-3)


def test_similarity_counts_letters_or_symbols():
    assert scoring.similarity(" lamp", " lump", symbols=False) == 0.75
    assert scoring.similarity("L AE M P", " L AH M P", symbols=True) == 0.75
    assert scoring.similarity("", " berat", symbols=False) == 0.0
