"""What a model has learned of a task, on held-out questions: exact match greedily, at temperature 1
and in any of 8 samples; entropy; and the mean probability of given targets.

Where the answers that are right can be listed, all of it is computed from one forward pass over
them, without sampling noise; where they are too many, the model answers.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks.lab.regimes import Regime
from benchmarks.lab.tasks import (
    Answer,
    Family,
    Task,
    longest,
    prompt,
    questions,
    right,
    right_strings,
)

PROMPTS = 1024  # of one call to generate, or one forward pass
SAMPLES = 8  # of one question
EXAMPLES = 512  # training examples whose mean p is measured


def score(
    model: Any, tokenizer: Any, family: Family, regime: Regime, items: int, seed: int
) -> dict[str, Any]:
    """{role: task_score} of the parts of a regime."""
    return {
        part.role: task_score(
            model, tokenizer, family, family.role(part.role), items, seed, regime.zipf
        )
        for part in regime.parts
    }


def task_score(
    model: Any,
    tokenizer: Any,
    family: Family,
    task: Task,
    items: int,
    seed: int = 0,
    zipf: bool = False,
) -> dict[str, Any]:
    """{greedy, sampled, pass_at_8, entropy, examples, diversity?} over `items` held-out questions,
    the same for every model.

    greedy, sampled: share that is answered rightly, greedily and at temperature 1. pass_at_8: with
    any of 8 samples. entropy: nats per target position along the right answers, end of text
    included. diversity: mean number of distinct right answers among 8 samples, where several are
    right. `seed` is that of the sampling, and of `examples`: what it answers to the first question.
    """
    asked = list(itertools.islice(questions(family, zipf, True, "evaluation"), items))
    answers = [task.answer(question) for question in asked]
    prompts = [prompt(task, question) for question in asked]
    listed = [strings for answer in answers if (strings := right_strings(answer)) is not None]
    if len(listed) == len(answers):
        found = exact(model, tokenizer, prompts, listed)
    else:
        found = answered(model, tokenizer, prompts, answers, seed)
    length = max(map(longest, answers)) + 1
    found["examples"] = {
        mode: prompts[0] + generate(model, tokenizer, prompts[:1], length, temperature, seed)[0]
        for mode, temperature in (("greedy", 0.0), ("sampled", 1.0))
    }
    return found


def exact(
    model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The scores as expectations, where `answers` are all that is right of each prompt."""
    rows = [(number, text) for number, of in enumerate(answers) for text in of]
    owner = torch.tensor([number for number, _ in rows])
    texts = [prompts[number] for number, _ in rows], [text for _, text in rows]
    forced = [
        Forced(model, tokenizer, *(part[begin : begin + PROMPTS] for part in texts))
        for begin in range(0, len(rows), PROMPTS)
    ]
    p = torch.cat([one.answer_p() for one in forced])
    first = torch.cat([one.all_first() for one in forced])
    positions = sum(int(one.mask.sum()) for one in forced)
    zeros = torch.zeros(len(prompts), dtype=torch.float64)
    # an answer is right in one way only: probabilities of different ones add up
    of_prompt = zeros.index_add(0, owner, p).clamp(0, 1)
    found = {
        "greedy": float((zeros.index_add(0, owner, first.double()) > 0).double().mean()),
        "sampled": float(of_prompt.mean()),
        f"pass_at_{SAMPLES}": float(any_of(of_prompt).mean()),
        "entropy": float(sum(one.entropy.sum() for one in forced) / positions),
    }
    if len(rows) > len(prompts):
        found["diversity"] = float(any_of(p).sum() / len(prompts))
    return found


def any_of(p: Tensor) -> Tensor:
    """Probability that something of probability p comes in any of SAMPLES samples."""
    return 1 - (1 - p) ** SAMPLES


def answered(
    model: Any, tokenizer: Any, prompts: list[str], answers: list[Answer], seed: int
) -> dict[str, Any]:
    """The scores as shares of what the model answers; those of 8 samples from some of the
    questions, and the entropy along one right answer of each."""
    length, found = max(map(longest, answers)) + 1, {}
    for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        given = generate(model, tokenizer, prompts, length, temperature, seed)
        correct = [right(answer, text) for answer, text in zip(answers, given, strict=True)]
        found[mode] = sum(correct) / len(prompts)
    few = min(len(prompts), PROMPTS // SAMPLES)
    repeated = [text for text in prompts[:few] for _ in range(SAMPLES)]
    given = generate(model, tokenizer, repeated, length, 1.0, seed)
    distinct = [
        {text for text in given[i * SAMPLES : (i + 1) * SAMPLES] if right(answers[i], text)}
        for i in range(few)
    ]
    found[f"pass_at_{SAMPLES}"] = sum(map(bool, distinct)) / few
    along = [(right_strings(a) or ["".join(choices[0] for choices in a)])[0] for a in answers[:few]]
    forced = Forced(model, tokenizer, prompts[:few], along)
    found["entropy"] = float(forced.entropy.sum() / forced.mask.sum())
    found["diversity"] = sum(map(len, distinct)) / few
    return found


class Forced:
    """What a model says of given answers, each with its end of text: [rows, positions], 0 where
    `mask` is False. logp: log p of the target; first: it is the likeliest; entropy in nats."""

    @torch.no_grad()
    def __init__(
        self, model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]
    ) -> None:
        texts = [a + b + tokenizer.eos_token for a, b in zip(prompts, answers, strict=True)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        ids, seen = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=ids.to(model.device), attention_mask=seen.to(model.device)).logits[
            :, :-1
        ]
        log_p = logits.float().log_softmax(-1).cpu()
        targets = ids[:, 1:]
        begins = torch.tensor([len(of) for of in tokenizer(list(prompts))["input_ids"]])
        place = torch.arange(1, ids.shape[1])
        self.mask = (place >= begins[:, None]) & (place < seen.sum(1)[:, None])
        self.logp = log_p.gather(-1, targets[..., None]).squeeze(-1).where(self.mask, 0.0)
        self.first = (log_p.argmax(-1) == targets) & self.mask
        self.entropy = -(log_p.exp() * log_p).sum(-1).where(self.mask, 0.0)

    def answer_p(self) -> Tensor:
        """Probability of each row's answer."""
        return self.logp.double().sum(1).exp()

    def all_first(self) -> Tensor:
        """Whether the greedy answer is the row's."""
        return (self.first | ~self.mask).all(1)


def load(folder: Path, device: str) -> tuple[Any, Any]:
    """(model, tokenizer); `device` is train.device."""
    logging.disable_progress_bar()
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(folder).to(
        place
    ).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """An answer to each prompt; temperature 0 is greedy, 1 samples from the model as it is."""
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature > 0
        else {"do_sample": False}
    )
    texts: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for begin in range(0, len(prompts), PROMPTS):
            inputs = tokenizer(
                prompts[begin : begin + PROMPTS],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                return_token_type_ids=False,
            ).to(model.device)
            output = model.generate(**inputs, **sampling, max_new_tokens=new_tokens)
            texts += tokenizer.batch_decode(
                output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
    return texts


def mean_p(model: Any, tokenizer: Any, data: Path) -> float:
    """Mean probability of the targets of the first EXAMPLES training examples, noise and
    end-of-text included: Eq. 5 of arXiv:2510.00526, divided by the number of tokens. Before
    fine-tuning it is the place on the continuum."""
    with data.open() as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, EXAMPLES)]
    texts = ([row[key] for row in rows] for key in ("prompt", "completion"))
    forced = Forced(model, tokenizer, *texts)
    return float(forced.logp.exp().where(forced.mask, 0.0).sum() / forced.mask.sum())
