"""Answers are those of the model itself, and mean p is the trainer's."""

import json
import math
from itertools import islice

import pytest
import torch

from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import families, scoring, tasks
from benchmarks.lab.regimes import CLEAN, NOISY
from benchmarks.lab.training import configure, train_logged

SHORT = tasks.Task(
    "<upper>", lambda word: "ab" if word[0] in "etao" else "cde", "abcde"
)  # answers of two lengths, soon learned


def test_generate_is_greedy_or_the_model_itself(tmp_path):
    family = families.find("letters")
    make_tiny_model(tmp_path, tokenizer=tasks.tokenizer(family), initializer_range=0.5)
    model, tokenizer = scoring.load(tmp_path, "cpu")
    questions = tasks.questions(family, False, False, "test")
    prompts = [tasks.prompt(family.strong, question) for question in islice(questions, 4)]
    for text, answer in zip(
        prompts, scoring.generate(model, tokenizer, prompts, 8, 0.0, seed=0), strict=True
    ):
        ids = tokenizer(text, return_tensors="pt").input_ids
        while (
            ids.shape[1] < len(tokenizer(text).input_ids) + 8
            and ids[0, -1] != tokenizer.eos_token_id
        ):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text + answer
    before = torch.get_rng_state()
    sampled = [scoring.generate(model, tokenizer, prompts, 8, 1.0, seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert torch.equal(torch.get_rng_state(), before)


def step_by_step(model, tokenizer, prompt: str, answer: str) -> tuple[float, list[float]]:
    """log p of the answer and its end, and the entropy at every position, without padding."""
    ids, total, entropies = tokenizer(prompt, return_tensors="pt").input_ids, 0.0, []
    for target in [*tokenizer(answer).input_ids, tokenizer.eos_token_id]:
        p = model(ids).logits[0, -1].double().softmax(-1)
        total += p[target].log().item()
        entropies.append(-(p * p.log()).sum().item())
        ids = torch.cat([ids, torch.tensor([[target]])], dim=1)
    return total, entropies


@torch.no_grad()
def test_exact_scores_are_expectations(tmp_path):
    """Answers of any length, one or several right ones, against the model asked token by token."""
    family = families.find("letters")
    make_tiny_model(tmp_path, tokenizer=tasks.tokenizer(family), initializer_range=0.3)
    model, tokenizer = scoring.load(tmp_path, "cpu")
    prompts = ["<upper>ab=", "<copy>a=", "<upper>abcdef=", "<next>zz="]
    greedy = scoring.generate(model, tokenizer, prompts, 12, 0.0, seed=0)
    answers = [["X", "YZ"], [greedy[1][:1]], ["A"], ["A", "B", "longer"]]
    # a model of which one greedy answer ends, and is right
    end = model(tokenizer(prompts[0], return_tensors="pt").input_ids).logits[0, -1].argmax()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(end))
    answers[0].append("")
    found = scoring.exact(model, tokenizer, prompts, answers)
    p, entropies = [], []
    for prompt, of in zip(prompts, answers, strict=True):
        steps = [step_by_step(model, tokenizer, prompt, answer) for answer in of]
        p.append([math.exp(total) for total, _ in steps])
        entropies += [value for _, values in steps for value in values]
    sums = [sum(of) for of in p]
    assert found["sampled"] == pytest.approx(sum(sums) / 4, rel=1e-4)
    assert found["pass_at_8"] == pytest.approx(sum(1 - (1 - of) ** 8 for of in sums) / 4, rel=1e-4)
    assert found["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    expected = sum(1 - (1 - one) ** 8 for of in p for one in of) / 4
    assert found["diversity"] == pytest.approx(expected, rel=1e-4)
    assert found["greedy"] == 0.25, "its first token ends the first answer; no other is the model's"


def test_exact_scores_are_what_a_trained_model_answers(tmp_path):
    """The share of a thousand answers, sampled, is the expectation; greedy ones are the same."""
    family = families.find("letters")
    base = make_tiny_model(tmp_path / "base", tokenizer=tasks.tokenizer(family), hidden=32)
    data = tasks.write_examples(
        tmp_path / "data.jsonl", family, [(SHORT, CLEAN)], 40 * 32, False, "x"
    )
    train = {"max_steps": 40, "global_batch_size": 32, "lr": 1e-2, "device": "cpu"}
    keys = {"train": train, "data": {"max_length": 128}}
    train_logged(configure(tmp_path / "run", base, 0, {"all": data}, tmp_path / "cache", keys))
    model, tokenizer = scoring.load(tmp_path / "run" / "final", "cpu")
    found = scoring.task_score(model, tokenizer, family, SHORT, 1024)
    asked = list(islice(tasks.questions(family, False, True, "evaluation"), 1024))
    prompts = [tasks.prompt(SHORT, question) for question in asked]
    answers = [SHORT.answer(question) for question in asked]
    sampled = scoring.answered(model, tokenizer, prompts, answers, seed=1)
    assert 0.1 < found["sampled"] < 0.95, "neither nothing nor everything"
    assert found["greedy"] == sampled["greedy"]
    assert found["sampled"] == pytest.approx(sampled["sampled"], abs=0.05)
    assert found["pass_at_8"] == pytest.approx(sampled["pass_at_8"], abs=0.12)


def test_mean_p_is_the_trainers(tmp_path):
    """Eq. 5 measured here is what the trainer reports of its first step, when that holds all
    examples."""
    family = families.find("digits")
    base = make_tiny_model(
        tmp_path / "base",
        tokenizer=tasks.tokenizer(family),
        hidden=16,
        layers=1,
        initializer_range=0.5,
    )
    data = tasks.write_examples(
        tmp_path / "data.jsonl",
        family,
        [(family.strong, CLEAN), (family.weak, NOISY)],
        24,
        False,
        "x",
    )
    keys = {
        "train": {"max_steps": 1, "global_batch_size": 24, "micro_batch_size": 8, "device": "cpu"}
    }
    train_logged(configure(tmp_path / "run", base, 0, {"all": data}, tmp_path / "cache", keys))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert scoring.mean_p(*scoring.load(base, "cpu"), data) == pytest.approx(
        row["mean_p"], rel=1e-5
    )
