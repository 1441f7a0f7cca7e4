"""The check before the first step: what will be trained is the model that transformers runs.

A model may leave the attention seam aside (its own attention, recurrent or convolution layers) and
mix the documents of a pack, or see later tokens, without a word. So some documents of the first
batch go through `token_loss`, as they are and with tokens changed, and one by one through
transformers' own forward.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adaptsft.data.collator import Batch, targets_of_parts
from adaptsft.data.documents import Documents
from adaptsft.distributed.ranks import raise_on_all_ranks, world_size
from adaptsft.errors import ConfigError
from adaptsft.model.attention import EAGER, attending, callers
from adaptsft.model.experts import experts_by_token, experts_implementation
from adaptsft.model.fsdp import ShardedModel, evaluating
from adaptsft.model.hooks import mixers_in_training, outputs_of, without_new_hooks
from adaptsft.model.mixers import mixers
from adaptsft.model.modules import blocks, class_name, embedding_of, layer_configs
from adaptsft.model.router import recording
from adaptsft.model.supported import named_errors
from adaptsft.objectives.build import NLL

DOCUMENTS = 3  # of every rank that are looked at
TOKENS = 256  # of each, at most; more where a small attention window would not be left
LARGEST_WINDOW = 512
# nats: of log p where tokens that may not be seen have changed (shapes are the same, and so is all
# arithmetic), and in the mean over a document from transformers' own forward
UNSEEN = 1e-6
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
# relative, of the routers' loss, which transformers rounds to the dtype of the model
ROUTER_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
# a mixture of experts in bf16 may differ more, by so many times what one rounding of its embeddings
# does to it: near ties between experts turn the other way, and a token moves by a nat or more
NOISE = 4.0


@torch.no_grad()
def check_first_batch(model: ShardedModel, batch: Batch, packing: bool) -> None:
    """Compare log p of the tokens of a few documents of `batch` by `token_loss`, packed if
    `packing` and padded if not, with what transformers' own forward gives for each document alone.

    Raises ConfigError where a decoder layer leaves the attention seam aside and documents are
    packed, where log p depends on another document or on a later token, or where it is not that of
    transformers, where an adapter would not be trained, and for a model that cannot be called so;
    says whether data.packing=false would be exact. All ranks call it together. Nothing that
    training depends on changes.
    """
    documents, context = _documents(model, batch), model.context
    packing = packing or context is not None  # the parts of batches are parts of one row
    # without dropout, so that both ways see the same hidden states; not worth compiling for
    with evaluating(model), torch.compiler.set_stance("force_eager"):
        problem = _problem(model, documents, packing)
        if problem and context is not None:
            problem += (
                f". train.context_parallel={context.size} needs document attention in every layer, "
                "and gives ranks parts of one row of documents: set it to 1"
            )
        elif problem and packing:
            padded = _problem(model, documents, False)
            problem += (
                f". Nor does data.packing=false train it exactly: {padded}; {EAGER}"
                if padded
                else ". Set data.packing=false, with which log p is that of transformers"
            )
    if problem:
        raise ConfigError(f"{_name(model)}: {problem}")


def _problem(model: ShardedModel, documents: list[Tensor], packed: bool) -> str | None:
    """What is wrong with the model, on any rank; None if nothing."""
    rows = [documents[:2], documents[2:]] if packed else [[document] for document in documents]
    parts = 1 if model.context is None else model.context.size
    if parts > 1:  # rows that are divided are one, and documents are to cross from rank to rank
        rows = [documents]
    batch = batch_of(rows, model.needs_buckets, parts).to(documents[0].device)
    with named_errors(model), callers() as calls:
        logp = _logp(model, batch)
    first = [range(len(documents[0])), *([] for _ in documents[1:])]
    rest = _layers_without_seam(model, calls) if packed else []
    with named_errors(model), experts_by_token(model):
        with outputs_of(rest) as outputs:
            same = _logp(model, batch) if rest or experts_implementation(model) else logp
        with outputs_of(rest) as changed:
            other = _logp(model, _changed(batch, first))
        later = _logp(model, _changed(batch, [[len(document) - 1] for document in documents]))
    sequences = [batch.sequence == number for number in range(len(documents))]

    def worst(difference: Tensor) -> float:
        return max(float(difference[of].abs().mean()) for of in sequences)

    tolerance = TOLERANCE[model.compute_dtype]
    with named_errors(model), attending(model, "eager"):
        own = _own_logps(model, documents)
        if experts_implementation(model) and model.compute_dtype == torch.bfloat16:
            with _embeddings_rounded_otherwise(model):
                tolerance = max(tolerance, NOISE * worst(_own_logps(model, documents) - own))
    error = worst(logp - own)
    if any(mixers(layer) for layer in blocks(model)):
        with named_errors(model), mixers_in_training(model) as passed_over:
            error = max(error, worst(_logp(model, batch) - own))
        raise_on_all_ranks(lambda: _check_adapters(model, passed_over))
    raise_on_all_ranks(lambda: _check_finite(model, error))
    problems = [
        _router_problem(model, documents[0]),
        _mixing_problem(model, len(documents[0]), outputs, changed),
        _window_problem(model, calls) if packed else None,
        _seen("another document of the batch", (other - same)[~sequences[0]]),
        _seen("later tokens of a document", later - same),
        "log p differs from that of transformers' own forward of each document alone by "
        f"{error:.3g} nats in the mean, more than {tolerance:g} (its attention, or not a linear "
        "head with an optional bias, scale and soft cap)"
        if error > tolerance
        else None,
    ]
    everyone: list[str | None] = [None] * world_size()
    dist.all_gather_object(everyone, next(filter(None, problems), None))
    return next(filter(None, everyone), None)


def _check_finite(model: ShardedModel, error: float) -> None:
    if math.isnan(error):
        raise ConfigError(
            f"{_name(model)}: it gives log p = NaN on the first batch; are its weights finite?"
        )


def _check_adapters(model: ShardedModel, passed_over: list[str]) -> None:
    if passed_over:
        names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in passed_over))
        raise ConfigError(
            f"{_name(model)}: model.lora: in training its recurrent layers take the weights of "
            f"{names} without calling these layers, whose adapters would not be trained: leave "
            "them out of model.lora.target_modules, or uninstall the kernels (mamba-ssm)"
        )


def _layers_without_seam(
    model: ShardedModel, calls: list[tuple[nn.Module, int | None]]
) -> list[nn.Module]:
    """The decoder layers that neither attend by document nor have a mixer that runs by document:
    either they treat each token by itself (Nemotron-H), or they mix what they must not."""
    calling = {id(module) for module, _ in calls}
    return [
        layer
        for layer in blocks(model)
        if not mixers(layer) and not any(id(part) in calling for part in layer.modules())
    ]


def _mixing_problem(
    model: ShardedModel, first: int, outputs: list[Tensor], changed: list[Tensor]
) -> str | None:
    """Whether layers mix tokens without knowing where documents begin: `outputs` of them, and what
    became of these when the `first` tokens of the batch, a document, were others. Nearer than log
    p, which a state that fades may hardly move."""
    mixing = 0
    for before, after in zip(outputs, changed, strict=True):
        own = first if model.context is None else first - model.context.rank * before.shape[1]
        moved = (after - before).flatten(0, 1)[max(own, 0) :].abs()
        mixing += bool((moved > UNSEEN * before.abs().max()).any())
    return (
        f"{mixing} of its {len(blocks(model))} decoder layers mix the tokens of a pack without "
        "regard to where documents begin (an attention of their own, recurrent or convolution "
        "layers)"
        if mixing
        else None
    )


def _window_problem(model: ShardedModel, calls: list[tuple[nn.Module, int | None]]) -> str | None:
    """Whether layers attend without the window of the configuration, which a short document would
    not show."""
    window, kinds = _window(model), getattr(model.config.get_text_config(), "layer_types", None)
    windowed = window and (kinds is None or "sliding_attention" in kinds)
    if windowed and all(given is None for _, given in calls):
        return f"no layer gives its attention the window of the configuration ({window})"
    return None


def _router_problem(model: ShardedModel, document: Tensor) -> str | None:
    """Whether the load-balancing loss of a document is not that of transformers."""
    routers, ids = model.routers, document[None]
    if not routers.coefficient:
        return None
    unhooked, attention = without_new_hooks(model), attending(model, "eager")
    with named_errors(model), unhooked, attention, recording(routers, ids):
        theirs = model(input_ids=ids, use_cache=False, output_router_logits=True).aux_loss
        error = float((routers.loss_of_recorded(ids.numel()) / theirs - 1).abs())
    if error < ROUTER_TOLERANCE[model.compute_dtype]:
        return None
    return (
        f"the load-balancing loss of its routers differs from that of transformers by {error:.3g} "
        "of it; set train.router_aux_loss=0"
    )


def _seen(what: str, difference: Tensor) -> str | None:
    largest = float(difference.abs().max())
    if largest > UNSEEN:
        return f"tokens see {what}: log p moves by up to {largest:.3g} nats when these change"
    return None


def _window(model: ShardedModel) -> int:
    """The smallest attention window of its layers, in tokens; 0 if there is none."""
    layers = layer_configs(model.config.get_text_config())
    return min((w for layer in layers if (w := getattr(layer, "sliding_window", None))), default=0)


def _documents(model: ShardedModel, batch: Batch) -> list[Tensor]:
    """The first documents of the batch with something to learn, cut to their first tokens; parts of
    them, or of made-up tokens, where there are too few. int64 [length >= 2] each."""
    ids, window = batch.ids.flatten(), _window(model)
    limit = window + 32 if TOKENS <= window <= LARGEST_WINDOW else TOKENS
    bounds = batch.documents.cu_seqlens.tolist()
    learned = torch.bucketize(batch.target_idx, batch.documents.cu_seqlens[1:], right=True)
    found = [ids[bounds[i] : bounds[i + 1]][:limit] for i in learned.unique()[:DOCUMENTS].tolist()]
    vocabulary = model.config.get_text_config().vocab_size
    found = found or [torch.arange(16, device=ids.device) % vocabulary]
    while len(found) < DOCUMENTS:
        found.append(found[-1][: max(2, len(found[-1]) // 2)])
    return found


def batch_of(rows: list[list[Tensor]], with_buckets: bool, parts: int = 1) -> Batch:
    """Rows of documents, padded at the end to a multiple of `parts`; every token but the first of a
    document is a target."""
    length = 8 + max(sum(map(len, row)) for row in rows)
    length += -length % parts
    tokens: list[Tensor] = []
    places: list[Tensor] = []  # of the hidden states that predict a target
    for number, row in enumerate(rows):
        begin = number * length
        for document in row:
            tokens.append(document.cpu())
            places.append(torch.arange(begin, begin + len(document) - 1))
            begin += len(document)
        tokens.append(torch.zeros((number + 1) * length - begin, dtype=torch.int64))
    ids, bounds = torch.cat(tokens), [0, *itertools.accumulate(map(len, tokens))]
    target_idx, counts = torch.cat(places), torch.tensor([len(place) for place in places])
    real = torch.arange(length) < torch.tensor([[sum(map(len, row))] for row in rows])
    return Batch(
        ids=ids.view(len(rows), length),
        positions=torch.cat([torch.arange(len(part)) for part in tokens]).view(len(rows), length),
        documents=Documents.build(torch.tensor(bounds, dtype=torch.int32), with_buckets),
        target_idx=target_idx,
        targets=ids[target_idx + 1],
        source=torch.zeros_like(target_idx),
        sequence=torch.arange(len(places)).repeat_interleave(counts),
        sequence_lengths=counts,
        sequence_source=torch.zeros_like(counts),
        real=real,
        targets_of_parts=targets_of_parts(target_idx, len(ids), parts),
    )


def _changed(batch: Batch, places: list[Any]) -> Batch:
    """The batch with other tokens in these places of each document; the targets stay. They are
    exchanged for other tokens of the batch: any id might be one that stands for an image."""
    ids, known = batch.ids.flatten().clone(), batch.ids.unique()
    starts = [int(batch.target_idx[batch.sequence == i][0]) for i in range(len(places))]
    index = [start + place for start, of in zip(starts, places, strict=True) for place in of]
    ids[index] = known.roll(1)[torch.searchsorted(known, ids[index])]
    return dataclasses.replace(batch, ids=ids.view_as(batch.ids))


def _logp(model: ShardedModel, batch: Batch) -> Tensor:
    return model.token_loss(batch, NLL, None, 1.0)[1].logp


def _own_logps(model: ShardedModel, documents: list[Tensor]) -> Tensor:
    return torch.cat([_own_logp(model, document) for document in documents])


@contextmanager
def _embeddings_rounded_otherwise(model: ShardedModel) -> Iterator[None]:
    """Every component of every embedding is moved by one unit in the last place of bf16."""

    def moved(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        step = torch.full_like(output, 2.0**-8)
        step[..., ::2] *= -1
        return output + output * step

    hook = embedding_of(model).register_forward_hook(moved)
    try:
        yield
    finally:
        hook.remove()


def _own_logp(model: ShardedModel, document: Tensor) -> Tensor:
    """fp32 [length - 1], by the model's own forward, without packing or any of our arguments."""
    logits = model(input_ids=document[None], use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, document[1:, None]).squeeze(1)


def _name(model: ShardedModel) -> str:
    return f"{model.name_or_path} ({class_name(model)})"
