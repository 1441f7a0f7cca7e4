"""A run folder as the report reads it: whatever is there, and a note for what is missing or
damaged.

The folder may be of a run that is still running, was killed, or was written by somebody else. So
nothing is assumed about a file's content: rows without a step are dropped, values that are no
numbers become NaN.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adaptsft.errors import ConfigError
from adaptsft.files import distinct
from adaptsft.statistics.step import BINS
from adaptsft.training.metrics import BARS

Row = dict[str, Any]
LAST = 0.05  # share of a run's steps that stand for its end
SOURCES = 8  # shown, those with the most tokens
MEANS = ("nll", "mean_p", "below_0.2", "above_0.55", "top1")  # of the tokens


@dataclass
class RunFolder:
    path: Path
    label: str
    config: dict[str, Any]  # by full key
    rows: list[Row]  # metrics.jsonl, one per step
    held_out: list[Row]
    tasks: list[Row]  # {"step", "tasks": {task: {metric: value}}}
    environment: dict[str, Any]
    skipped: list[Row]  # nonfinite.jsonl
    diagnosis: dict[str, Row]  # by source, of the base model
    diagnosis_after: dict[str, Row]
    final: bool  # a Hugging Face folder has been written
    age: float | None  # seconds since metrics.jsonl was written
    notes: list[str] = field(default_factory=list)  # what is missing

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def planned(self) -> int | None:
        """Steps of the whole run; from its share of an epoch where the configuration counts epochs:
        as BatchSampler.steps."""
        steps, epochs = (number(self.config.get(f"train.{key}")) for key in ("max_steps", "epochs"))
        if steps > 0:
            return int(steps)
        epoch = number(self.rows[-1].get("epoch")) if self.rows else math.nan
        batch = number(self.config.get("train.global_batch_size"))
        if not (epoch > 0 and epochs > 0 and batch > 0):
            return None
        examples = round(epochs * self.step * batch / epoch)
        return max(1, math.ceil(examples / batch))

    @property
    def sources(self) -> list[str]:
        """Names of the sources, those with the most tokens first; empty where there is but one."""
        found: dict[str, float] = {}
        for row in self.rows[:50]:
            for name, values in mapping(row.get("sources")).items():
                found[name] = found.get(name, 0.0) + number(mapping(values).get("tokens"))
        return sorted(found, key=lambda name: -found[name])

    def column(self, key: str, source: str | None = None) -> np.ndarray:
        """float64 [steps]; NaN where there is no number."""
        return column(self.rows, key, source)

    @property
    def last_rows(self) -> list[Row]:
        taken = [row for row in self.rows if not row.get("skipped")]
        return taken[-max(1, round(LAST * len(taken))) :]


def number(value: Any) -> float:
    """As a float; NaN for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return math.nan
    return float(value)


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def column(rows: Sequence[Row], key: str, source: str | None = None) -> np.ndarray:
    return np.array([number(row.get(key)) for row in of_source(rows, source)], dtype=float)


def of_source(rows: Sequence[Row], source: str | None) -> Sequence[Row]:
    if source is None:
        return rows
    return [mapping(mapping(row.get("sources")).get(source)) for row in rows]


def histogram(values: Row) -> np.ndarray | None:
    """Tokens in BARS equal steps of log-odds, from a row of metrics or a source of base_stats.json;
    None where it was not recorded."""
    counts = values.get("p_histogram", values.get("histogram"))
    if not isinstance(counts, list) or len(counts) not in (BARS, BINS):
        return None
    found = np.array([number(count) for count in counts]).reshape(BARS, -1).sum(1)
    return found if np.isfinite(found).all() and found.sum() > 0 else None


def pooled(rows: Sequence[Row], source: str | None = None) -> Row:
    """The rows as one: means weighted by tokens, sums of tokens and histograms. {} where nothing is
    in them."""
    found = of_source(rows, source)
    tokens = column(found, "tokens")
    if not np.nansum(tokens) > 0:
        return {}
    pool: Row = {"tokens": float(np.nansum(tokens))}
    for name in MEANS:
        values = column(found, name)
        known = np.isfinite(values) & (tokens > 0)
        mean = (values * tokens)[known].sum() / tokens[known].sum() if known.any() else math.nan
        pool[name] = float(mean)
    counts = [counts for row in found if (counts := histogram(row)) is not None]
    pool["p_histogram"] = np.sum(counts, axis=0).tolist() if counts else None
    return pool


