"""Floating-point operations of a token, and what devices can do."""

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptsft.data.tokenized import TokenizedData
from adaptsft.model.modules import head_dim, head_of, layer_configs

# dense bf16 peak, FLOP/s, from the vendors' data sheets; the first name that is in the device's
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a device (FLOP/s) by its name; None where it is not known."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)


def flops_per_token(model: PreTrainedModel, data: TokenizedData) -> float:
    """Forward and backward of a token, on average over the data.

    As in PaLM (arXiv:2204.02311, appendix B), without what is not computed: 6 per parameter that
    multiplies the token (an embedding only looks up, and the head sees target tokens only), 4 if it
    is frozen, which has no gradient of its own, and attention to the tokens before it.
    """
    head = head_of(model).weight
    looked_up = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)} | {head}
    others = [parameter for parameter in model.parameters() if parameter not in looked_up]
    tokens, lengths = float(data.lengths.sum()), data.lengths.astype(np.float64)
    products = sum(_products(parameter) for parameter in others)
    products += _products(head) * float(data.target_tokens.sum()) / tokens
    attention = _attention_flops(model.config.get_text_config())
    return products + attention * float((lengths**2).sum()) / tokens


def _products(weight: Tensor) -> float:
    return (6.0 if weight.requires_grad else 4.0) * weight.numel()


def _attention_flops(config: Any) -> float:
    """Per token attended to; causal: half of 12. Layers that do not say how many heads of which
    size they have count nothing."""
    layers = layer_configs(config)
    heads = [getattr(layer, "num_attention_heads", 0) if head_dim(layer) else 0 for layer in layers]
    return 6.0 * sum(count * head_dim(layer) for count, layer in zip(heads, layers, strict=True))
