"""Floating-point operations of a token."""

from typing import Any, NamedTuple

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from adaptsft.data.tokenized import TokenizedData
from adaptsft.errors import ConfigError
from adaptsft.model.modules import blocks, class_name, head_dim, head_of, head_sizes, layer_configs

# of a configuration: how many experts each token is sent to
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")


class Operations(NamedTuple):
    """Of a token, on average over the data."""

    forward: float
    backward: float
    blocks: float  # of the forward pass, those of the decoder layers without their head

    @property
    def needed(self) -> float:
        """What MFU counts: nothing that is recomputed."""
        return self.forward + self.backward


def flops_per_token(model: PreTrainedModel, data: TokenizedData) -> float:
    """Forward and backward of a token, on average over the data."""
    return operations(model, data.lengths, data.target_tokens).needed


def operations(
    model: PreTrainedModel, lengths: np.ndarray, target_tokens: np.ndarray
) -> Operations:
    """`lengths`, `target_tokens`: int [documents], tokens and targets of each.

    As in PaLM (arXiv:2204.02311, appendix B), without what is not computed: 2 per parameter that
    multiplies the token (an embedding only looks up, the head sees target tokens only, and of a
    layer's experts a token sees some), twice that for the gradients of input and parameter, of
    which a frozen one has no gradient of its own, and attention to the tokens before it.
    """
    head, shares = head_of(model).weight, expert_shares(model)
    looked_up = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)} | {head}
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    shares |= dict.fromkeys(looked_up, 0.0) | {head: float(target_tokens.sum()) / tokens}
    attention = _attention_flops(model.config.get_text_config()) * squares / tokens
    forward, backward = attention, 2 * attention
    for parameter in model.parameters():
        products = 2.0 * parameter.numel() * shares.get(parameter, 1.0)
        forward += products
        backward += products * (2 if parameter.requires_grad else 1)
    in_blocks = {parameter for block in blocks(model) for parameter in block.parameters()}
    in_blocks -= looked_up
    products = sum(2.0 * p.numel() * shares.get(p, 1.0) for p in in_blocks)
    return Operations(forward, backward, products + attention)


def active_parameters(model: PreTrainedModel) -> float:
    """Those that a token meets: of the experts that it may be sent to, as many as it is sent to."""
    shares = expert_shares(model)
    return sum(p.numel() * shares.get(p, 1.0) for p in model.parameters())


def describe(parameters: int, active: float) -> str:
    text = f"{parameters / 1e6:,.2f} M parameters"
    return text if active == parameters else f"{text}, {active / 1e6:,.2f} M active"


def expert_shares(model: PreTrainedModel) -> dict[nn.Parameter, float]:
    """For every parameter of routed experts, the share of tokens that it multiplies; empty for a
    dense model. Experts that all tokens are sent to are none of them.

    Transformers stacks the experts of a layer: their matrices have three dimensions, of which the
    first is their number, in a module ...Experts beside its router. Raises ConfigError where it is
    not known how many see a token.
    """
    shares: dict[nn.Parameter, float] = {}
    for parent in model.modules():
        for module in parent.children():
            name, parameters = class_name(module), list(module.parameters())
            number = max((p.shape[0] for p in parameters if p.ndim == 3), default=0)
            # experts that all tokens are sent to may be stacked too; GraniteMoeShared is a model
            for_all = "Shared" in name and not hasattr(module, "num_experts")
            if number and "Experts" in name and not for_all:
                share = min(1.0, _per_token(parent, model.config) / number)
                biases = [p for p in parameters if p.shape[0] == number]
                own = [p for p in parameters if p.ndim == 3]
                shares |= dict.fromkeys([*own, *biases], share)
    return shares


def _per_token(parent: nn.Module, config: Any) -> int:
    """Experts that a token is sent to, by the router beside them, else by the configuration."""
    routers = (getattr(module, "top_k", None) for module in parent.modules())
    settings = config.get_text_config()
    named = (getattr(settings, name, None) for name in EXPERTS_PER_TOKEN)
    found = next((k for k in (*routers, *named) if isinstance(k, int)), None)
    if found is None:
        raise ConfigError(
            f"{class_name(parent)} has experts, and neither its router (top_k) nor config.json "
            f"says how many of them see a token: add num_experts_per_tok to config.json"
        )
    return found


def _attention_flops(config: Any) -> float:
    """Of the forward pass, per token attended to; causal: half of 2 for scores and for values.
    Layers that do not say how many heads of which size they have count nothing."""
    layers = layer_configs(config)
    heads = [getattr(layer, "num_attention_heads", 0) if head_dim(layer) else 0 for layer in layers]
    sizes = [sum(head_sizes(layer)) for layer in layers]
    return float(sum(count * size for count, size in zip(heads, sizes, strict=True)))
