"""Metrics of every step: metrics.jsonl, a progress line, and the trackers (TensorBoard and others).

The figures of a step stay on the device: its statistics, the objective's state and a few scalars.
Nothing waits for the device until `flush` copies those of all steps since the last one to the host.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import (
    check_same_state,
    print0,
    raise_on_all_ranks,
    rank,
    world_size,
)
from adaptsft.errors import CheckpointError, NonFiniteError
from adaptsft.model.fsdp import ShardedModel
from adaptsft.objectives.state import MOVABLE
from adaptsft.statistics.step import BINS, COLUMNS, StepStatistics
from adaptsft.training.compile_time import CompileTime
from adaptsft.training.flops import flops_per_token
from adaptsft.training.gpus import peak_flops
from adaptsft.training.json_lines import drop_lines_after, json_line
from adaptsft.training.router_figures import expert_loads, router_figures
from adaptsft.training.setup import Run
from adaptsft.training.trackers.base import BARS
from adaptsft.training.trackers.build import Trackers

MEANS = ("nll", "p", "weight", "below_0.2", "above_0.5", "above_0.55", "top1", "entropy")


class Metrics:
    """Collects the figures of steps on the device; rank 0 writes them. A context manager."""

    def __init__(
        self,
        run: Run,
        model: ShardedModel,
        objective: AdaptiveObjective,
        data: TrainingData,
        first: int,
    ):
        """`first`: steps already taken. Lines of later steps, if there are any, are dropped. Raises
        ConfigError on all ranks where a tracker cannot start."""
        self.folder, self.config, self.device, self.data = run.folder, run.config, run.device, data
        self.uses, self.first = objective.function.uses, first
        self.scales_lr = objective.lr_scale is not None
        self.kept_only = run.config.objective.normalizer == "kept"
        self.flops_per_token = flops_per_token(model, data.train)
        self.routers = model.routers
        self.on_device: list[Tensor] = []
        self.on_host: list[dict[str, float]] = []
        self.skipped_in_a_row = self.longest_skip = self.empty_in_a_row = 0
        self.file = None
        if rank() == 0:
            for name in ("metrics.jsonl", "nonfinite.jsonl", "experts.jsonl"):
                drop_lines_after(self.folder / name, first)
            # a new run evaluates step 0 itself
            drop_lines_after(self.folder / "eval.jsonl", first or -1)
            self.file = (self.folder / "metrics.jsonl").open("a")
        self.trackers = raise_on_all_ranks(
            lambda: Trackers(self.config, first) if rank() == 0 else None
        )
        self.compile_time = CompileTime()
        self.clock = self.started = time.perf_counter()

    def __enter__(self) -> "Metrics":
        self.compile_time.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.compile_time.__exit__()
        with suppress(OSError):  # a full disk has been reported where the line was written
            if self.file is not None:
                self.file.close()
        if self.trackers is not None:
            self.trackers.close(failed=exception[0] is not None)

    def record(
        self,
        step: int,
        objective: AdaptiveObjective,
        grad_norm: Tensor,
        skipped: Tensor,
        lr: float,
        micro_batches: list[Any],
    ) -> None:
        """Keep the figures of `step` (0-based), which used the objective as it is."""
        parts = [objective.statistics.table.flatten()]
        parts += [getattr(objective.state, name) for name in MOVABLE]
        scale = objective.lr_scale
        scale = torch.ones_like(grad_norm) if scale is None else scale
        parts.append(torch.stack([grad_norm, skipped, scale]))
        parts.append(objective.statistics.others)
        self.on_device.append(torch.cat([part.double() for part in parts]))
        sampler = self.data.sampler
        known = {"step": step + 1, "lr": lr, "epoch": sampler.epoch(step + 1)}
        known["all_tokens"] = sampler.tokens(step)
        if self.config.train.loss_reduction == "micro_batch":
            known["micro_batches"] = len(micro_batches)
        self.on_host.append(known)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here (evaluating, saving) is not counted as training."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.clock += self.compile_time.take()
        began = time.perf_counter()
        yield
        self.compile_time.take()
        self.clock += time.perf_counter() - began

    def flush(self) -> list[dict[str, Any]]:
        """Wait for the device, read the figures of the steps recorded, write them on rank 0, and
        return them.

        Raises NonFiniteError after train.max_nonfinite_steps skipped steps in a row.
        """
        if not self.on_device:
            return []
        values = torch.stack(self.on_device).cpu().numpy()
        last = int(self.on_host[-1]["step"])
        check_same_state(last, np.nan_to_num(values).tobytes())  # a NaN has many bit patterns
        now = time.perf_counter()
        self.clock += self.compile_time.take()
        seconds, self.clock = (now - self.clock) / len(values), now
        both = zip(values, self.on_host, strict=True)
        lines = [self._decode(vector, known, seconds) for vector, known in both]
        self.on_device, self.on_host = [], []
        for line in lines:
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if line["skipped"] else 0
            self.longest_skip = max(self.longest_skip, self.skipped_in_a_row)
            self.empty_in_a_row = 0 if line["kept"] else self.empty_in_a_row + 1
        raise_on_all_ranks(lambda: self._write(lines, values[-1]))
        print0(self._progress_line(lines[-1]))
        if not any(line["kept"] for line in lines):
            print0(f"warning: {self._nothing_kept(lines[-1])}")
        if self.longest_skip >= self.config.train.max_nonfinite_steps:
            raise NonFiniteError(
                f"by step {last}, {self.longest_skip} steps in a row had a loss or gradient that "
                "is not finite"
            )
        return lines

    def _decode(self, vector: np.ndarray, known: dict[str, float], seconds: float) -> dict:
        sources = len(self.data.names)
        width = len(COLUMNS) + 2 * BINS
        vector, routed = self._parted(vector)
        table = vector[: sources * width].reshape(sources, width)
        state = vector[sources * width : -3].reshape(len(MOVABLE), sources)
        settings = dict(zip(MOVABLE, state, strict=True))
        grad_norm, skipped, lr_scale = vector[-3:]
        line: dict[str, Any] = dict(known) | summary(table.sum(0), self.kept_only)
        line |= {name: float(values.mean()) for name, values in settings.items()}
        line |= router_figures(routed, self.routers, known["all_tokens"])
        line |= {"grad_norm": float(grad_norm), "skipped": bool(skipped), "seconds": seconds}
        if self.scales_lr:
            line["lr_scale"] = float(lr_scale)
        line["tokens_per_second_per_rank"] = known["all_tokens"] / seconds / world_size()
        if sources > 1:
            line["sources"] = {
                name: summary(table[i], self.kept_only)
                | {setting: float(values[i]) for setting, values in settings.items()}
                for i, name in enumerate(self.data.names)
            }
        return line

    def _parted(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(what `_decode` reads of the objective, the sums of the routers)."""
        place = len(vector) - self.routers.size
        return vector[:place], vector[place:]

    def _write(self, lines: list[dict[str, Any]], last: np.ndarray) -> None:
        if self.file is None:
            return
        try:
            self.file.writelines(json_line(line) for line in lines)
            self.file.flush()
            for line in (line for line in lines if line["skipped"]):
                examples = self.data.sampler.where(line["step"] - 1)
                self._append("nonfinite.jsonl", {"step": line["step"], "examples": examples})
            if self.routers.counted:
                loads = expert_loads(self._parted(last)[1], self.routers).round(3).tolist()
                self._append("experts.jsonl", {"step": lines[-1]["step"], "loads": loads})
            if self.trackers is not None:
                self._track(self.trackers, lines, last)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder / 'metrics.jsonl'}: could not be written: {error}. The checkpoints "
                "are intact"
            ) from None

    def _track(self, trackers: Trackers, lines: list[dict[str, Any]], last: np.ndarray) -> None:
        """Histograms are those of the last step alone, `last`."""
        names = self.data.names
        table = last[: len(names) * (len(COLUMNS) + 2 * BINS)]
        sums = zip(names, np.split(table, len(names)), strict=True)
        histograms = {f"p/{name}": _histogram(part) for name, part in sums}
        for line in lines:
            scalars = _floats("train", line)
            for name, values in line.get("sources", {}).items():
                scalars |= _floats(name, values)
            trackers.log("train", line["step"], scalars, histograms if line is lines[-1] else {})
        trackers.flush()

    def evaluation(self, step: int, names: list[str], statistics: StepStatistics) -> dict[str, Any]:
        """Write and return the held-out figures after `step` steps."""
        table = statistics.table.cpu().numpy()
        line: dict[str, Any] = {"step": step} | summary(table.sum(0), self.kept_only)
        if len(names) > 1:
            sources = zip(names, table, strict=True)
            line["sources"] = {name: summary(sums, self.kept_only) for name, sums in sources}
        histograms = {"eval/p": _histogram(table.sum(0))}
        raise_on_all_ranks(lambda: self._write_evaluation(line, line, histograms))
        print0(
            f"  held out at step {step}: nll {line['nll']:.4f}  mean p {line['mean_p']:.4f}  "
            f"loss {line['loss']:.4f}  top-1 {line['top1']:.3f}"
        )
        return line

    def tasks(self, step: int, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Write and return the scores {task: {metric: value}} after `step` steps, and the answers
        kept with them."""
        scores = {
            f"{task}/{metric}": value
            for task, values in found.items()
            for metric, value in values.items()
            if isinstance(value, float)
        }
        line = {"step": step, "tasks": found}
        raise_on_all_ranks(lambda: self._write_evaluation(line, scores, {}))
        shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print0(f"  tasks at step {step}: {shown}")
        return found

    def _write_evaluation(
        self, line: dict[str, Any], values: dict[str, Any], histograms: dict[str, np.ndarray]
    ) -> None:
        if self.file is None:
            return
        try:
            self._append("eval.jsonl", line)
            if self.trackers is not None:
                self.trackers.log("eval", line["step"], _floats("eval", values), histograms)
                self.trackers.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: eval.jsonl could not be written: {error}. The checkpoints are "
                "intact"
            ) from None

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json_line(line))

    def _nothing_kept(self, line: dict[str, Any]) -> str:
        bounds = f" in [{line['lower']:.6g}, {line['upper']:.6g}]" if "lower" in self.uses else ""
        return (
            f"objective.name={self.config.objective.name} has kept no token{bounds} in the last "
            f"{self.empty_in_a_row} steps, where the mean p of the targets was "
            f"{line['mean_p']:.3g}: nothing is learned; widen the threshold"
        )

    def _progress_line(self, line: dict[str, Any]) -> str:
        step, steps, speed = line["step"], self.data.steps, line["tokens_per_second_per_rank"]
        passed = time.perf_counter() - self.started - self.compile_time.seconds
        left = passed / (step - self.first) * (steps - step)
        parts = [f"step {step}/{steps} {100 * step / steps:3.0f}% ETA {_duration(left)}"]
        parts += [f"loss {line['loss']:.4f}", f"nll {line['nll']:.4f}", f"p {line['mean_p']:.3f}"]
        if "alpha" in self.uses:
            parts.append(f"alpha {line['alpha']:.3g}")
        if "lower" in self.uses:
            share = 100 * line["kept"] / max(line["tokens"], 1)
            parts.append(f"kept [{line['lower']:.3g}, {line['upper']:.3g}] {share:.0f}%")
        parts += [
            f"norm {line['grad_norm']:.3g}",
            f"lr {line['lr'] * line.get('lr_scale', 1.0):.2e}",
            f"{speed:,.0f} tok/s/rank",
        ]
        if self.device.type == "cuda":
            if peak := peak_flops(torch.cuda.get_device_name(self.device)):
                parts.append(f"MFU {100 * speed * self.flops_per_token / peak:.0f}%")
            parts.append(f"peak {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB")
        return "  ".join(parts) + ("  SKIPPED: not finite" if line["skipped"] else "")


def summary(sums: np.ndarray, kept_only: bool) -> dict[str, Any]:
    """Means over the target tokens from a row of StepStatistics.table; `loss` is that over the kept
    ones where the objective asks so, 0 where it keeps none.

    `p_histogram` counts the tokens in BARS equal steps of the log-odds of p, over LOGIT_RANGE.
    """
    values = dict(zip(COLUMNS, sums.tolist(), strict=False))
    tokens = values["tokens"] or math.nan
    denominator = (values["kept"] or 1.0) if kept_only and values["tokens"] else tokens
    means = {name: values[name] / tokens for name in MEANS}
    means["mean_p"] = means.pop("p")
    bars = _histogram(sums).reshape(BARS, -1).sum(1).tolist()
    return {
        "loss": values["loss"] / denominator,
        **means,
        "tokens": values["tokens"],
        "kept": values["kept"],
        "sequences": values["sequences"],
        "p_histogram": [round(count) for count in bars],
    }


def _floats(group: str, values: dict[str, Any]) -> dict[str, float]:
    """The floats among the values, as group/name: what a tracker gets."""
    return {f"{group}/{name}": v for name, v in values.items() if isinstance(v, float)}


def _histogram(sums: np.ndarray) -> np.ndarray:
    """Counts of log p, [BINS], in a row of StepStatistics.table."""
    return sums[len(COLUMNS) : len(COLUMNS) + BINS]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
