"""Recurrent and convolution layers in packs: each document is a row of its own.

Mamba, gated delta rules and short convolutions carry a state from token to token, and with it from
document to document. Such a mixer is a causal map of hidden states: of documents gathered into
rows of similar length, padded at the end, it computes what it computes of each document alone, by
whichever kernels transformers takes. Attention and the rest of the layer see the pack.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError
from adaptsft.model.modules import blocks, class_name


def mixers(layer: nn.Module) -> list[nn.Module]:
    """The modules of a decoder layer that mix tokens by a recurrence or a convolution: all of
    transformers' begin with a causal convolution. What this overlooks, or what is given no
    documents, `check_first_batch` refuses to pack."""
    return [m for m in layer.modules() if any(isinstance(c, nn.Conv1d) for c in m.children())]


def keep_documents_apart(model: PreTrainedModel) -> bool:
    """Have the mixers run on each document by itself wherever they are given `documents`, which
    must have buckets; returns whether there are any. Their parameters and names stay."""
    found = [mixer for layer in blocks(model) for mixer in mixers(layer)]
    for mixer in found:
        mixer.forward = functools.partial(_by_document, mixer.forward)
    return bool(found)


def leave_outside_graphs(model: PreTrainedModel) -> None:
    """Have torch.compile leave out the mixers: without kernels of their own they are loops over the
    tokens, which it would unroll, for many minutes and into errors of its own."""
    for layer in blocks(model):
        for mixer in mixers(layer):
            mixer.forward = torch.compiler.disable(mixer.forward)


def refuse_mixers(model: PreTrainedModel) -> None:
    """Raises ConfigError for a model that has any: a rank of train.context_parallel has a part of
    the tokens, and a recurrence would need the state after those before."""
    if any(mixers(layer) for layer in blocks(model)):
        raise ConfigError(
            f"train.context_parallel: {class_name(model)} has recurrent or convolution layers, "
            "which need all tokens of a document on one rank: set it to 1"
        )


@torch.compiler.disable
def _by_document(
    forward: Callable[..., Any], *args: Any, documents: Documents | None = None, **kwargs: Any
) -> Any:
    """The mixer's `forward`, of hidden states, the first argument, and others that have a value per
    token, [B, L, ...] as well; so have its results."""
    if documents is None:  # generation, and transformers' own forward
        return forward(*args, **kwargs)
    hidden: Tensor = next(iter((*args, *kwargs.values())))
    shape = hidden.shape[:2]

    def gathered(index: Tensor, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:2] != shape:
            return value
        return value.flatten(0, 1)[index]

    def scattered(*rows: Any) -> Any:
        if not isinstance(rows[0], Tensor):
            return rows[0]
        return torch.cat([row.flatten(0, 1) for row in rows])[documents.inverse].unflatten(0, shape)

    outputs = []
    for index in documents.buckets:
        of_rows, named = tree_map(functools.partial(gathered, index), (args, kwargs))
        outputs.append(forward(*of_rows, **named))
    return tree_map(scattered, *outputs)
