"""Decoding a batch with any causal language model of transformers, sharded or whole.

An answer does not depend on its batch. Not `model.generate`: that draws from the global generator,
so that an answer depends on its neighbours; takes repetition penalties and top-k from files beside
the weights; and keeps finished rows to the end. The same loop evaluates a model that FSDP has
sharded, in lockstep on all ranks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache

from adaptsft.errors import ConfigError
from adaptsft.evals.protocol import Output, Sampling


@torch.no_grad()
def decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    params: Sampling,
    ends: set[int],
    *,
    context: int,
    lockstep: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> list[Output]:
    """Continue each prompt (token ids) until a token of `ends`, a stop string or a limit.

    The limits are max_tokens and the `context` window. Token t of a request is where its own
    uniform number u_t, from its own seed, falls in the cumulative distribution: the batch changes
    it by no more than the rounding of its logits. At temperature 1 the entropy of the distributions
    is recorded: elsewhere the answers are not the model's own, and it would be of other text. With
    `lockstep` all ranks run as many forwards as the slowest; each must bring a prompt. Raises
    ConfigError where the model gives NaN (not in lockstep, where the other ranks would wait
    forever).
    """
    limits = [max(min(params.max_tokens, context - len(prompt)), 0) for prompt in prompts]
    uniforms = torch.stack([_uniforms(seed, params.max_tokens) for seed in seeds]).to(model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    measured = params.temperature == 1
    entropies: list[list[float]] = [[] for _ in prompts]
    reasons = ["prompt_too_long" if limit == 0 else "" for limit in limits]

    # which prompt each row of the batch continues
    rows = [i for i, limit in enumerate(limits) if limit > 0]
    if not rows and lockstep:
        rows = [0]
    if not rows:
        return [Output("", reason, 0, None, 0 if measured else None) for reason in reasons]
    width = max(len(prompts[i]) for i in rows) if limits[rows[0]] else 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, i in enumerate(rows):
        kept = prompts[i][:width]
        ids[row, width - len(kept) :], mask[row, width - len(kept) :] = torch.tensor(kept), 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)

    for step in range(params.max_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if step == 0 and not lockstep and bool(logits.isnan().any()):
            raise ConfigError(
                f"{model.name_or_path}: the model gives logits that are NaN; are its weights "
                "finite?"
            )
        tokens = choose(logits, params, uniforms[rows, step])
        found = entropy(logits).tolist() if measured else []
        for row, token in enumerate(tokens.tolist()):
            i = rows[row]
            if reasons[i]:
                continue
            if measured:
                entropies[i].append(found[row])
            if token in ends:
                reasons[i] = "stop"
                continue
            answers[i].append(token)
            if params.stop and _stopped(tokenizer, answers[i], params.stop):
                reasons[i] = "stop"
            elif len(answers[i]) == limits[i]:
                reasons[i] = "length"
        on_step()
        alive = [row for row, i in enumerate(rows) if not reasons[i]]
        if not _anyone(bool(alive), model.device, lockstep):
            break
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        # finished rows cost as much as others; they are dropped a few times in all
        if 0 < len(alive) <= len(rows) // 2:
            index = torch.tensor(alive, device=model.device)
            cache.batch_select_indices(index)
            ids, positions, mask = ids[index], positions[index], mask[index]
            rows = [rows[row] for row in alive]
    for i, answer in enumerate(answers):
        text = tokenizer.decode(answer, skip_special_tokens=True)
        cut = min((at for stop in params.stop if (at := text.find(stop)) >= 0), default=len(text))
        texts[i] = text[:cut]
    means = [math.fsum(drawn) / len(drawn) if drawn else None for drawn in entropies]
    return [
        Output(
            texts[i],
            reasons[i] or "length",
            len(answer),
            means[i],
            len(entropies[i]) if measured else None,
        )
        for i, answer in enumerate(answers)
    ]


def entropy(logits: Tensor) -> Tensor:
    """Of each row's distribution at temperature 1, in nats. logits [rows, V] -> fp32 [rows]."""
    return torch.special.entr(logits.float().softmax(-1)).sum(-1)


def choose(logits: Tensor, params: Sampling, uniforms: Tensor) -> Tensor:
    """The next token of each row.

    logits [rows, V]; uniforms fp64 [rows] in [0, 1) -> int64 [rows].
    """
    if params.temperature == 0:
        return logits.argmax(-1)
    p = (logits.double() / params.temperature).softmax(-1)
    if params.top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        # the token that crosses top_p stays
        ordered[_running_sums(ordered) - ordered >= params.top_p] = 0.0
        p = torch.zeros_like(p).scatter(-1, index, ordered)
    cumulative = _running_sums(p)
    targets = (uniforms * cumulative[:, -1])[:, None]
    found = torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
    return found.clamp(max=p.shape[-1] - 1)


def _running_sums(p: Tensor) -> Tensor:
    """Along the last dimension; on the host where only deterministic algorithms are allowed: CUDA
    has none for floats."""
    if p.is_cuda and torch.are_deterministic_algorithms_enabled():
        return p.cpu().cumsum(-1).to(p.device)
    return p.cumsum(-1)


def _uniforms(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, dtype=torch.float64, generator=generator)


def _stopped(tokenizer: Any, answer: list[int], stops: tuple[str, ...]) -> bool:
    """Whether a stop string has just been completed.

    A token has at least one byte, so the tail holds it.
    """
    longest = max(len(stop.encode()) for stop in stops)
    tail = tokenizer.decode(answer[-(longest + 4) :], skip_special_tokens=True)
    return any(stop in tail for stop in stops)


def _anyone(mine: bool, device: torch.device, lockstep: bool) -> bool:
    if not lockstep:
        return mine
    flag = torch.tensor(float(mine), device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)
