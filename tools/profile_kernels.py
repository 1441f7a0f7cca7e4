"""Where the time of the fused loss goes: by kind of kernel and per chunk, beside what this machine
can do.

    python tools/profile_kernels.py --shape 16384 4096 128256
    python tools/profile_kernels.py --device cpu --shape 1024 256 32000

Prints a table, and writes it as JSON, and a Chrome trace (open it in chrome://tracing or
ui.perfetto.dev). The ceilings are measured first: a large matrix product in the same dtype, and a
large copy. FLOP are counted from the shapes; bytes are the fewest that the pass can move: every
operand and result once. Products whose bytes are the limit, and passes that stay far below the
copy, are what to look at.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from adaptsft.training.environment import environment
from adaptsft_kernels import TokenStatistics, describe_implementation, linear_objective
from adaptsft_kernels.chunks import rows_held

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINDS = {  # of kernels (CUDA) and operators (CPU), by parts of their names
    "matrix products": ("gemm", "nvjet", "cutlass", "aten::mm", "aten::addmm", "xmma"),
    "rows": ("row_pass",),
    "G of active rows": ("row_gradient",),
}


def objective_above(threshold: float) -> Any:
    """NLL of the tokens whose log p is at least the threshold."""

    def objective(tokens: TokenStatistics, state: Any) -> tuple[torch.Tensor, torch.Tensor]:
        weight = (tokens.logp >= threshold).to(tokens.logp.dtype)
        return -weight * tokens.logp, weight

    return objective


def kind_of(name: str) -> str:
    for kind, parts in KINDS.items():
        if any(part in name.lower() for part in parts):
            return kind
    return "other"


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(TFLOP/s of a matrix product, GB/s of a copy, reading and writing counted): the best of 5."""
    size, bytes_ = (8192, 4 << 30) if device.type == "cuda" else (1024, 128 << 20)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(bytes_ // 4, device=device)
    target = torch.empty_like(source)

    def best(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    product, copy = best(lambda: a @ b), best(lambda: target.copy_(source))
    return 2 * size**3 / product / 1e12, 2 * bytes_ / copy / 1e9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, device = parser.add_argument, "cuda" if torch.cuda.is_available() else "cpu"
    shape, trace = (1024, 256, 32000), Path("runs/loss_trace.json")
    shown, dtypes = f"default: {' '.join(map(str, shape))}", tuple(DTYPES)
    add("--device", choices=("cpu", "cuda"), default=device)
    add("--shape", type=int, nargs=3, metavar=("N", "D", "V"), default=shape, help=shown)
    add("--dtype", choices=dtypes, help="of the inputs (default: bf16 on CUDA, else --logits)")
    add("--logits", choices=dtypes, default="fp32", help="dtype of the logits (default: fp32)")
    add("--implementation", choices=("auto", "triton", "torch"), default="auto")
    add("--chunk", type=int, default=0, help="rows of logits at a time (default: by size)")
    add("--rho", type=float, default=1.0, help="share of the tokens of weight 1 (default: 1)")
    add("--trace", type=Path, default=trace, help=f"default: {trace}")
    add("--out", type=Path, help="JSON file (default: profile_LOGITS.json beside the trace)")
    return parser


def milliseconds(profiler: profile, device: torch.device) -> dict[str, float]:
    """Of each kernel (CUDA) or operator (CPU), without those that it calls."""
    found = {}
    for event in profiler.key_averages():
        if device.type != "cuda":
            found[event.key] = event.self_cpu_time_total / 1e3
        elif not event.key.startswith(("aten::", "cuda", "backward")):
            found[event.key] = event.self_device_time_total / 1e3
    return {name: ms for name, ms in found.items() if ms}


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    device, logits = torch.device(args.device), DTYPES[args.logits]
    dtype = DTYPES[args.dtype or ("bf16" if args.device == "cuda" else args.logits)]
    if logits.itemsize < dtype.itemsize:
        parser.error("--logits bf16 needs --dtype bf16")
    n, d, v = args.shape
    hidden = torch.randn(n, d, device=device).to(dtype).requires_grad_()
    weight = (2 * torch.randn(v, d, device=device) / d**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), device=device)
    options: dict[str, Any] = {"target_idx": torch.arange(n, device=device)}
    options |= {"chunk_size": args.chunk, "implementation": args.implementation}
    options |= {"logits_dtype": logits, "skip_zeros": args.rho < 1}

    def step(objective: Any) -> torch.Tensor:
        loss, tokens = linear_objective(hidden, weight, targets, objective, **options)
        with record_function("backward"):
            torch.autograd.grad(loss, (hidden, weight))
        return tokens.logp

    threshold = -torch.inf
    if args.rho < 1:
        threshold = float(step(objective_above(-torch.inf)).quantile(1 - args.rho))
    implementation = describe_implementation(device, dtype, args.implementation, logits)
    print(f"N={n} D={d} V={v}, rho={args.rho:g}: {implementation}")
    flops, bandwidth = ceilings(device, dtype)
    print(f"this machine: {flops:.3g} TFLOP/s in a product of {dtype}, ", end="")
    print(f"{bandwidth:.4g} GB/s in a copy\n")

    objective = objective_above(threshold)
    step(objective)
    synchronize(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        step(objective)
        synchronize(device)

    kernels = milliseconds(profiler, device)
    of_kind: dict[str, float] = defaultdict(float)
    for name, ms in kernels.items():
        of_kind[kind_of(name)] += ms
    work = {  # FLOP, bytes
        "matrix products": ((2 + 4 * args.rho) * n * v * d, 0.0),
        "rows": (0.0, float(n * v * (logits.itemsize + (dtype.itemsize if args.rho == 1 else 0)))),
        "G of active rows": (0.0, args.rho * n * v * (logits.itemsize + dtype.itemsize)),
    }
    total, kinds = sum(of_kind.values()), []
    print(f"{'':18}{'ms':>10}{'share':>8}{'TFLOP/s':>10}{'GB/s':>8}{'of ceiling':>12}")
    for kind, ms in sorted(of_kind.items(), key=lambda item: -item[1]):
        flop, moved = work.get(kind, (0.0, 0.0))
        rate = flop / ms / 1e9 if flop else None
        speed = moved / ms / 1e6 if moved else None
        share = rate / flops if rate else speed / bandwidth if speed else None
        kinds.append({"kind": kind, "ms": ms, "share": ms / total, "tflops": rate})
        kinds[-1] |= {"gb_per_s": speed, "of_ceiling": share}
        shown = (rate, "10.1f", 10), (speed, "8.0f", 8), (share, "12.0%", 12)
        cells = ["-".rjust(w) if x is None else format(x, form) for x, form, w in shown]
        print(f"{kind:18}{ms:10.3f}{ms / total:8.1%}" + "".join(cells))
    rows, _ = rows_held(n, v, dtype, logits, device.type, args.chunk)
    chunks = -(-n // rows)
    per_chunk = f"{total / chunks:.3f} ms for each of {chunks} chunks of up to {rows} rows"
    print(f"{'all':18}{total:10.3f}{1:8.1%}   {per_chunk}\n")
    print("the ten longest:")
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:10]
    for name, ms in longest:
        print(f"{ms:10.3f} ms  {name[:110]}")
    result = {"environment": environment(), "N,D,V": args.shape, "logits": args.logits}
    result |= {"rho": args.rho, "ms": total, "kinds": kinds}
    result |= {"dtype": str(dtype).removeprefix("torch."), "implementation": implementation}
    result |= {"product_tflops": flops, "copy_gb_per_s": bandwidth, "chunks": chunks, "rows": rows}
    result["longest"] = [{"name": name, "ms": ms} for name, ms in longest]
    out = args.out or args.trace.with_name(f"profile_{args.logits}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    args.trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(args.trace))
    print(f"\n{args.trace} and {out} written")


if __name__ == "__main__":
    main()
