"""The Triton kernels compiled ahead of time, without a GPU: registers, spills, shared memory and the width of loads and stores.

    pytest --noconftest tests/kernels/compile_cases.py

In a process of its own: where TRITON_INTERPRET=1 is set there is nothing to compile.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adaptsft_kernels.triton_rows import GRADIENT, SUMS, row_gradient, row_sums

POINTERS = {"labels": "*i64", "active": "*i64", "highest": "*fp32", "at_others": "*fp32", "at_target": "*fp32"}
NUMBERS = {"V": "i32", "stride": "i32", "n": "i32", "logit_scale": "fp32", "cap": "fp32"}
REGISTERS = 128  # 512 threads per multiprocessor at least, that is 16 KiB of loads in flight
SHARED = 16 << 10  # bytes: a reduction across warps, or a block that changes from the layout of its loads to that of its stores


def compiled(function: Any, settings: dict[str, int], capability: int, logits: str, bias: bool, cap: bool) -> Any:
    constants = {"HAS_BIAS": bias, "HAS_CAP": cap, "BLOCK": settings["BLOCK"]} | ({"ALL": False} if function is row_gradient else {})
    out = "*fp32" if function is row_sums else ("*bf16" if capability > 80 else logits)
    types = POINTERS | NUMBERS | {"logits": logits, "bias": "*bf16", "out": out} | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in function.arg_names}
    # what torch's allocator and ALIGN guarantee; V may be odd
    aligned = [i for i, name in enumerate(function.arg_names) if signature[name].startswith("*") or name == "stride"]
    source = ASTSource(function, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": settings["num_warps"]})


def cuobjdump(option: str, cubin: bytes, folder: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    (folder / "kernel.cubin").write_bytes(cubin)
    return subprocess.run([tool, option, folder / "kernel.cubin"], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("logits", "bias", "cap"), [("*bf16", False, False), ("*fp32", True, True)])
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize(("function", "settings"), [(row_sums, SUMS), (row_gradient, GRADIENT)], ids=["sums", "gradient"])
def test_resources(function: Any, settings: dict, capability: int, logits: str, bias: bool, cap: bool, tmp_path: Path) -> None:
    kernel = compiled(function, settings, capability, logits, bias, cap)
    usage = cuobjdump("--dump-resource-usage", kernel.asm["cubin"], tmp_path)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    assert found["REG"] <= REGISTERS, usage
    assert found["STACK"] == found["LOCAL"] == 0, usage  # nothing spilled
    assert max(found["SHARED"], kernel.metadata.shared) <= SHARED, usage
    code = cuobjdump("-sass", kernel.asm["cubin"], tmp_path)
    loads = re.findall(r"\bLDG\.E(\S*)", code)
    assert sum("128" in load for load in loads) >= settings["BLOCK"] * (4 if logits == "*fp32" else 2) // (32 * settings["num_warps"] * 16)
    if function is row_gradient:
        stores = re.findall(r"\bSTG\.E(\S*)", code)
        assert stores and all("128" in store for store in stores)
    print(f"{function.__name__} sm_{capability} {logits} bias={bias} cap={cap}: {found}")
