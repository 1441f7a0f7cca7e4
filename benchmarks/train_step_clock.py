"""Times a run's steps on its device, and shares a step's time out among kinds of kernels."""

import gc
import gzip
import json
import math
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from train_step_settings import WARM_UP  # pyrefly: ignore[missing-import]

# of kernels (GPU) and operators (CPU), by name; where two run at once, the time goes to the kind
# that comes first here
KINDS = {
    # before products: flash's template arguments name cutlass
    "attention": r"flash|fmha|attention",
    "products": r"gemm|nvjet|cutlass|xmma|splitk|gemv|aten::(addmm|mm|bmm)\b",
    # adaptsft_kernels; trl/kernels/logprob_entropy.py
    "loss rows": r"^row_|^_(forward|backward)_kernel",
    "optimizer": r"adam|lpnorm|binaryopscalartensor|foreach_norm",
    "communication": r"nccl|c10d::|gloo",
    "copies and elementwise": r"",
}


class Clock:
    """Notes the time on the device at the end of every step, without waiting for it, and profiles
    the two steps after `steps`."""

    def __init__(self, device: str, steps: int, trace: Path | None = None):
        self.device, self.steps, self.trace = device, steps, trace
        self.ticks: list[Any] = []
        self.profiler: Any = None
        if trace is not None:
            activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
            self.profiler = profile(activities=[activity])
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def tick(self) -> None:
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.ticks.append(event)
        else:
            self.ticks.append(time.perf_counter())
        if self.profiler is not None and len(self.ticks) in (self.steps, self.steps + 2):
            if self.device == "cuda":
                torch.cuda.synchronize()
            if len(self.ticks) == self.steps:
                self.profiler.start()
                self.started = time.perf_counter()
            else:
                self.wall = time.perf_counter() - self.started
                self.profiler.stop()

    def seconds(self, first: int, last: int) -> list[float]:
        """Of the steps between the ticks `first` and `last`."""
        spans = pairwise(self.ticks[first : last + 1])
        if self.device != "cuda":
            return [after - before for before, after in spans]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in spans]

    def result(self) -> dict[str, Any]:
        """Seconds of each timed step, bytes at the highest, and the share of the time that each
        kind of kernel takes."""
        found: dict[str, Any] = {"step_seconds": self.seconds(WARM_UP - 1, self.steps - 1)}
        found |= {"bytes": None, "breakdown": None}
        if self.device == "cuda":
            found["bytes"] = torch.cuda.max_memory_allocated() - self.before
            found["bytes_before"] = self.before
        if self.trace is not None:
            self.profiler.export_chrome_trace(str(self.trace))
            with gzip.open(self.trace, "rt") as file:
                found["breakdown"] = breakdown(json.load(file)["traceEvents"], self.wall)
        return found


def breakdown(events: list[dict[str, Any]], wall: float) -> dict[str, float]:
    """Share of `wall` seconds by kind of kernel, from a Chrome trace (in microseconds); `idle` is
    what is left."""
    done = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    done = done or [e for e in events if e.get("cat") == "cpu_op"]
    shares, spans, covered = {}, [], 0.0
    left = [(event["name"].lower(), event["ts"], event["ts"] + event["dur"]) for event in done]
    for kind, pattern in KINDS.items():
        spans += [(begin, end) for name, begin, end in left if re.search(pattern, name)]
        left = [event for event in left if not re.search(pattern, event[0])]
        before, covered = covered, union(spans)
        shares[kind] = (covered - before) / 1e6 / wall
    return shares | {"idle": 1.0 - covered / 1e6 / wall}


def union(spans: list[tuple[float, float]]) -> float:
    """Length covered by intervals that may overlap."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def gemm_tflops(device: str) -> float:
    """What a product of square random bf16 (CPU: fp32) matrices reaches now, after the runs."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = Clock(device, 2)
    for repeats in (3, 10):  # the first are not timed
        clock.tick()
        for _ in range(repeats):
            a @ b
    clock.tick()
    return 10 * 2 * size**3 / clock.seconds(1, 2)[0] / 1e12
