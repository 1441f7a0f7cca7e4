"""The Triton kernels without a GPU: in the interpreter against fp64, and compiled for the GPUs of today. Each in a process of its own,
because TRITON_INTERPRET is read when the kernels are imported."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from adaptsft_kernels import describe_implementation, linear_objective

pytest.importorskip("triton", reason="the Triton kernels need the package triton (Linux)")
FOLDER = Path(__file__).parent


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "interpret"), [("interpreter_cases.py", "1"), ("compile_cases.py", "0")]
)
def test_cases(cases: str, interpret: str, tmp_path: Path) -> None:
    if interpret == "1" and _release("triton") < (3, 7) and _release("numpy") >= (2, 4):
        pytest.skip("the interpreter of triton < 3.7, which torch 2.11 pins, needs numpy < 2.4")
    paths = os.pathsep.join(str(FOLDER.parent.parent / part) for part in (".", "kernels"))
    environment = os.environ | {
        "TRITON_INTERPRET": interpret,
        "PYTHONPATH": paths,
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tmp_path / 'tmp'}",
    ]
    result = subprocess.run(
        [*command, str(FOLDER / cases)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def test_the_choice_is_said_and_never_changed() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    hidden, weight, targets = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.long)
    assert (
        describe_implementation(cpu, torch.float32)
        == f"torch {version('torch')}, fp32 factors, fp32 logits"
    )
    assert describe_implementation(cuda, torch.bfloat16).startswith("triton ")
    assert describe_implementation(cuda, torch.bfloat16, "auto", torch.bfloat16).endswith(
        "bf16 factors, bf16 logits"
    )
    assert describe_implementation(cuda, torch.float64).startswith("torch ")
    for implementation, words in (
        ("triton", "triton needs a CUDA device, not cpu"),
        ("fast", "there is auto, triton and torch"),
    ):
        with pytest.raises(ValueError, match=words):
            linear_objective(
                hidden,
                weight,
                targets,
                lambda rows, _: (rows.logp, rows.logp),
                implementation=implementation,
            )
