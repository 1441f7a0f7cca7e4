"""The Triton kernels compiled ahead of time, without a GPU: registers, spills, shared memory, width
of loads and stores, instructions per logit (printed: pytest -s tests/kernels/test_compiled.py)."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the Triton kernels need the package triton (Linux)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: there is nothing to compile", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adaptsft_kernels.triton_rows import GRADIENT, row_gradient, row_sums, sums_settings

POINTERS = {"targets": "*i64", "active": "*i64"}
POINTERS |= dict.fromkeys(("highest", "at_others", "at_target"), "*fp32")
NUMBERS = {"V": "i32", "stride": "i32", "n": "i32"}
BYTES = {"*fp32": 4, "*bf16": 2}
REGISTERS = 128  # 512 threads per multiprocessor at least, that is 16 KiB of loads in flight
# per logit: at 128 lanes a clock, a Hopper issues about 14 per bf16 logit in the time in which
# 4.3 TB/s bring the next
INSTRUCTIONS = 14
# bytes: a reduction across warps, or a block that changes from the layout of its loads to that of
# its stores
SHARED = 16 << 10


def compiled(
    function: Any, settings: dict[str, int], capability: int, logits: str, bias: bool, cap: bool
) -> Any:
    constants: dict[str, Any] = {"LOGIT_SCALE": 1.0, "CAP": 30.0 if cap else 0.0} | settings
    options = {"num_warps": constants.pop("num_warps")}
    constants |= {} if bias else {"bias": None}
    out = "*fp32" if function is row_sums else ("*bf16" if capability > 80 else logits)
    types = POINTERS | NUMBERS | {"logits": logits, "bias": "*bf16", "out": out}
    types |= dict.fromkeys(constants, "constexpr")
    names = function.arg_names
    signature = {name: types[name] for name in names}
    # what torch's allocator and ALIGN guarantee; V may be odd
    wide = {"logits", "bias", "stride"} | ({"out"} if function is row_gradient else set())
    aligned = [i for i, name in enumerate(names) if name in wide and name not in constants]
    divisible = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(function, signature, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def cuobjdump(option: str, cubin: bytes, folder: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    return subprocess.run([tool, option, file], check=True, capture_output=True, text=True).stdout


def usual_instructions(code: str) -> int:
    """Of the longest loop, or of the whole where there is none, without those that a forward branch
    over a masked block leaves out."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    branches = [
        (at, int(goal, 16))
        for at, text in lines
        for goal in re.findall(r"\bBRA\b.* 0x([0-9a-f]+)", text)
    ]
    loops = [(goal, at) for at, goal in branches if goal < at]
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, lines[-1][0]))
    left_out = [(at, goal) for at, goal in branches if begin <= at < goal <= end]
    return sum(
        begin <= at <= end and "NOP" not in text and not any(a < at < b for a, b in left_out)
        for at, text in lines
    )


@pytest.mark.parametrize(
    ("logits", "bias", "cap"), [("*bf16", False, False), ("*fp32", True, True)]
)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("function", [row_sums, row_gradient], ids=["sums", "gradient"])
def test_resources(
    function: Any, capability: int, logits: str, bias: bool, cap: bool, tmp_path: Path
) -> None:
    dtype = torch.float32 if logits == "*fp32" else torch.bfloat16
    settings = GRADIENT if function is row_gradient else sums_settings(dtype)
    kernel = compiled(function, settings, capability, logits, bias, cap)
    usage = cuobjdump("--dump-resource-usage", kernel.asm["cubin"], tmp_path)
    numbers = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)
    found = {name: int(value) for name, value in numbers}
    assert found["REG"] <= REGISTERS, usage
    assert found["STACK"] == found["LOCAL"] == 0, usage  # nothing spilled
    assert max(found["SHARED"], kernel.metadata.shared) <= SHARED, usage
    code = cuobjdump("-sass", kernel.asm["cubin"], tmp_path)
    threads = 32 * settings["num_warps"]
    wide_loads = sum("128" in load for load in re.findall(r"\bLDG\.E(\S*)", code))
    assert wide_loads >= settings["BLOCK"] * BYTES[logits] // (threads * 16)
    if function is row_gradient:
        stores = re.findall(r"\bSTG\.E(\S*)", code)
        assert stores and all("128" in store for store in stores)
    per_logit = usual_instructions(code) * threads / settings["BLOCK"]
    assert cap or per_logit <= INSTRUCTIONS
    case = f"{function.__name__} sm_{capability} {logits} bias={bias} cap={cap}"
    print(f"{per_logit:.1f} per logit, {case}: {found}")
