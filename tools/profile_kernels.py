"""Where the time of the fused loss goes: per kind of kernel and per chunk, against what this machine can do.

    python tools/profile_kernels.py --shape 16384 4096 128256
    python tools/profile_kernels.py --device cpu --shape 1024 256 32000

Prints a table, and writes it as JSON, and a Chrome trace (open it in chrome://tracing or
ui.perfetto.dev). The ceilings are measured first: a large
matrix product in the same dtype, and a large copy. FLOP are counted from the shapes; bytes are the fewest that the pass can move:
every operand and result once. Products whose bytes are the limit and passes that stay far below the copy are what to look at.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from adaptsft.training.run_folder import environment
from adaptsft_kernels import TokenStatistics, describe_implementation, linear_objective
from adaptsft_kernels.linear_objective import rows_held


def objective_above(threshold: float) -> Any:
    def objective(rows: TokenStatistics, control: Any) -> tuple[torch.Tensor, torch.Tensor]:
        s = (rows.logp >= threshold).to(rows.logp.dtype)
        return -s * rows.logp, s

    return objective


def kind_of(name: str) -> str:
    """The stage that a kernel (CUDA) or an operator (CPU) belongs to."""
    name = name.lower()
    for kind, parts in {
        "matrix products": ("gemm", "nvjet", "cutlass", "aten::mm", "aten::addmm", "xmma"),
        "row sums": ("row_sums",),
        "dz": ("row_gradient",),
    }.items():
        if any(part in name for part in parts):
            return kind
    return "other"


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(TFLOP/s of a matrix product, GB/s of a copy, reading and writing counted), the best of five."""
    size, bytes_ = (8192, 4 << 30) if device.type == "cuda" else (1024, 128 << 20)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(bytes_ // 4, device=device)
    target = torch.empty_like(source)

    def best(call: Any) -> float:
        times = []
        for _ in range(6):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return 2 * size**3 / best(lambda: a @ b) / 1e12, 2 * bytes_ / best(
        lambda: target.copy_(source)
    ) / 1e9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("N", "D", "V"),
        default=(1024, 256, 32000),
        help="default: 1024 256 32000",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="of hidden and weight (default: bf16 on CUDA, else as --logits)",
    )
    parser.add_argument(
        "--logits",
        choices=("fp32", "bf16"),
        default="fp32",
        help="dtype of the logits (default: fp32)",
    )
    parser.add_argument("--implementation", choices=("auto", "triton", "torch"), default="auto")
    parser.add_argument(
        "--chunk", type=int, default=0, help="rows of logits at a time (default: by size)"
    )
    parser.add_argument(
        "--rho",
        type=float,
        default=1.0,
        help="share of the rows with a weight that is not zero (default: 1)",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        default=Path("runs/loss_trace.json"),
        help="default: runs/loss_trace.json",
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file (default: profile_LOGITS.json beside the trace)"
    )
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    device, names = torch.device(args.device), {"fp32": torch.float32, "bf16": torch.bfloat16}
    dtype = names[args.dtype or ("bf16" if args.device == "cuda" else args.logits)]
    logits = names[args.logits]
    if logits.itemsize < dtype.itemsize:
        parser.error("--logits bf16 needs --dtype bf16")
    n, d, v = args.shape
    hidden = torch.randn(n, d, device=device).to(dtype).requires_grad_()
    weight = (2 * torch.randn(v, d, device=device) / d**0.5).to(dtype).requires_grad_()
    targets, target_idx = torch.randint(0, v, (n,), device=device), torch.arange(n, device=device)
    options: dict[str, Any] = {
        "target_idx": target_idx,
        "chunk_size": args.chunk,
        "implementation": args.implementation,
    }
    options["logits_dtype"] = logits

    def step(objective: Any) -> torch.Tensor:
        loss, rows = linear_objective(
            hidden, weight, targets, objective, skip_zeros=args.rho < 1, **options
        )
        with record_function("backward"):
            torch.autograd.grad(loss, (hidden, weight))
        return rows.logp

    threshold = (
        float(step(objective_above(-torch.inf)).quantile(1 - args.rho))
        if args.rho < 1
        else -torch.inf
    )
    implementation = describe_implementation(device, dtype, args.implementation, logits)
    print(f"N={n} D={d} V={v}, rho={args.rho:g}: {implementation}")
    flops, bandwidth = ceilings(device, dtype)
    print(
        f"this machine: {flops:.3g} TFLOP/s in a product of {dtype}, {bandwidth:.4g} GB/s in a copy\n"
    )

    objective = objective_above(threshold)
    step(objective)
    synchronize(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        step(objective)
        synchronize(device)

    on_device = device.type == "cuda"
    milliseconds: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        value = (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e3
        if value and (not on_device or not event.key.startswith(("aten::", "cuda", "backward"))):
            milliseconds[kind_of(event.key)] += value
            largest[event.key] += value
    wide, narrow = logits.itemsize, dtype.itemsize
    work = {
        "matrix products": ((2 + 4 * args.rho) * n * v * d, 0.0),
        "row sums": (0.0, float(n * v * wide)),
        "dz": (0.0, args.rho * n * v * (wide + narrow)),
    }
    total, kinds = sum(milliseconds.values()), []
    print(f"{'':18}{'ms':>10}{'share':>8}{'TFLOP/s':>10}{'GB/s':>8}{'of ceiling':>12}")
    for kind, value in sorted(milliseconds.items(), key=lambda item: -item[1]):
        flop, moved = work.get(kind, (0.0, 0.0))
        rate, speed = flop / value / 1e9, moved / value / 1e6
        share = rate / flops if flop else speed / bandwidth
        known = {"tflops": rate if flop else None, "gb_per_s": speed if moved else None}
        known["of_ceiling"] = share if flop or moved else None
        kinds.append({"kind": kind, "ms": value, "share": value / total} | known)
        shown = (
            f"{rate:.1f}" if flop else "-",
            f"{speed:.0f}" if moved else "-",
            f"{share:.0%}" if flop or moved else "-",
        )
        print(
            f"{kind:18}{value:10.3f}{value / total:8.1%}{shown[0]:>10}{shown[1]:>8}{shown[2]:>12}"
        )
    rows, _ = rows_held(n, v, dtype, logits, device.type, args.chunk)
    chunks = -(-n // rows)
    print(
        f"{'all':18}{total:10.3f}{1:8.1%}   {total / chunks:.3f} ms for each of {chunks} chunks of up to {rows} rows\n"
    )
    print("the ten longest:")
    longest = sorted(largest.items(), key=lambda item: -item[1])[:10]
    for name, value in longest:
        print(f"{value:10.3f} ms  {name[:110]}")
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
