"""Time, memory, accuracy and determinism of the loss of a head, ours beside its peers, in one run.

    python benchmarks/loss_kernels.py --device cpu
    pip install liger-kernel cut-cross-entropy && python benchmarks/loss_kernels.py --device cuda

Every candidate computes loss and both gradients from the same tensors. Rounds are interleaved, so
that a clock that falls or a busy machine hits all alike: compare within a run, not between runs.
Columns of the table:

ms        median over the rounds, forward and backward
ratio     to `bare products` (the three matrix products alone) on a GPU, to `naive` on a CPU,
          within the same round
GB        peak memory beyond inputs and the two returned gradients (CPU: resident memory, the
          gradients included)
syncs     times that the host waits for the device (GPU)
dX, dW    relative error to fp64; dX* only of tokens with p > .99
repeat    two runs give the same bits

Ours always computes its statistics. `rho` is the share of the target tokens whose weight is not
zero (*: not the gradient of NLL). Writes benchmarks/results/loss_kernels_<device>.json, with
machine, versions and command.
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from loss_peers import (  # pyrefly: ignore[missing-import]  # beside this file
    Problem,
    Run,
    candidates,
    make_problem,
)
from torch import Tensor

from adaptsft.training.environment import environment
from adaptsft_kernels import describe_implementation

Shape = tuple[int, int, int]  # N, D, V
SHAPES: dict[str, list[Shape]] = {
    "cpu": [(2048, 512, 32000)],
    # the shape of the training step first: cases are written one by one, and time can run out
    "cuda": [(8192, 1536, 151936), (16384, 4096, 128256), (16384, 3584, 152064)],
}
MORE: list[Shape] = [(n, 4096, 128256) for n in (1024, 4096, 65536)] + [(8192, 2304, 262144)]
RHOS = {"cpu": [0.5], "cuda": [0.75, 0.5, 0.25, 0.1, 0.0]}
NOT_NLL = "*"


def execute(run: Run, problem: Problem) -> tuple[Tensor | None, Tensor, Tensor]:
    """loss, d hidden, d weight."""
    problem.hidden.grad = problem.weight.grad = None
    loss = run(problem)
    if loss is not None:
        loss.backward()
    assert problem.hidden.grad is not None and problem.weight.grad is not None
    return loss, problem.hidden.grad, problem.weight.grad


def seconds(run: Run, problem: Problem) -> float:
    problem.hidden.grad = problem.weight.grad = None
    if problem.hidden.is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        execute(run, problem)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    execute(run, problem)
    return time.perf_counter() - start


def extra_memory(run: Run, problem: Problem) -> int | None:
    """Bytes held at the highest, beyond what was there before; on a GPU also beyond the two
    gradients. None where it cannot be known."""
    problem.hidden.grad = problem.weight.grad = None
    if problem.hidden.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        execute(run, problem)
        grads = [x.grad for x in (problem.hidden, problem.weight) if x.grad is not None]
        gradients = sum(grad.numel() * grad.element_size() for grad in grads)
        return torch.cuda.max_memory_allocated() - before - gradients
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    # Linux: the high-water mark starts again from now
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    execute(run, problem)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def syncs(run: Run, problem: Problem) -> int | None:
    if not problem.hidden.is_cuda:
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            execute(run, problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def reference(problem: Problem) -> tuple[Tensor, Tensor]:
    """d hidden and d weight of NLL in fp64, chunk by chunk."""
    weight = problem.weight.detach().double()
    d_hidden = torch.zeros_like(problem.hidden, dtype=torch.float64)
    d_weight = torch.zeros_like(weight)
    for rows in problem.target_idx.split(512):
        x = problem.hidden.detach()[rows].double()
        z = (x @ weight.t()).softmax(1)
        y = problem.targets[rows, None]
        z.scatter_(1, y, 0)
        z.scatter_(1, y, -z.sum(1, keepdim=True))  # p - 1 as minus the sum of the others
        d_hidden[rows] = z @ weight
        d_weight.addmm_(z.t(), x)
    return d_hidden, d_weight


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())  # a is promoted to fp64


def examine(name: str, run: Run, problem: Problem, truth: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """All but the time: errors, bits, memory, syncs. Raises what the candidate raises."""
    loss, d_hidden, d_weight = execute(run, problem)
    found: dict[str, Any] = {}
    if loss is not None and NOT_NLL not in name:
        sure = problem.target_idx[problem.p > 0.99]
        found["dX"] = relative(d_hidden, truth[0])
        found["dX*"] = relative(d_hidden[sure], truth[0][sure])
        found["dW"] = relative(d_weight, truth[1])
    first = [tensor.detach().clone() for tensor in (loss, d_hidden, d_weight) if tensor is not None]
    again = [tensor for tensor in execute(run, problem) if tensor is not None]
    found["repeat"] = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    del first, again, loss, d_hidden, d_weight
    return found | {"bytes": extra_memory(run, problem), "syncs": syncs(run, problem)}


def compare(
    problem: Problem, runs: dict[str, Run], rounds: int, show: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """What each candidate costs; a peer that cannot run this shape has failed, the others go on."""
    results: dict[str, dict[str, Any]] = {}
    show("fp64 reference")
    truth = reference(problem)
    for name, run in runs.items():
        show(f"checking {name}")
        try:
            results[name] = examine(name, run, problem, truth)
        except Exception as error:
            if name.startswith("ours") and not isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0] if str(error) else ""
            results[name] = {"failed": f"{type(error).__name__}: {reason}"[:200]}
    del truth
    times: dict[str, list[float]] = {name: [] for name in runs if "failed" not in results[name]}
    for index in range(rounds):
        show(f"round {index + 1} of {rounds}")
        for name in times:
            times[name].append(seconds(runs[name], problem))
    base = "bare products" if problem.hidden.is_cuda else "naive"
    for name, values in times.items():
        results[name]["ms"] = 1e3 * median(values)
        results[name]["rounds_ms"] = [round(1e3 * value, 3) for value in values]
        if base in times:
            ratios = [a / b for a, b in zip(values, times[base], strict=True)]
            results[name]["ratio"] = median(ratios)
    return results


COLUMNS = {"ms": ".2f", "ratio": ".3f", "bytes": ".2f", "syncs": "d"}  # and formats
COLUMNS |= dict.fromkeys(("dX", "dX*", "dW"), ".1e") | {"repeat": ""}


def table(results: dict[str, dict[str, Any]]) -> str:
    title = "".join(f"{'GB' if name == 'bytes' else name:>10}" for name in COLUMNS)
    lines = [f"{'':24}{title}"]
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"{name:24}  {found['failed']}")
            continue
        cells = ""
        for key, form in COLUMNS.items():
            value = found.get(key)
            if key == "bytes" and value is not None:
                value /= 1e9
            cells += f"{'-' if value is None else format(value, form):>10}"
        lines.append(f"{name:24}{cells}")
    return "\n".join(lines)


def clocks() -> str | None:
    figures = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
    query = ["nvidia-smi", f"--query-gpu={figures}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, device = parser.add_argument, "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=device)
    shape = {"metavar": ("N", "D", "V"), "help": "instead of the default shapes"}
    add("--shape", type=int, nargs=3, action="append", **shape)
    full = "also N = 1k, 4k, 64k and a vocabulary of 262144"
    add("--full", action="store_true", help=full)
    mask = "shares of the tokens that are prompt (default: 0 and .5)"
    add("--mask", type=float, nargs="+", default=[0.0, 0.5], help=mask)
    add("--rounds", type=int, default=20, help="timed rounds, interleaved (default: 20)")
    only = "comma-separated beginnings of the candidates' names (default: all)"
    add("--only", default="", help=only)
    out = "JSON file (default: benchmarks/results/loss_kernels_<device>.json)"
    add("--out", type=Path, help=out)
    return parser


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    shapes = args.shape or SHAPES[args.device] + (MORE if args.full else [])
    runs = candidates(args.device, RHOS[args.device])
    if wanted := tuple(name for name in args.only.split(",") if name):
        runs = {name: run for name, run in runs.items() if name.startswith(wanted)}
    out = args.out or Path(__file__).parent / "results" / f"loss_kernels_{args.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = environment()
    for package in ("liger-kernel", "cut-cross-entropy", "trl"):
        if importlib.util.find_spec(package.replace("-", "_")):
            machine["versions"][package] = version(package)
    result: dict[str, Any] = {"environment": machine, "rounds": args.rounds}
    result |= {"implementation": describe_implementation(device, dtype), "cases": []}
    started, cases = time.perf_counter(), list(itertools.product(shapes, args.mask))
    for number, (shape, mask) in enumerate(cases):

        def show(what: str, number: int = number) -> None:
            passed, left = time.perf_counter() - started, ""
            if number:
                minutes = passed / number * (len(cases) - number) / 60
                left = f", about {minutes:.1f} min left"
            line = f"case {number + 1} of {len(cases)}, {passed:.0f} s{left}: {what}"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

        show("data")
        problem = make_problem(*shape, mask, RHOS[args.device], device, dtype)
        p = {"mean": float(problem.p.mean())}
        p |= {f"above_{t:g}": float((problem.p > t).float().mean()) for t in (0.2, 0.5, 0.99)}
        found = compare(problem, runs, args.rounds, show)
        case = {"N,D,V": shape, "mask": mask, "target_tokens": len(problem.target_idx), "p": p}
        result["cases"].append(case | {"clocks": clocks(), "candidates": found})
        title = f"N, D, V = {tuple(shape)}, {mask:.0%} prompt, mean p {p['mean']:.2f}"
        print(f"\r\033[K\n{title}\n{table(found)}", flush=True)
        del problem
        # after every case: a run that is cut short keeps what it has
        temporary = out.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(out)
    print(f"\n{out} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
