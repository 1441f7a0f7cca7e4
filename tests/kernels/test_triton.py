"""The Triton kernels in Triton's interpreter, against fp64, and how an implementation is chosen."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from adaptsft_kernels import describe_implementation, linear_objective
from tests.conftest import REPO

pytest.importorskip("triton", reason="the Triton kernels need the package triton (Linux)")


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.slow
@pytest.mark.skipif(
    _release("triton") < (3, 7) and _release("numpy") >= (2, 4),
    reason="the interpreter of triton < 3.7, which torch 2.11 pins, needs numpy < 2.4",
)
def test_interpreter_cases(tmp_path: Path) -> None:
    """In a process of its own: TRITON_INTERPRET is read when the kernels are imported."""
    paths = os.pathsep.join(str(REPO / part) for part in (".", "kernels"))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    command += [
        f"--basetemp={tmp_path / 'tmp'}",
        *(str(Path(__file__).with_name(f"interpreter_{name}.py")) for name in ("cases", "rows")),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def test_the_implementation_is_described_and_never_replaced() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    by_torch = describe_implementation(cpu, torch.float32)
    assert by_torch == f"torch {version('torch')}, fp32 factors, fp32 logits"
    assert describe_implementation(cuda, torch.bfloat16).startswith("triton ")
    in_bf16 = describe_implementation(cuda, torch.bfloat16, "auto", torch.bfloat16)
    assert in_bf16.endswith("bf16 factors, bf16 logits")
    assert describe_implementation(cuda, torch.float64).startswith("torch ")
    hidden, weight, targets = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.long)

    def objective(tokens, state):
        return tokens.logp, tokens.logp

    for implementation, words in (
        ("triton", "triton needs a CUDA device, not cpu"),
        ("fast", "choose auto, triton or torch"),
    ):
        with pytest.raises(ValueError, match=words):
            linear_objective(hidden, weight, targets, objective, implementation=implementation)
