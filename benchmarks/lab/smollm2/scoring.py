"""What a model has learned of a task with one right answer, by one forward over the right answers:
no sampling noise."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adaptsft.config.schema import DataConfig
from adaptsft.data.layout import Conversation
from adaptsft.data.template import Template
from benchmarks.lab.smollm2.tasks import Item, Task

BATCH = 64  # items in one forward
TRIES = 8
GENERATED = 128  # items whose greedy answer is compared letter by letter


class Encoded(NamedTuple):
    prompt: list[int]
    answer: list[int]  # with the end-of-text token


def encode(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[Encoded]:
    """The very ids of training."""
    template = Template(tokenizer, DataConfig(template="plain", prompt_template="{prompt}"))
    examples = []
    for item in items:
        turns = (("user", item.prompt), ("assistant", item.answer))
        messages: list[Any] = [{"role": role, "content": content} for role, content in turns]
        examples += template.examples(Conversation(messages, [0.0, 1.0]))
    found = []
    for ids, weights in template.encoder.encode(examples):
        begin = int((weights > 0).argmax())
        found.append(Encoded(ids[:begin].tolist(), ids[begin:].tolist()))
    return found


class Targets(NamedTuple):
    """All target tokens, [N] each, in order of the items."""

    item: Tensor  # int64, its index
    logp: Tensor  # fp32
    entropy: Tensor  # fp32, nats
    collision: Tensor  # fp32, sum of p_i^2
    first: Tensor  # bool, is the model's first choice


@torch.no_grad()
def measure(model: Any, encoded: Sequence[Encoded]) -> Targets:
    """Logits are fp32, the rest as the model is."""
    parts = [
        _measure(model, encoded[begin : begin + BATCH], begin)
        for begin in range(0, len(encoded), BATCH)
    ]
    return Targets(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def _measure(model: Any, batch: Sequence[Encoded], begin: int) -> Targets:
    length = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.int64)
    target = torch.zeros(len(batch), length, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(batch):
        # padded on the right, which no causal model can see from the left
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        target[row, len(prompt) : len(prompt) + len(answer)] = True
    ids, target = ids.to(model.device), target[:, 1:].to(model.device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logp = model.get_output_embeddings()(hidden[target]).float().log_softmax(-1)
    p, answers = logp.exp(), ids[:, 1:][target]
    return Targets(
        target.nonzero()[:, 0] + begin,
        logp.gather(1, answers[:, None])[:, 0],
        -(p * logp).sum(-1),
        p.square().sum(-1),
        logp.argmax(-1) == answers,
    )


def score(
    model: Any, tokenizer: PreTrainedTokenizerBase, task: Task, items: Sequence[Item]
) -> dict[str, float]:
    """greedy: share of items whose every token, the end included, is the model's first choice.
    sampled: mean probability of the whole right answer, which is the expected exact match at
    temperature 1. pass_at_8: of at least one in eight samples. entropy: mean over target tokens,
    nats, along the right answer. token: share of target tokens that are the model's first choice.
    similarity, of a graded task: mean normalised Levenshtein similarity of greedy answers. And the
    place on the continuum (`place`)."""
    encoded = encode(tokenizer, items)
    found = measure(model, encoded)
    right = torch.zeros(len(items)).index_add_(0, found.item, found.logp).exp()
    missed = torch.zeros(len(items)).index_add_(0, found.item, 1.0 - found.first.float())
    scores = {
        "greedy": float((missed == 0).float().mean()),
        "sampled": float(right.mean()),
        "pass_at_8": float((1.0 - (1.0 - right) ** TRIES).mean()),
        "entropy": float(found.entropy.mean()),
        **place(found),
    }
    if task.graded:
        count = min(len(items), GENERATED)
        longest = max(len(answer) for _, answer in encoded[:count])
        texts = list(_greedy(model, tokenizer, encoded[:count], longest))
        scores["similarity"] = statistics.mean(
            similarity(text, item.answer, task.symbols)
            for text, item in zip(texts, items, strict=False)
        )
    return scores


def place(found: Targets) -> dict[str, float]:
    """Of the targets: mean_p (Eq. 5 of arXiv:2510.00526, divided by the number of tokens), the
    share with p < .2, k = mean p / mean sum p_i^2, and the share that are the first choice."""
    p = found.logp.exp()
    return {
        "mean_p": float(p.mean()),
        "share_below_0.2": float((p < 0.2).float().mean()),
        "k": float(p.mean() / found.collision.mean()),
        "top1": float(found.first.float().mean()),
    }


def similarity(text: str, answer: str, symbols: bool) -> float:
    """1 - edit distance / the longer length, of letters or of symbols with spaces between."""
    pair = (text.split(), answer.split()) if symbols else (text.strip(), answer.strip())
    return Levenshtein.normalized_similarity(*pair)


@torch.no_grad()
def _greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Encoded], tokens: int
) -> Iterator[str]:
    for begin in range(0, len(encoded), BATCH):
        batch = encoded[begin : begin + BATCH]
        longest = max(len(prompt) for prompt, _ in batch)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in batch])
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch]
        )
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        yield from tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