def of_diagnosis(sources: dict[str, Row]) -> Row:
    """A diagnosis as a row with `sources`; a source counts with its tokens in the whole data, not
    in the sample."""
    if not sources:
        return {}
    scaled = {}
    for name, source in sources.items():
        counts = histogram(source)
        scale = number(source.get("examples")) / number(source.get("measured"))
        scaled[name] = source | {
            "tokens": number(source.get("tokens")) * scale,
            "p_histogram": None if counts is None else (counts * scale).tolist(),
        }
    return pooled(list(scaled.values())) | {"sources": scaled}


def open_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Read them all. Raises ConfigError for a path that is no run folder, before anything is
    written."""
    for path in paths:
        if (path / "config.yaml").is_file() or (path / "metrics.jsonl").is_file():
            continue
        what, fix = "is no folder", "give the run_dir of a run of adaptsft.train"
        if path.is_dir():
            what = "holds neither config.yaml nor metrics.jsonl"
            near = [str(file.parent) for file in sorted(path.glob("*/config.yaml"))[:3]]
            fix = f"did you mean {', '.join(near)}?" if near else fix
        raise ConfigError(f"{path}: not a run folder: it {what}; {fix}")
    return [_read(path, label) for path, label in zip(paths, distinct(paths), strict=True)]


def _read(path: Path, label: str) -> RunFolder:
    notes: list[str] = []
    rows = _lines(
        path / "metrics.jsonl",
        notes,
        "no step has been logged yet (log.every), or the file was removed",
    )
    evaluations = _lines(path / "eval.jsonl", notes)
    file = path / "metrics.jsonl"
    run = RunFolder(
        path=path,
        label=label,
        config=_flat(_load(path / "config.yaml", lambda text: yaml.load(text, _NoAliases), notes)),
        rows=rows,
        held_out=[row for row in evaluations if "nll" in row],
        tasks=[row for row in evaluations if mapping(row.get("tasks"))],
        environment=mapping(_load(path / "environment.json", json.loads, notes)),
        skipped=_lines(path / "nonfinite.jsonl", notes),
        diagnosis={},
        diagnosis_after={},
        final=(path / "final" / "config.json").is_file(),
        age=max(0.0, time.time() - file.stat().st_mtime) if file.is_file() else None,
        notes=notes,
    )
    named = run.config.get("controller.base_stats")
    own = path / "diagnosis" / "base_stats.json"
    use_named = isinstance(named, str) and named and not own.is_file()
    run.diagnosis = _diagnosis(Path(named) if use_named else own, notes)
    run.diagnosis_after = _diagnosis(path / "diagnosis_after" / "base_stats.json", notes)
    if rows and histogram(rows[-1]) is None:
        notes.append(
            "metrics.jsonl has no p_histogram (written by an older version): no histograms of p "
            "over the run"
        )
    return run


class _NoAliases(yaml.SafeLoader):
    """A trainer's file has none, and in somebody else's they can unfold without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name), which config.yaml of a run never does")
        return super().compose_node(parent, index)


def _load(path: Path, parse: Callable[[str], Any], notes: list[str]) -> Any:
    try:
        return parse(path.read_text(errors="replace"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        notes.append(f"{path.name} cannot be read: {first}")
    return None


def _lines(path: Path, notes: list[str], missing: str = "") -> list[Row]:
    """Rows in the order of their steps; those that are damaged are counted in `notes`."""
    if not path.is_file():
        notes += [f"{path.name} is missing: {missing}"] if missing else []
        return []
    rows: list[Row] = []
    damaged = 0
    try:
        with path.open(errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict) and 0 <= number(row.get("step")) < 1e12:
                    rows.append(row | {"step": int(row["step"])})
                else:
                    damaged += 1
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error}")
    if damaged:
        notes.append(f"{path.name}: {damaged:,} damaged line{'s' if damaged > 1 else ''} left out")
    elif missing and not rows:
        notes.append(f"{path.name} is empty: {missing}")
    return sorted(rows, key=lambda row: row["step"])


def _diagnosis(path: Path, notes: list[str]) -> dict[str, Row]:
    if not path.is_file():
        return {}
    sources = mapping(mapping(_load(path, json.loads, notes)).get("sources"))
    return {
        name: source
        for name, source in sources.items()
        if number(mapping(source).get("mean_p")) >= 0
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists of them -> {full key: value}."""
    if isinstance(value, dict) and value:
        return {
            full: part
            for key, child in value.items()
            for full, part in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(value, list) and any(isinstance(child, dict) for child in value):
        return {
            full: part
            for i, child in enumerate(value)
            for full, part in _flat(child, f"{prefix}[{i}]").items()
        }
    return {prefix: value} if prefix else {}
