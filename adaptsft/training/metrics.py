"""What a run tells: a progress line, metrics.jsonl (one object per step) and TensorBoard, all from one batched read per `log.every`.

Every step leaves one fp64 vector on the device: the step's all-reduced statistics, the control it used, and a few scalars. Nothing
waits for the device until `flush` copies the rows since the last flush to the host together.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptsft.distributed.ranks import (
    check_same_state,
    print0,
    raise_on_all_ranks,
    rank,
    world_size,
)
from adaptsft.errors import CheckpointError
from adaptsft.objectives.base import Objective
from adaptsft.objectives.state import ObjectiveState
from adaptsft.statistics.step import BINS, COLUMNS, LOGIT_RANGE, StepStatistics, p_of_bin_edges

# dense bf16 peak, FLOP/s, from the vendors' data sheets
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}
BARS = 64  # of the histograms of p in metrics.jsonl and eval.jsonl; TensorBoard gets all stats.BINS


class Metrics:
    """Collects step rows on the device; rank 0 writes them."""

    def __init__(
        self,
        run: Path,
        names: list[str],
        steps: int,
        first_step: int,
        tensorboard: bool,
        objective: Objective,
        kept_only: bool,
        flops_per_token: float,
        examples_of: Callable[[int], list[str]],
        device: torch.device,
    ):
        self.run, self.names, self.steps, self.device = run, names, steps, device
        self.objective, self.examples_of = objective, examples_of
        self.kept_only, self.flops_per_token = kept_only, flops_per_token
        self.rows: list[Tensor] = []
        self.host: list[dict[str, float]] = []
        self.clock, self.started, self.first_step = (
            time.perf_counter(),
            time.perf_counter(),
            first_step,
        )
        self.skipped_in_a_row = self.longest_skip = 0
        self.file = self.board = None
        if rank() == 0:
            drop_rows_after(run / "metrics.jsonl", first_step)
            drop_rows_after(run / "nonfinite.jsonl", first_step)
            drop_rows_after(
                run / "eval.jsonl", first_step or -1
            )  # a new run evaluates step 0 itself
            self.file = (run / "metrics.jsonl").open("a")
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(
                    str(run / "tensorboard"), purge_step=first_step + 1 if first_step else 0
                )

    def record(
        self,
        step: int,
        statistics: StepStatistics,
        control: ObjectiveState,
        grad_norm: Tensor,
        skipped: Tensor,
        **host: float,
    ) -> None:
        """Keep the row of a finished step (1-based); `host` holds numbers that the host knows anyway."""
        parts = [
            statistics.table.flatten(),
            control.alpha,
            control.lower,
            control.upper,
            torch.stack([grad_norm, skipped]),
        ]
        self.rows.append(torch.cat([part.double() for part in parts]))
        self.host.append({"step": step, **host})

    @contextmanager
    def paused(self):
        """Time in here (evaluating, saving) is not counted as training."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        yield
        self.clock += time.perf_counter() - began

    def flush(self) -> list[dict[str, Any]]:
        """Read the recorded rows, write them on rank 0, and return them. The one place where training waits for the device."""
        if not self.rows:
            return []
        values = torch.stack(self.rows).cpu().numpy()
        check_same_state(
            int(self.host[-1]["step"]), np.nan_to_num(values).tobytes()
        )  # a NaN has many bit patterns
        now = time.perf_counter()
        seconds, self.clock = (now - self.clock) / len(values), now
        rows = [
            self._decode(vector, host, seconds)
            for vector, host in zip(values, self.host, strict=True)
        ]
        self.rows, self.host = [], []
        for row in rows:
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if row["skipped"] else 0
            self.longest_skip = max(self.longest_skip, self.skipped_in_a_row)
        raise_on_all_ranks(lambda: self._write(rows, values[-1]))
        print0(self._line(rows[-1]))
        if not any(row["kept"] for row in rows):
            print0(
                f"  no token was kept in the last {len(rows)} steps, so nothing is learned: widen the threshold"
            )
        return rows

    def _write(self, rows: list[dict[str, Any]], last: np.ndarray) -> None:
        if self.file is None:
            return
        try:
            self.file.writelines(_json(row) for row in rows)
            self.file.flush()
            for row in rows:
                if row["skipped"]:
                    with (self.run / "nonfinite.jsonl").open("a") as file:
                        file.write(
                            _json({"step": row["step"], "examples": self.examples_of(row["step"])})
                        )
            self._board(rows, last)
        except OSError as error:
            raise CheckpointError(
                f"{self.run / 'metrics.jsonl'}: could not be written: {error}. The checkpoints are intact"
            ) from None

    def _decode(self, vector: np.ndarray, host: dict[str, float], seconds: float) -> dict[str, Any]:
        sources = len(self.names)
        width = len(COLUMNS) + 2 * BINS
        table = vector[: sources * width].reshape(sources, width)
        alpha, lower, upper = vector[sources * width : sources * (width + 3)].reshape(3, sources)
        grad_norm, skipped = vector[-2:]
        row: dict[str, Any] = dict(host)
        row |= summary(table.sum(0), self.kept_only)
        row |= {
            "alpha": float(alpha.mean()),
            "lower": float(lower.mean()),
            "upper": float(upper.mean()),
        }
        row |= {"grad_norm": float(grad_norm), "skipped": bool(skipped)}
        row |= {
            "seconds": seconds,
            "tokens_per_second_per_rank": host["all_tokens"] / seconds / world_size(),
        }
        if sources > 1:
            settings = zip(self.names, table, alpha, lower, upper, strict=True)
            row["sources"] = {
                n: summary(t, self.kept_only)
                | {"alpha": float(a), "lower": float(lo), "upper": float(up)}
                for n, t, a, lo, up in settings
            }
        return row

    def _board(self, rows: list[dict[str, Any]], last: np.ndarray) -> None:
        if self.board is None:
            return
        for row in rows:
            flat = {f"train/{k}": v for k, v in row.items() if isinstance(v, float)}
            for name, values in row.get("sources", {}).items():
                flat |= {f"{name}/{k}": v for k, v in values.items() if isinstance(v, float)}
            for tag, value in flat.items():
                self.board.add_scalar(tag, value, row["step"])
        width = len(COLUMNS) + 2 * BINS
        for i, name in enumerate(self.names):
            counts = last[i * width + len(COLUMNS) : i * width + len(COLUMNS) + BINS]
            _add_histogram(self.board, f"p/{name}", counts, rows[-1]["step"])
        self.board.flush()

    def evaluation(self, step: int, names: list[str], statistics: StepStatistics) -> dict[str, Any]:
        """Write and return the held-out figures after `step` steps."""
        table = statistics.table.cpu().numpy()
        row: dict[str, Any] = {"step": step} | summary(table.sum(0), self.kept_only)
        if len(names) > 1:
            row["sources"] = {
                name: summary(t, self.kept_only) for name, t in zip(names, table, strict=True)
            }
        raise_on_all_ranks(
            lambda: self._write_evaluation(row, table.sum(0)[len(COLUMNS) : len(COLUMNS) + BINS])
        )
        print0(
            f"  held out at step {step}: nll {row['nll']:.4f}  mean p {row['mean_p']:.4f}  loss {row['loss']:.4f}  top-1 {row['top1']:.3f}"
        )
        return row

    def tasks(self, step: int, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Write and return the scores {task: {metric: value}}, and the answers kept with them, after `step` steps."""
        scores = {
            f"{task}/{metric}": value
            for task, values in found.items()
            for metric, value in values.items()
        }
        scalars = {name: value for name, value in scores.items() if isinstance(value, float)}
        raise_on_all_ranks(
            lambda: self._write_scores({"step": step, "tasks": found}, {"step": step} | scalars)
        )
        print0(
            f"  tasks at step {step}: "
            + "  ".join(f"{name} {value:.3f}" for name, value in scalars.items())
        )
        return found

    def _write_evaluation(self, row: dict[str, Any], histogram: np.ndarray) -> None:
        self._write_scores(row, row)
        if self.board is not None:
            _add_histogram(self.board, "eval/p", histogram, row["step"])

    def _write_scores(self, row: dict[str, Any], scalars: dict[str, Any]) -> None:
        if self.file is None:
            return
        try:
            with (self.run / "eval.jsonl").open("a") as file:
                file.write(_json(row))
            if self.board is not None:
                for tag, value in scalars.items():
                    if isinstance(value, float):
                        self.board.add_scalar(f"eval/{tag}", value, row["step"])
        except OSError as error:
            raise CheckpointError(
                f"{self.run}: eval.jsonl could not be written: {error}. The checkpoints are intact"
            ) from None

    def _line(self, row: dict[str, Any]) -> str:
        step = row["step"]
        done = step - self.first_step
        eta = (time.perf_counter() - self.started) / done * (self.steps - step)
        parts = [
            f"step {step}/{self.steps} {100 * step / self.steps:3.0f}% ETA {_duration(eta)}",
            f"loss {row['loss']:.4f}",
            f"nll {row['nll']:.4f}",
        ]
        parts.append(f"p {row['mean_p']:.3f}")
        if "alpha" in self.objective.uses:
            parts.append(f"alpha {row['alpha']:.2f}")
        if "lower" in self.objective.uses:
            parts.append(
                f"kept [{row['lower']:.3g}, {row['upper']:.3g}] {100 * row['kept'] / max(row['tokens'], 1):.0f}%"
            )
        parts += [
            f"norm {row['grad_norm']:.3g}",
            f"lr {row['lr']:.2e}",
            f"{row['tokens_per_second_per_rank']:,.0f} tok/s/rank",
        ]
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
            if peak:
                parts.append(
                    f"MFU {100 * row['tokens_per_second_per_rank'] * self.flops_per_token / peak:.0f}%"
                )
            parts.append(f"peak {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB")
        return "  ".join(parts) + ("  SKIPPED: not finite" if row["skipped"] else "")

    def close(self) -> None:
        with suppress(OSError):  # a full disk has been reported where the row was written
            if self.file is not None:
                self.file.close()
            if self.board is not None:
                self.board.close()


def summary(sums: np.ndarray, kept_only: bool) -> dict[str, Any]:
    """Means over the target tokens from a row of StepStatistics.table; `loss` over the kept ones where the objective asks so.

    `p_histogram` counts the tokens in BARS equal steps of the log-odds of p, over stats.LOGIT_RANGE.
    """
    values = dict(zip(COLUMNS, sums.tolist(), strict=False))
    tokens = values["tokens"] or math.nan
    denominator = (values["kept"] or math.nan) if kept_only else tokens
    means = {
        name: values[name] / tokens
        for name in (
            "nll",
            "p",
            "weight",
            "below_0.2",
            "above_0.5",
            "above_0.55",
            "top1",
            "entropy",
        )
    }
    means["mean_p"] = means.pop("p")
    return {
        "loss": values["loss"] / denominator,
        **means,
        "tokens": values["tokens"],
        "kept": values["kept"],
        "sequences": values["sequences"],
        "p_histogram": [
            round(count)
            for count in sums[len(COLUMNS) : len(COLUMNS) + BINS].reshape(BARS, -1).sum(1).tolist()
        ],
    }


def drop_rows_after(path: Path, step: int) -> None:
    """Cut a JSON-lines file back to the rows of steps up to `step`: a resumed run writes the others again. A torn last line goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, TypeError, KeyError):
            continue
        kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.rename(path)


def _json(row: dict[str, Any]) -> str:
    """A line of JSON; numbers that are not finite, which JSON does not know, become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(part) for key, part in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(row)) + "\n"


def _add_histogram(board, tag: str, counts: np.ndarray, step: int) -> None:
    """Histogram of p: the bins are equal steps of log-odds, TensorBoard wants their upper edges in p."""
    edges = p_of_bin_edges()
    low, high = LOGIT_RANGE
    middles = 1 / (1 + np.exp(-(low + (high - low) * (np.arange(BINS) + 0.5) / BINS)))
    total = float((counts * middles).sum())
    squares = float((counts * middles**2).sum())
    board.add_histogram_raw(
        tag, 0.0, 1.0, int(counts.sum()), total, squares, edges[1:], counts.tolist(), step
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
