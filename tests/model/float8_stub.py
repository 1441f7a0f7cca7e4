"""Stands for torchao.float8 where it is not installed: rowwise rounding of the three products."""

import dataclasses
import importlib.util
import sys
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Float8LinearConfig:
    emulate: bool = False

    @staticmethod
    def from_recipe_name(name: str) -> "Float8LinearConfig":
        assert name == "rowwise"
        return Float8LinearConfig()


class Product(NamedTuple):
    pad_inner_dim: bool = False


class Products(NamedTuple):
    grad_weight: Product = Product()


def rounded(tensor: Tensor, dim: int) -> Tensor:
    """To e4m3, each row along `dim` by a scale of its own, a power of two."""
    largest = tensor.abs().amax(dim, keepdim=True).clamp(min=1e-12)
    scale = (448 / largest).log2().floor().exp2()
    return (tensor * scale).to(torch.float8_e4m3fn).to(tensor.dtype) / scale


class Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight):
        ctx.save_for_backward(rows, weight)
        return rounded(rows, 1) @ rounded(weight, 1).T

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        return rounded(grad, 1) @ rounded(weight, 0), rounded(grad, 0).T @ rounded(rows, 0)


class Float8Linear(nn.Linear):
    linear_mm_config = Products()

    def forward(self, input: Tensor) -> Tensor:
        assert self.linear_mm_config.grad_weight.pad_inner_dim
        rows = Multiply.apply(input.flatten(0, -2), self.weight).unflatten(0, input.shape[:-1])
        return rows if self.bias is None else rows + self.bias


def convert_to_float8_training(module: nn.Module, *, module_filter_fn: Any, config: Any) -> Any:
    assert config.emulate
    for name, linear in module.named_modules():
        if isinstance(linear, nn.Linear) and module_filter_fn(linear, name):
            linear.__class__ = Float8Linear
    return module


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("torchao") is None:
        stub: Any = types.ModuleType("torchao.float8")
        stub.Float8LinearConfig = Float8LinearConfig
        stub.convert_to_float8_training = convert_to_float8_training
        monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
        monkeypatch.setitem(sys.modules, "torchao.float8", stub)
