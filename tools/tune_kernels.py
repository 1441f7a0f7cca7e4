"""Which block sizes, warps and buffers are fastest here: the constants of adaptsft_kernels over a
grid, in about a minute.

    python tools/tune_kernels.py --shape 16384 4096 128256
    TRITON_INTERPRET=1 python tools/tune_kernels.py --device cpu --shape 2 16 300 --rounds 1

For the two row kernels: milliseconds and GB/s over blocks and warps. For the whole loss:
milliseconds, forward and backward, and peak memory over the two buffers. <- marks what is set now.
The constants are fixed in the source (ROW and GRADIENT in triton_rows.py, CHUNK_BYTES and
GATHERED_BYTES in chunks.py) and nothing chooses them at run time: another choice rounds
differently, and two runs of a training must give the same bits.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from profile_kernels import (  # pyrefly: ignore[missing-import]  # beside this file
    ceilings,
    objective_above,
    synchronize,
)

from adaptsft.training.environment import environment
from adaptsft_kernels import chunks, describe_implementation, linear_objective, triton_rows
from adaptsft_kernels.row_kernels import Head

BLOCKS, WARPS = (1024, 2048, 4096, 8192), (4, 8, 16)
MIB = (320, 640, 1280, 2560, 5120)
Problem = dict[str, torch.Tensor]


def milliseconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median over `rounds`, after one that compiles."""
    call()
    times = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def tune_row_kernels(
    problem: Problem, logits: torch.dtype, device: torch.device, rounds: int, copy: float
) -> list[dict[str, Any]]:
    """Both row kernels on one chunk that no cache holds."""
    weight, targets = problem["weight"], problem["targets"][:4096]
    n, v = len(targets), len(weight)
    settings = {"row_pass": triton_rows.ROW, "row_gradient": triton_rows.GRADIENT}
    block_now = triton_rows.ROW["BLOCK"]
    # the buffer gets room for what the largest block reads beyond its last row
    triton_rows.ROW["BLOCK"] = max(BLOCKS)
    kernels = triton_rows.TritonRows(Head(weight, None, None, 1.0), logits, n, n)
    triton_rows.ROW["BLOCK"] = block_now
    sums, _ = kernels.sums(problem["hidden"][:n], targets, (), append=False)

    def row_pass() -> None:
        kernels.launch_row_pass(targets, append=True)
        kernels.take()

    def gradient() -> None:
        kernels.append(targets, sums, None)
        kernels.take()

    moved = n * v * (logits.itemsize + weight.itemsize)  # read and written, by either
    calls = {"row_pass": row_pass, "row_gradient": gradient}
    found = []
    print(f"{'':14}{'block':>8}{'warps':>7}{'ms':>10}{'GB/s':>8}{'of copy':>9}")
    for name, call in calls.items():
        now = dict(settings[name])
        for block, warps in itertools.product(BLOCKS, WARPS):
            if block < 8 * 32 * warps:  # a thread's 16 bytes of bf16
                continue
            settings[name].update(BLOCK=block, num_warps=warps)
            ms = milliseconds(call, device, rounds)
            rate, is_set = moved / ms / 1e6, settings[name] == now
            found.append({"kernel": name, "block": block, "warps": warps, "ms": ms})
            found[-1] |= {"gb_per_s": rate, "set": is_set}
            figures = f"{ms:10.4f}{rate:8.0f}{rate / copy:9.0%}{' <-' if is_set else ''}"
            print(f"{name:14}{block:8}{warps:7}{figures}", flush=True)
        settings[name].update(now)
    return found


def tune_buffers(
    problem: Problem, logits: torch.dtype, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """The whole loss, every token of weight 1."""
    hidden, weight = (problem[name].requires_grad_() for name in ("hidden", "weight"))
    n, v = len(hidden), len(weight)
    options: dict[str, Any] = {"target_idx": torch.arange(n, device=device)}
    options |= {"logits_dtype": logits, "implementation": "triton"}
    objective = objective_above(-torch.inf)

    def step() -> None:
        loss, _ = linear_objective(hidden, weight, problem["targets"], objective, **options)
        torch.autograd.grad(loss, (hidden, weight))

    found, seen = [], set()
    now = chunks.CHUNK_BYTES[device.type], chunks.GATHERED_BYTES
    print(f"\n{'logits, MiB':>12}{'gathered, MiB':>15}{'rows':>9}{'rows':>9}{'ms':>10}{'GB':>8}")
    for held, gathered in itertools.product(MIB, MIB):
        budgets = held << 20, gathered << 20
        chunks.CHUNK_BYTES[device.type], chunks.GATHERED_BYTES = budgets
        rows = chunks.rows_held(n, v, weight.dtype, logits, device.type)
        is_set = budgets == now
        if rows in seen and not is_set:  # at this shape, these budgets are those of another line
            continue
        seen.add(rows)
        peak = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            peak = (torch.cuda.max_memory_allocated() - before) / 1e9
        ms = milliseconds(step, device, rounds)
        found.append({"logits_mib": held, "gathered_mib": gathered, "rows": rows, "ms": ms})
        found[-1] |= {"peak_gb": peak, "set": is_set}
        shown = f"{'-' if peak is None else format(peak, '.2f'):>8}{' <-' if is_set else ''}"
        print(f"{held:12}{gathered:15}{min(rows[0], n):9}{rows[1]:9}{ms:10.3f}{shown}", flush=True)
    chunks.CHUNK_BYTES[device.type], chunks.GATHERED_BYTES = now
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, shape, out = parser.add_argument, (16384, 4096, 128256), Path("runs/tune_kernels.json")
    shown = f"default: {' '.join(map(str, shape))}"
    dtypes = "dtype of the logits (default: fp32, as the trainer's)"
    add("--device", choices=("cpu", "cuda"), default="cuda")
    add("--shape", type=int, nargs=3, metavar=("N", "D", "V"), default=shape, help=shown)
    add("--logits", choices=("fp32", "bf16"), default="fp32", help=dtypes)
    add("--rounds", type=int, default=10, help="timed calls of each setting (default: 10)")
    add("--out", type=Path, default=out, help=f"default: {out}")
    return parser


def main() -> int:
    args = arguments().parse_args()
    device = torch.device(args.device)
    logits = torch.bfloat16 if args.logits == "bf16" else torch.float32
    # a product of bf16 factors into fp32 is CUDA's
    dtype = torch.bfloat16 if args.device == "cuda" else logits
    print(f"N, D, V = {args.shape}: {describe_implementation(device, dtype, 'triton', logits)}")
    n, d, v = args.shape
    problem = {
        "hidden": torch.randn(n, d, device=device).to(dtype),
        "weight": (2 * torch.randn(v, d, device=device) / d**0.5).to(dtype),
        "targets": torch.randint(0, v, (n,), device=device),
    }
    _, copy = ceilings(device, dtype)
    print(f"a copy here: {copy:.0f} GB/s\n")
    result = {"environment": environment(), "N,D,V": args.shape, "logits": args.logits}
    result["copy_gb_per_s"] = copy
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, tune in (
        ("row_kernels", lambda: tune_row_kernels(problem, logits, device, args.rounds, copy)),
        ("buffers", lambda: tune_buffers(problem, logits, device, args.rounds)),
    ):
        result[name] = tune()
        args.out.write_text(json.dumps(result, indent=1) + "\n")  # in case the second is cut short
    print(f"\n{args.out} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
