"""A Llama whose weights have a leading dimension: R models of one shape, in one forward."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig

from adaptsft.errors import ConfigError

Weights = dict[str, Tensor]  # transformers' names -> [R, …]


def stacked(state_dicts: Sequence[dict[str, Tensor]]) -> Weights:
    """The weights of several models as one, ready to be trained."""
    return {
        name: torch.stack([weights[name] for weights in state_dicts]).requires_grad_()
        for name in state_dicts[0]
    }


def take(weights: Weights, run: int) -> dict[str, Tensor]:
    """The weights of one of the models, as transformers loads them."""
    return {name: weight[run].detach().clone() for name, weight in weights.items()}


class StackedLlama:
    """The forward of transformers' LlamaForCausalLM, without biases, dropout and cache."""

    def __init__(self, config: LlamaConfig, length: int):
        """`length`: of the longest sequence."""
        self.layers, self.eps = config.num_hidden_layers, config.rms_norm_eps
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        size = config.head_dim
        turn = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angle = torch.arange(length)[:, None] * turn.repeat(2)
        self.cos, self.sin = angle.cos(), angle.sin()

    def hidden(self, weights: Weights, ids: Tensor) -> Tensor:
        """ids int64 [R, B, L], padded at the end -> [R, B * L, hidden]."""
        runs, batch, length = ids.shape
        table = weights["model.embed_tokens.weight"]
        offset = torch.arange(runs)[:, None, None] * table.shape[1]
        x = F.embedding(ids + offset, table.flatten(0, 1)).view(runs, batch * length, -1)
        for layer in range(self.layers):
            of = f"model.layers.{layer}."
            h = self._norm(x, weights[of + "input_layernorm.weight"])
            x = x + self._attention(h, weights, of + "self_attn.", batch)
            h = self._norm(x, weights[of + "post_attention_layernorm.weight"])
            gate = product(h, weights[of + "mlp.gate_proj.weight"])
            up = product(h, weights[of + "mlp.up_proj.weight"])
            x = x + product(F.silu(gate) * up, weights[of + "mlp.down_proj.weight"])
        return self._norm(x, weights["model.norm.weight"])

    def head(self, weights: Weights, hidden: Tensor) -> Tensor:
        """[R, n, hidden] -> logits [R, n, V]."""
        return product(hidden, weights["lm_head.weight"])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * weight[:, None]

    def _attention(self, h: Tensor, weights: Weights, of: str, batch: int) -> Tensor:
        runs, tokens, _ = h.shape

        def heads(name: str, count: int) -> Tensor:
            x = product(h, weights[f"{of}{name}_proj.weight"])
            return x.view(runs * batch, tokens // batch, count, -1).transpose(1, 2)

        q = self._turn(heads("q", self.heads))
        k, v = self._turn(heads("k", self.key_heads)), heads("v", self.key_heads)
        groups = self.heads // self.key_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(runs, tokens, -1)
        return product(mixed, weights[of + "o_proj.weight"])

    def _turn(self, x: Tensor) -> Tensor:
        """Rotary position embedding of [.., L, size]."""
        length = x.shape[-2]
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        return x * self.cos[:length] + turned * self.sin[:length]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """[R, n, in] by [R, out, in] -> [R, n, out]."""
    return torch.bmm(x, weight.transpose(1, 2))


def config_of(config: Any) -> LlamaConfig:
    """Checked: what is not computed here must not be asked for. Raises ConfigError."""
    more = ("attention_bias", "mlp_bias", "attention_dropout", "tie_word_embeddings")
    plain = isinstance(config, LlamaConfig) and not any(getattr(config, key) for key in more)
    if not plain or config.rope_parameters.get("rope_type", "default") != "default":
        raise ConfigError("the lab's fast mode trains plain Llama models only: model.arch=llama")
    return config
