"""What a model has learned: exact match on held-out questions, greedily and sampled at temperature
1; how many of several right answers it gives; and the mean probability of given targets."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks.lab.regimes import Regime
from benchmarks.lab.tasks import Family, prompt, questions, right

PROMPTS = 1024  # of one call to generate
SAMPLES = 8  # of one question, where several answers are right
EXAMPLES = 512  # training examples whose mean p is measured


def score(
    model: Any, tokenizer: Any, family: Family, regime: Regime, items: int, seed: int
) -> dict[str, Any]:
    """{role: {greedy, sampled, diversity?}} of the parts of a regime: shares of `items` held-out
    questions, the same for every model. `seed` is that of the sampling. `diversity` is the mean
    number of distinct right answers among SAMPLES, where several are right."""
    scores: dict[str, Any] = {}
    for part in regime.parts:
        task = family.role(part.role)
        asked = list(itertools.islice(questions(family, regime.zipf, True, "evaluation"), items))
        answers = [task.answer(question) for question in asked]
        prompts = [prompt(task, question) for question in asked]
        found = scores[part.role] = {}
        for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            given = generate(model, tokenizer, prompts, len(answers[0]) + 1, temperature, seed)
            found[mode] = (
                sum(right(answer, text) for answer, text in zip(answers, given, strict=True))
                / items
            )
            found.setdefault("examples", {})[mode] = prompts[0] + given[0]
        if any(len(choices) > 1 for choices in answers[0]):
            few = min(items, PROMPTS // SAMPLES)
            given = generate(
                model,
                tokenizer,
                [text for text in prompts[:few] for _ in range(SAMPLES)],
                len(answers[0]) + 1,
                1.0,
                seed,
            )
            of_each = [given[i * SAMPLES : (i + 1) * SAMPLES] for i in range(few)]
            correct = [
                {text for text in texts if right(answer, text)}
                for answer, texts in zip(answers, of_each, strict=False)
            ]
            found["diversity"] = sum(map(len, correct)) / few
    return scores


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


@torch.no_grad()
def mean_p(model: Any, tokenizer: Any, data: Path) -> float:
    """Mean probability of the targets of the first EXAMPLES training examples, noise and
    end-of-text included: Eq. 5 of arXiv:2510.00526, divided by the number of tokens. Before
    fine-tuning it is the place on the continuum."""
    with data.open() as lines:
        examples = [json.loads(line) for line in itertools.islice(lines, EXAMPLES)]
    batch = tokenizer(
        [example["prompt"] + example["completion"] + tokenizer.eos_token for example in examples],
        return_tensors="pt",
        padding=True,
    )
    batch = batch.to(model.device)
    ids = batch["input_ids"]
    logp = (
        model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    )
    p = logp.gather(-1, ids[:, 1:, None]).squeeze(-1).exp()
    prompts = torch.tensor(
        [len(tokenizer(example["prompt"])["input_ids"]) for example in examples], device=ids.device
    )
    ends = batch["attention_mask"].sum(1)
    place = torch.arange(1, ids.shape[1], device=ids.device)
    target = (place >= prompts[:, None]) & (place < ends[:, None])
    return float(p[target].mean())
