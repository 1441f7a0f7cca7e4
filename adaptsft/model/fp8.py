"""FP8: the matrix products of the decoder layers' linear layers, by torchao.

Each row of an activation and of a gradient, and each row or column of a weight, has a scale of its
own (rowwise), so that a token's outputs do not depend on other tokens. Weights stay what they are,
in name, dtype and value, and so do checkpoints and exports: only products are rounded.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from adaptsft.config.schema import ModelConfig
from adaptsft.errors import ConfigError, require_installed
from adaptsft.model.modules import blocks, class_name

CAPABILITY = (9, 0)  # Hopper: torch's rowwise products
MULTIPLE = 16  # what FP8 products want of a weight's dimensions
EMULATED = False  # in the arithmetic of the device, for tests
# a router's choice is not to be rounded, and an expert of its own has few tokens
_APART = re.compile(r"router|(^|\.)gate(\.|$)|expert_gate$|(^|\.)experts\.")


class Fp8(NamedTuple):
    """What model.fp8=rowwise has become, in linear layers of the decoder."""

    converted: int
    odd: int  # that have a dimension which is no multiple of 16
    apart: int  # routers and experts

    def __str__(self) -> str:
        rest = {"a dimension is no multiple of 16": self.odd, "routers and experts": self.apart}
        reasons = "; ".join(f"{count} stay bf16: {why}" for why, count in rest.items() if count)
        total = self.converted + self.odd + self.apart
        return f"rowwise, {self.converted} of the decoder's {total} linear layers" + (
            f" ({reasons})" if reasons else ""
        )


def check_fp8(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ConfigError where model.fp8 asks for what this machine, or the rest of `config`, does
    not do; `dtype` is what is computed in."""
    if config.fp8 == "none":
        return
    asked = f"model.fp8={config.fp8}"
    if config.lora.rank:
        raise ConfigError(
            f"{asked} rounds the products of trained weights, and model.lora.rank="
            f"{config.lora.rank} trains adapters beside frozen ones: set model.fp8=none"
        )
    if EMULATED:
        return
    cuda = device.type == "cuda" and torch.version.cuda is not None
    if not cuda or torch.cuda.get_device_capability(device) < CAPABILITY:
        there = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        raise ConfigError(
            f"{asked} needs an NVIDIA GPU of compute capability 9.0 (Hopper) or above, and this "
            f"is {there}: set model.fp8=none"
        )
    if dtype != torch.bfloat16:
        raise ConfigError(f"{asked} needs model.compute_dtype=bf16, which FP8 products give")
    require_installed("torchao", "fp8", asked)


def convert_to_fp8(model: PreTrainedModel) -> Fp8:
    """Let the decoder's linear layers multiply in FP8; neither head nor embeddings, routers and
    experts. Before the model is sharded. Raises ConfigError where that leaves none."""
    found: dict[str, list[nn.Module]] = {"converted": [], "odd": [], "apart": []}
    for block in blocks(model):
        for name, module in block.named_modules():
            if type(module) is nn.Linear:
                odd = module.in_features % MULTIPLE or module.out_features % MULTIPLE
                kind = "apart" if _APART.search(name) else "odd" if odd else "converted"
                found[kind].append(module)
    counts = Fp8(**{kind: len(modules) for kind, modules in found.items()})
    if not counts.converted:
        raise ConfigError(
            f"model.fp8=rowwise: {class_name(model)} has no linear layers that it applies to "
            f"({counts}); set model.fp8=none"
        )
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe: Any = Float8LinearConfig.from_recipe_name("rowwise")
    chosen = set(found["converted"])
    for block in blocks(model):
        convert_to_float8_training(
            block,
            module_filter_fn=lambda module, _: module in chosen,
            config=dataclasses.replace(recipe, emulate=EMULATED),
        )
    for layer in (module for module in model.modules() if hasattr(module, "linear_mm_config")):
        # the sum over tokens, of which there is any number, wants a multiple of 16 too
        config: Any = layer.linear_mm_config
        layer.linear_mm_config = config._replace(
            grad_weight=config.grad_weight._replace(pad_inner_dim=True)
        )
    return counts
