"""Weights of turns: a weighted mean of the loss, whatever the split, and nothing else."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.train import train
from tests.runs import small_config

TALKS = [
    [("user", "Two plus two?", None), ("assistant", "Five, surely.", 0.25)],
    [
        ("user", "Again.", None),
        ("assistant", "Four.", 1),
        ("user", "And one?", None),
        ("assistant", "Five it is then.", 3),
    ],
    [("user", "And two?", None), ("assistant", "Six.", None)],
    [
        ("user", "No?", None),
        ("assistant", "Not this.", 0),
        ("user", "", 0),
        ("assistant", "Yes.", 1),
    ],
]


def write(path: Path, scale: float = 1.0) -> None:
    with path.open("w") as file:
        for talk in TALKS:
            messages = [
                {"role": role, "content": content}
                | ({} if role == "user" else {"weight": scale * (1 if weight is None else weight)})
                for role, content, weight in talk
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


@pytest.fixture
def run(tmp_path, tiny_model):
    def of(name: str, **overrides):
        settings = {"train__max_steps": 1, "train__global_batch_size": 4, "train__lr": 0.0}
        config = small_config(tmp_path, tiny_model(), name, **settings | overrides)
        result = train(config)
        return result["loss"], result["grad_norm"], result["nll"]

    return of


def test_the_loss_is_a_weighted_mean(run, tmp_path, tiny_model):
    write(tmp_path / "data.jsonl")
    found = run("packed")
    assert run("padded", data__packing=False, train__micro_batch_size=2) == pytest.approx(
        found, 2e-6
    )
    assert run("accumulated", data__packing=False) == pytest.approx(found, rel=2e-6)

    model = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    total, weights, plain, count = 0.0, 0.0, 0.0, 0
    for talk in TALKS:
        messages = [{"role": role, "content": content} for role, content, _ in talk]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for i, (role, _, weight) in enumerate(talk):
            weight = 1 if weight is None else weight
            if role != "assistant" or weight == 0:
                continue
            start, end = (
                len(
                    tokenizer(
                        tokenizer.apply_chat_template(
                            messages[:upto], tokenize=False, add_generation_prompt=upto == i
                        )
                    ).input_ids
                )
                for upto in (i, i + 1)
            )
            end -= 1  # the line break after the turn's end
            nll = -sum(logp[place - 1, ids[place]] for place in range(start, end))
            total, weights = total + weight * nll, weights + weight * (end - start)
            plain, count = plain + float(nll.detach()), count + end - start
    loss = total / weights
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert found == pytest.approx((float(loss.detach()), float(norm), plain / count), rel=1e-5)


def test_only_the_ratios_of_weights_count(run, tmp_path):
    write(tmp_path / "data.jsonl")
    found = run("once")
    write(tmp_path / "data.jsonl", scale=8.0)
    assert run("scaled") == pytest.approx(found, rel=1e-6)


def test_weights_of_1_change_nothing(run, tmp_path):
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": text},
                ]
            }
        )
        for text in ("So.", "No.", "Now.", "Ah.")
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    found = run("bare")
    weighted = [line.replace('"assistant",', '"assistant", "weight": 1.0,') for line in lines]
    (tmp_path / "data.jsonl").write_text("\n".join(weighted))
    assert run("ones") == found
