"""The Triton kernels compiled ahead of time, without a GPU: registers, spills, shared memory, width
of loads and stores, instructions per logit (printed: pytest -s tests/kernels/test_compiled.py)."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the Triton kernels need the package triton (Linux)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: there is nothing to compile", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adaptsft_kernels.token_statistics import Sums
from adaptsft_kernels.triton_rows import GRADIENT, ROW, row_gradient, row_pass

POINTERS = {"targets": "*i64", "active": "*i64"}
POINTERS |= dict.fromkeys(("offset", "total", "out"), "*fp32")
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
    function: Any, writes: bool, capability: int, logits: str, bias: bool, cap: bool
) -> Any:
    settings = GRADIENT if function is row_gradient else ROW
    constants: dict[str, Any] = {"LOGIT_SCALE": 1.0, "CAP": 30.0 if cap else 0.0} | settings
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    constants |= {} if bias else {"bias": None}
    constants |= {} if writes else {"g": None}
    factors = "*bf16" if capability > 80 else logits
    types = POINTERS | NUMBERS | {"logits": logits, "bias": factors, "g": factors}
    types |= dict.fromkeys(constants, "constexpr")
    names = function.arg_names
    signature = {name: types[name] for name in names}
    # what torch's allocator and ALIGN guarantee; V may be odd
    wide = {"logits", "bias", "stride", "g"}
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
        (at, int(goal, 16), bool(re.search(r"^@|\bUP\d", text)))
        for at, text in lines
        for goal in re.findall(r"\bBRA\b.* 0x([0-9a-f]+)", text)
    ]
    # where a jump back has no condition, it leaves what was compiled for diverging threads
    loops = [(goal, at) for at, goal, conditional in branches if goal < at and conditional]
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, lines[-1][0]))
    left_out = [(at, goal) for at, goal, _ in branches if begin <= at < goal <= end]
    return sum(
        begin <= at <= end and "NOP" not in text and not any(a < at < b for a, b in left_out)
        for at, text in lines
    )


@pytest.mark.parametrize(
    ("logits", "bias", "cap"),
    [("*bf16", False, False), ("*fp32", False, False), ("*fp32", True, True)],
)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize(
    ("function", "writes"),
    [(row_pass, True), (row_pass, False), (row_gradient, True)],
    ids=["sums and G", "sums", "G"],
)
def test_resources(
    function: Any,
    writes: bool,
    capability: int,
    logits: str,
    bias: bool,
    cap: bool,
    tmp_path: Path,
) -> None:
    settings = GRADIENT if function is row_gradient else ROW
    kernel = compiled(function, writes, capability, logits, bias, cap)
    # rows times V passes 2^31
    assert re.search(r"arith\.muli .*: i64", kernel.asm["ttir"])
    usage = cuobjdump("--dump-resource-usage", kernel.asm["cubin"], tmp_path)
    numbers = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)
    found = {name: int(value) for name, value in numbers}
    assert found["REG"] <= REGISTERS, usage
    # nothing spilled; beside a soft cap and a bias at most two registers, once
    assert found["STACK"] <= (8 if cap else 0) and found["LOCAL"] == 0, usage
    assert max(found["SHARED"], kernel.metadata.shared) <= SHARED, usage
    code = cuobjdump("-sass", kernel.asm["cubin"], tmp_path)
    threads = 32 * settings["num_warps"]
    wide_loads = sum("128" in load for load in re.findall(r"\bLDG\.E(\S*)", code))
    assert wide_loads >= settings["BLOCK"] * BYTES[logits] // (threads * 16)
    if writes:
        stores = re.findall(r"\bSTG\.E(\S*)", code)
        narrow = [store for store in stores if "128" not in store]
        # the sums and G at the target
        assert len(narrow) == (len(Sums._fields) + 1 if function is row_pass else 0)
        assert len(narrow) < len(stores)
    per_logit = usual_instructions(code) * threads / settings["BLOCK"]
    assert cap or per_logit <= INSTRUCTIONS
    what = "+G" if writes and function is row_pass else ""
    case = f"{function.__name__}{what} sm_{capability} {logits} bias={bias} cap={cap}"
    print(f"{per_logit:.1f} per logit, {case}: {found}")
