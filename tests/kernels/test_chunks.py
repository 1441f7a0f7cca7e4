"""Chunks of rows bound the memory of the loss, and change nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from adaptsft_kernels import linear_objective
from adaptsft_kernels.chunks import rows_held
from tests.kernels.reference import nll, random_head, state_of


def test_chunks_change_nothing_and_runs_are_bitwise_equal() -> None:
    hidden, weight, _, targets = random_head(n=50)
    focal, results = REGISTRY["focal"], []
    for chunk_size in (0, 1, 7, 50, 7):
        loss, tokens = linear_objective(hidden, weight, targets, focal, chunk_size=chunk_size)
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight)), *tokens))
    for result in results[1:4]:
        for a, b in zip(result, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[4], strict=True))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["nll", "eaft", "threshold"])
def test_logits_are_never_held_whole(name: str) -> None:
    hidden, weight, _, targets = random_head(n=300, d=8, v=1000)
    objective, options = build_objective(ObjectiveConfig(name=name)), {"softcap": 30.0}
    with Largest() as largest:
        linear_objective(hidden, weight, targets, objective, state_of(), chunk_size=16, **options)[
            0
        ].backward()
    assert largest.elements == 16 * 1000


def test_default_chunk_is_48_mib_of_logits() -> None:
    hidden, weight, _, targets = random_head(n=20, d=2, v=1 << 21)  # 8 MiB of logits a row
    with torch.no_grad(), Largest() as largest:
        linear_objective(hidden, weight, targets.clamp(min=0), nll)
    assert largest.elements == (48 << 20) // 4


@pytest.mark.parametrize(
    ("rows", "vocabulary", "logits", "held"),
    [
        # two sums of the weight's gradient, in chunks of whole tiles
        (16384, 128256, torch.bfloat16, (4096, 8192)),
        (16384, 152064, torch.float32, (2048, 8192)),
        (8192, 151936, torch.bfloat16, (4096, 8192)),  # one: rounded once
        (5000, 128256, torch.bfloat16, (5120, 5000)),
        (65536, 262144, torch.bfloat16, (2560, 5120)),
        (7, 100, torch.float32, (7, 7)),
        (0, 100, torch.float32, (1, 0)),
    ],
)
def test_rows_held_on_cuda(
    rows: int, vocabulary: int, logits: torch.dtype, held: tuple[int, int]
) -> None:
    assert rows_held(rows, vocabulary, torch.bfloat16, logits, "cuda") == held
