"""Answers are those of the model itself, and mean p is the trainer's."""

import json
from itertools import islice

import pytest
import torch

from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import scoring, tasks
from benchmarks.lab.regimes import CLEAN, FAMILIES, NOISY
from benchmarks.lab.runs import configure, train_logged


def test_generate_is_greedy_or_the_model_itself(tmp_path):
    family = FAMILIES["letters"]
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


def test_mean_p_is_the_trainers(tmp_path):
    """Eq. 5 measured here is what the trainer reports of its first step, when that holds all
    examples."""
    family = FAMILIES["digits"]
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
