"""Scores of the lab's runs by cell and method, the oracle of a cell, what a method lacks to it, and
the learning rate of a method.

A cell is a task of a regime that is scored by itself: a regime, or a source of it where it has
several; from bases of one strength. The oracle of a cell is the best fixed alpha there, a gap what
a method lacks to it (never below 0), regret the mean of its gaps.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from adaptsft.errors import ConfigError

METRICS = {"greedy": "greedy", "sampled": "temperature 1"}  # those of which gaps are counted
OTHERS = "best elsewhere"  # of_other_bases, beside the methods
MORE = {"pass_at_8": "any of 8 samples", "entropy": "entropy in nats per token"}

Results = list[dict[str, Any]]


class Cell(NamedTuple):
    family: str
    regime: str
    source: str  # "" where the regime is one source
    strength: int | None = None  # of the base, in percent; None: pretrained to the end

    def __str__(self) -> str:
        strength = f" @{self.strength}" if self.strength is not None else ""
        source = f": {self.source}" if self.source else ""
        return f"{self.family} {self.regime}{strength}{source}"


class Score(NamedTuple):
    """Over bases and seeds; `error` is the standard error of the mean, None from one run."""

    mean: float
    error: float | None
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (
            f"±{self.error:.2f}".replace("±0.", "±.") if self.error is not None else ""
        )


def score(values: list[float]) -> Score:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Score(statistics.mean(values), error, len(values))


Scores = dict[Cell, dict[str, Score]]  # cell -> method -> score


def base_of(result: dict[str, Any]) -> str:
    """The base of a result, as it is asked for: `0` or `0@90`."""
    strength = result.get("strength")
    return f"{result.get('base', 0)}" + (f"@{strength}" if strength is not None else "")


def by_source(result: dict[str, Any]) -> bool:
    """Whether each part of the run's regime was a source of its own."""
    parts = result.get("parts", {})
    return len(parts) > 1 and set(parts) == set(result.get("sources", {}))


def scores(results: Results, metric: str) -> Scores:
    """`metric` is one of METRICS, MORE, `diversity` or `train_mean_p`; cells without it are left
    out."""
    return {
        cell: {method: score([*found.values()]) for method, found in of.items()}
        for cell, of in _by_run(results, metric).items()
    }


def _by_run(results: Results, metric: str) -> dict[Cell, dict[str, dict[tuple[str, int], float]]]:
    """cell -> method -> (base, seed) -> score."""
    values: dict[Cell, dict[str, dict[tuple[str, int], float]]]
    values = defaultdict(lambda: defaultdict(dict))
    for result in results:
        for source, found in _found(result, metric):
            cell = Cell(result["family"], result["regime"], source, result.get("strength"))
            values[cell][result["method"]][base_of(result), result["seed"]] = found
    return values


def of_other_bases(results: Results, metric: str, fixed: list[str]) -> dict[Cell, Score]:
    """What one gets who takes, for each base, the fixed method that is best from the other bases:
    the oracle without its luck, which picks the best of several after the fact. Only cells with
    several bases have it."""
    found = {}
    for cell, of in _by_run(results, metric).items():
        of = {method: runs for method, runs in of.items() if method in fixed}
        bases = {base for runs in of.values() for base, _ in runs}
        values = []
        for own in sorted(bases) if len(bases) > 1 else ():
            elsewhere = {
                method: [value for (base, _), value in runs.items() if base != own]
                for method, runs in of.items()
            }
            best = max(elsewhere, key=lambda method: statistics.mean(elsewhere[method] or [0.0]))
            values += [value for (base, _), value in of[best].items() if base == own]
        if values:
            found[cell] = score(values)
    return found


def behind(results: Results, metric: str, method: str, others: list[str]) -> dict[Cell, list[str]]:
    """Where `method` is behind others by more than 2 points beyond the standard error of the
    difference, over the runs that start from the same base with the same seed: cell ->
    ["linear 7 ± 4", …], in points, the largest first."""
    found: dict[Cell, list[str]] = {}
    for cell, of in _by_run(results, metric).items():
        ahead = []
        for other in others:
            shared = of.get(method, {}).keys() & of.get(other, {}).keys()
            if not shared or other == method:
                continue
            lead = score([100 * (of[other][run] - of[method][run]) for run in sorted(shared)])
            if lead.mean - (lead.error or 0.0) > 2.0:
                error = f" ± {lead.error:.0f}" if lead.error is not None else ""
                ahead.append((lead.mean, f"{other} {lead.mean:.0f}{error}"))
        if ahead:
            found[cell] = [text for _, text in sorted(ahead, reverse=True)]
    return found


def _found(result: dict[str, Any], metric: str) -> Iterable[tuple[str, float]]:
    if by_source(result):
        for source, part in result["parts"].items():
            part = part | {"train_mean_p": result["sources"][source]}
            if metric in part:
                yield source, part[metric]
        return
    first = next(iter(result.get("parts", {"": {}}).values()))
    value = result[metric] if metric in result else first.get(metric)
    if value is not None:
        yield "", value


def oracle(of: dict[str, Score], fixed: list[str]) -> str | None:
    """The best fixed method of a cell; the first of equals, None where none was run."""
    return max((name for name in fixed if name in of), key=lambda name: of[name].mean, default=None)


def gaps(found: Scores, fixed: list[str]) -> dict[str, dict[Cell, float]]:
    """method -> cell -> gap to the oracle, in points."""
    result: dict[str, dict[Cell, float]] = defaultdict(dict)
    for cell, of in found.items():
        best = oracle(of, fixed)
        for method, value in of.items():
            if best is not None:
                result[method][cell] = max(0.0, 100 * (of[best].mean - value.mean))
    return dict(result)


def tuned(results: Results, tune_on: list[str]) -> tuple[Results, dict[str, float]]:
    """The results of each method's own learning rate, and what was chosen of several: the one with
    the best mean of greedy and temperature 1 over the runs of the families `tune_on` that all
    learning rates of the method have. Raises ConfigError."""
    rates: dict[str, set[float]] = defaultdict(set)
    for result in results:
        if result.get("lr") is not None:
            rates[result["method"]].add(result["lr"])
    chosen = {
        method: _best_rate([one for one in results if one["method"] == method], tune_on)
        for method, of in rates.items()
        if len(of) > 1
    }
    return [
        one for one in results if chosen.get(one["method"], one.get("lr")) == one.get("lr")
    ], chosen


def _best_rate(results: Results, tune_on: list[str]) -> float:
    """Of one method's results."""
    method, rates = results[0]["method"], sorted({one["lr"] for one in results})
    found: dict[tuple[Any, ...], dict[float, float]] = defaultdict(dict)
    for one in results:
        if one["family"] in tune_on:
            place = (one["family"], one["regime"], base_of(one), one["seed"])
            found[place][one["lr"]] = (one["greedy"] + one["sampled"]) / 2
    complete = [of for of in found.values() if len(of) == len(rates)]
    if not complete:
        raise ConfigError(
            f"method {method} has results of the learning rates {', '.join(map(str, rates))}, and "
            f"none of all of them on {', '.join(tune_on) or 'a family that may choose'}: name with "
            "--tune-on families where they were run"
        )
    return max(rates, key=lambda rate: statistics.mean(of[rate] for of in complete))
