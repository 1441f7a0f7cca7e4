"""Seconds on a GPU before anything that takes minutes: versions, and the calls that no CPU can try.

    python tools/gpu_smoke.py
    python tools/gpu_smoke.py --device cpu      # a rehearsal, without the checks that need CUDA

A check that fails does not stop the others; ends with 1 if one failed.
"""

import argparse
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from adaptsft.data.documents import Documents
from adaptsft.model import attention
from adaptsft.statistics.step import LOGIT_RANGE, histogram_quantile
from adaptsft_kernels import TokenStatistics, linear_objective

PACKAGES = ("torch", "triton", "transformers", "pyarrow", "datasets", "omegaconf", "flash-attn")
PACKAGES += ("trl", "accelerate", "psutil", "liger-kernel", "cut-cross-entropy")


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Raises unless the relative error of `found` to `expected`, fp64, is below `tolerance`."""
    expected = expected.detach()
    error = float((found.detach().double() - expected).norm() / expected.norm())
    if not error < tolerance:
        raise AssertionError(f"relative error {error:.2e}, at most {tolerance:.0e} expected")


def products_into_views(device: torch.device) -> None:
    """mm and addmm of bf16 factors, summed in fp32, into rows that do not follow one another: the
    logits of a chunk, and the sum of the weight's gradient."""
    a, b = (torch.randn(256, 256, device=device, dtype=torch.bfloat16) for _ in range(2))
    expected = a.double() @ b.double()
    out = torch.zeros(256, 320, device=device)[:, :256]
    torch.mm(a, b, out_dtype=torch.float32, out=out)
    close(out, expected, 1e-5)
    torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    close(out, 2 * expected, 1e-5)


def deterministic(device: torch.device) -> None:
    """Of a step of train.deterministic=true: a product, counts, quantiles."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.randn(512, 512, device=device, dtype=dtype)
    cell = torch.randint(0, 512, (4096,), device=device)
    ones = torch.ones(4096, dtype=torch.float64, device=device)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.zeros(512, dtype=torch.float64, device=device).index_add_(0, cell, ones)
        return a @ a, histogram_quantile(counts.view(2, 256), 0.5, LOGIT_RANGE)

    torch.use_deterministic_algorithms(True)
    try:
        first, again = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    if not all(torch.equal(x, y) for x, y in zip(first, again, strict=True)):
        raise AssertionError("two calls gave different bits")


def grouped_attention(device: torch.device) -> None:
    """varlen_attn as the trainer calls it: two documents, four query heads on two key heads."""
    states = [torch.randn(64, heads, 64, device=device) for heads in (4, 2, 2)]
    half = [tensor.bfloat16().requires_grad_() for tensor in states]
    exact = [tensor.detach().double().requires_grad_() for tensor in half]
    offsets = torch.tensor([0, 24, 64], dtype=torch.int32)
    documents = Documents.build(offsets, with_buckets=True).to(device)
    gradient = torch.randn(64, 4, 64, device=device)

    def run(attend: Callable, *inputs: torch.Tensor) -> list[torch.Tensor]:
        out = attend(*inputs, documents, 0.125, None, None, 0.0)
        return [out, *torch.autograd.grad(out, inputs, gradient.to(out.dtype))]

    truth = run(attention._sdpa, *exact)
    for found, expected in zip(run(attention._varlen, *half), truth, strict=True):
        close(found, expected, 2e-2)


def fused_loss(device: torch.device) -> None:
    """The fused loss, in Triton on a GPU, with logits of either dtype: loss and both gradients."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32  # what the trainer computes in
    hidden = torch.randn(100, 64, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(1003, 64, device=device) / 4).to(dtype).requires_grad_()
    targets = torch.randint(0, 1003, (100,), device=device)

    def nll(tokens: TokenStatistics, state: object) -> tuple[torch.Tensor, torch.Tensor]:
        return -tokens.logp, torch.ones_like(tokens.logp)

    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    true = F.cross_entropy(exact[0] @ exact[1].t(), targets, reduction="sum")
    true_gradients = torch.autograd.grad(true, exact)
    for logits in (torch.float32, torch.bfloat16) if cuda else (torch.float32,):
        loss, _ = linear_objective(hidden, weight, targets, nll, logits_dtype=logits)
        gradients = torch.autograd.grad(loss, (hidden, weight))
        for found, expected in zip((loss, *gradients), (true, *true_gradients), strict=True):
            close(found, expected, 2e-2)


CHECKS: dict[Callable[[torch.device], None], bool] = {  # -> whether it needs CUDA
    products_into_views: True,
    deterministic: False,
    grouped_attention: True,
    fused_loss: False,
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    return parser


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    # as adaptsft.distributed does before CUDA starts: deterministic products need it
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device(args.device)
    for package in PACKAGES:
        try:
            print(f"{package:18}{version(package)}")
        except PackageNotFoundError:
            print(f"{package:18}not installed")
    print(f"varlen_attn{inspect.signature(varlen_attn)}")
    if args.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no CUDA device")
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / 1e9
        print(f"{properties.name}, {memory:.0f} GB, CUDA {torch.version.cuda}")
    failed = 0
    for check, needs_cuda in CHECKS.items():
        if needs_cuda and args.device == "cpu":
            print(f"{check.__name__:24}left out: needs CUDA")
            continue
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            check(device)
            result = "passed"
        except Exception:  # the others go on
            traceback.print_exc()
            failed, result = failed + 1, "FAILED"
        print(f"{check.__name__:24}{result} after {time.perf_counter() - start:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
