"""Which implementation of the row kernels runs: Triton or torch."""

import importlib.util
import os
from importlib.metadata import version

import torch
from torch import Tensor

from adaptsft_kernels.row_kernels import Head, RowKernels, accumulator
from adaptsft_kernels.torch_rows import TorchRows


def choose_implementation(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" or "torch". "auto" is Triton for fp32 and bf16 on CUDA where the package is
    installed, torch otherwise.

    Raises ValueError for "triton" where it cannot run: it never falls back to torch.
    """
    if implementation not in ("auto", "triton", "torch"):
        raise ValueError(f"implementation={implementation!r}: choose auto, triton or torch")
    missing = ""
    if importlib.util.find_spec("triton") is None:
        missing = "the package triton, which is not installed"
    elif dtype == torch.float64:
        missing = "fp32 or bf16 factors, not fp64"
    elif device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        missing = f"a CUDA device, not {device.type} (or its interpreter: TRITON_INTERPRET=1)"
    if implementation == "triton" and missing:
        raise ValueError(f"implementation=triton needs {missing}; choose torch or auto")
    if implementation == "auto":
        return "triton" if device.type == "cuda" and not missing else "torch"
    return implementation


def row_kernels(
    implementation: str,
    head: Head,
    dtype: torch.dtype,
    logits_dtype: torch.dtype,
    rows: int,
    capacity: int,
    packed: Tensor | None = None,
) -> RowKernels:
    """Those of "torch", with accumulators in `dtype`, or of "triton", with buffers for the logits
    of `rows` rows and for G of `capacity` rows, the latter in `packed` if that is given."""
    if implementation == "torch":
        return TorchRows(head, dtype, logits_dtype)
    from adaptsft_kernels.triton_rows import TritonRows  # needs triton, which is optional

    return TritonRows(head, logits_dtype, rows, capacity, packed)


def describe_implementation(
    device: torch.device,
    dtype: torch.dtype,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
) -> str:
    """What `linear_objective` would use, for a log: "triton 3.6.0, bf16 factors, fp32 logits"."""
    chosen = choose_implementation(implementation, device, dtype)
    names = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}
    logits = logits_dtype or accumulator(dtype)
    return f"{chosen} {version(chosen)}, {names[dtype]} factors, {names[logits]} logits"
