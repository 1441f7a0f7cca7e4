"""On which items do two runs of a task, or the graders of one run, disagree: how many, and which of
them to look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adaptsft.errors import ConfigError, DataError, UserError, require_known
from adaptsft.evals import samples
from adaptsft.evals.compare import difference, item_scores, require_same_data
from adaptsft.evals.metrics import Difference
from adaptsft.evals.result import differ
from adaptsft.evals.scored import Record, Scored, folders_of, read, unlike


@dataclass(frozen=True)
class Wanted:
    """What is looked at."""

    number: int = 3  # disagreements of each task
    tasks: tuple[str, ...] = ()  # TASK or TASK/MODE; none: all
    metric: str | None = None  # None: see `decisive`
    kind: Literal["all", "runs", "graders"] = "all"
    seed: int = 0


class Shown(NamedTuple):
    """An item on which something disagrees."""

    weight: float  # how much: the difference of two scores, or the number of samples
    records: tuple[Record, ...]  # the sample of each run that shows it


class Row(NamedTuple):
    """Two scores of the same items: of two runs, or of two graders."""

    name: str
    a: float  # means over the items that both have
    b: float
    difference: Difference
    a_better: int  # items
    b_better: int


class Case(NamedTuple):
    item: str
    kinds: list[str]  # all that it is one of; the first is why it is shown
    records: tuple[Record, ...]
    means: tuple[float | None, ...]  # of the item, by the decisive metric, of each run


@dataclass
class Compared:
    """One task."""

    name: str  # TASK/MODE
    scored: tuple[Scored, ...]
    metric: str | None  # by which runs differ
    rows: list[Row]
    kinds: dict[str, dict[str, Shown]]  # kind -> item -> …
    cases: list[Case]
    notes: list[str] = field(default_factory=list)
    by_runs: bool = True  # whether items on which runs differ were looked for


def compare_runs(runs: list[Path], wanted: Wanted) -> tuple[list[Compared], list[str]]:
    """The tasks that can be compared, and why others cannot.

    One run: its graders against each other; two: B against A. Raises ConfigError for options that
    fit nothing, DataError where no task can be compared.
    """
    if len(runs) == 1 and (wanted.kind == "runs" or wanted.metric):
        option = f"--metric {wanted.metric}" if wanted.metric else "--kind runs"
        raise ConfigError(f"{option}: of one run the graders are compared; name a second run")
    found = folders_of(runs)
    every = list(dict.fromkeys(name for tasks in found for name in tasks))
    known = {part for name in every for part in (name, name.partition("/")[0])}
    for asked in wanted.tasks:
        require_known(f"--tasks {asked}: not evaluated", asked, sorted(known))
    compare = _two_runs if len(runs) == 2 else _one_run
    compared, skipped, errors = list[Compared](), list[str](), list[UserError]()
    for name in every:
        if wanted.tasks and not {name, name.partition("/")[0]} & set(wanted.tasks):
            continue
        if not all(name in tasks for tasks in found):
            skipped.append(f"{name}: only in {'A' if name in found[0] else 'B'}")
            continue
        try:
            compared.append(compare(name, [read(tasks[name]) for tasks in found], wanted))
        except UserError as error:
            errors.append(type(error)(f"{name}: {error}"))
    if not compared:
        raise errors[0] if errors else DataError("; ".join(skipped))
    return compared, [*skipped, *map(str, errors)]


def _two_runs(name: str, scored: list[Scored], wanted: Wanted) -> Compared:
    a, b = scored
    require_same_data(a.folder, b.folder)
    metric = decisive(a, b, wanted.metric)
    metrics = [one for one in a.metrics if one in b.metrics] if wanted.metric is None else [metric]
    rows = [_row(one, item_scores(a.records, one), item_scores(b.records, one)) for one in metrics]
    rows = [row for row in rows if row is not None]
    if metric not in [row.name for row in rows]:
        raise DataError(
            f"{a.folder} and {b.folder}: no item has a {metric} in both: give both the same --limit"
        )
    scores = [item_scores(one.records, metric) for one in scored]
    kinds: dict[str, dict[str, Shown]] = {}
    if wanted.kind != "graders":
        kinds |= _runs_differ(a, b, metric, *scores)
    if wanted.kind != "runs":
        for letter, one in zip("AB", scored, strict=True):
            differing = kinds[f"graders differ in {letter}"] = {}
            for item in (item for item in one.items if all(item in each.items for each in scored)):
                found = [r for r in one.items[item] if differ(r, one.graders)]
                if found:
                    shown = (found[0] if each is one else each.items[item][0] for each in scored)
                    differing[item] = Shown(len(found), tuple(shown))
    cases = _cases(kinds, wanted, scores)
    by_runs = wanted.kind != "graders"
    return Compared(name, (a, b), metric, rows, kinds, cases, unlike(a, b), by_runs)


def decisive(a: Scored, b: Scored, asked: str | None) -> str:
    """The metric by which two runs differ in an item: the one that is asked for, else that of a
    grader that is meant to be right (…-robust), else the first of the report's columns.

    Raises DataError where no metric, or not this one, is in both.
    """
    both = [name for name in a.metrics if name in b.metrics]
    if asked is not None and asked.partition("/pass@")[0] in both:
        most = min(a.result["gen"]["n"], b.result["gen"]["n"])
        k = asked.partition("/pass@")[2]
        if "/" in asked and not (k.isdecimal() and 1 <= int(k) <= most):
            raise DataError(f"--metric {asked}: k of pass@k is from 1 to {most} samples here")
        return asked
    if asked is not None or not both:
        what = "no metric is" if asked is None else f"--metric {asked}: it is not"
        listed = [f"{one.folder} has {', '.join(one.metrics) or 'none'}" for one in (a, b)]
        raise DataError(f"{what} in both: {'; '.join(listed)}")
    columns = [name for name in a.result["task"]["columns"].values() if name in both]
    return next((name for name in both if name.endswith("-robust")), (columns or both)[0])


def _runs_differ(
    a: Scored, b: Scored, metric: str, left: dict[str, float], right: dict[str, float]
) -> dict[str, dict[str, Shown]]:
    """Items on which one run is better. Of several samples the best of one run and the worst of the
    other are shown."""
    single = all(len(records) == 1 for one in (a, b) for records in one.items.values())
    binary = single and {*left.values(), *right.values()} <= {0.0, 1.0}
    names = ("A right, B wrong", "A wrong, B right") if binary else ("A better", "B better")
    kinds: dict[str, dict[str, Shown]] = {name: {} for name in names}
    base = metric.partition("/")[0]

    def score(record: Record) -> float:
        return float(record["scores"][base])

    for item in (item for item in left if item in right and left[item] != right[item]):
        a_better = left[item] > right[item]
        pick = (max, min) if a_better else (min, max)
        shown = (
            choose((r for r in one.items[item] if r["scores"].get(base) is not None), key=score)
            for choose, one in zip(pick, (a, b), strict=True)
        )
        weight = abs(left[item] - right[item])
        kinds[names[0 if a_better else 1]][item] = Shown(weight, tuple(shown))
    return kinds


def _one_run(name: str, scored: list[Scored], wanted: Wanted) -> Compared:
    """The graders of a run; a kind is what each of them said."""
    (run,) = scored
    graders = run.graders
    if len(graders) < 2:
        raise DataError(
            f"{run.folder}: one run is compared with itself by its graders, and it has "
            f"{', '.join(graders) or 'none that says right or wrong'}: name a second run"
        )
    scores = {grader: item_scores(run.records, grader) for grader in graders}
    pairs = combinations(graders, 2)
    rows = [_row(f"{x}, {y}", scores[x], scores[y]) for x, y in pairs]
    kinds: dict[str, dict[str, Shown]] = {}
    for item, records in run.items.items():
        for record in records:
            if differ(record, graders):
                said = ", ".join(f"{one} {verdict(record['scores'].get(one))}" for one in graders)
                first = kinds.setdefault(said, {}).get(item, Shown(0, (record,)))
                kinds[said][item] = first._replace(weight=first.weight + 1)
    cases = _cases(kinds, wanted, [{}])
    return Compared(name, (run,), None, [row for row in rows if row], kinds, cases)


def verdict(score: Any) -> str:
    if score is None:
        return "no score"
    return ("wrong", "right")[score] if isinstance(score, bool) else f"{score:.3f}"


def _row(name: str, a: dict[str, float], b: dict[str, float]) -> Row | None:
    found = difference(a, b)
    if found is None:
        return None
    pairs = [(a[item], b[item]) for item in a if item in b]
    return Row(
        name,
        sum(left for left, _ in pairs) / len(pairs),
        sum(right for _, right in pairs) / len(pairs),
        found,
        sum(left > right for left, right in pairs),
        sum(left < right for left, right in pairs),
    )


def _cases(
    kinds: Mapping[str, Mapping[str, Shown]], wanted: Wanted, scores: list[dict[str, float]]
) -> list[Case]:
    """`number` items: one of each kind in turn, of a kind those that disagree most, and of as much
    in an order drawn by the seed."""

    def order(items: Mapping[str, Shown]) -> list[str]:
        drawn = {item: samples.digest(wanted.seed, item) for item in items}
        return sorted(items, key=lambda item: (-items[item].weight, drawn[item]))

    queues = {kind: order(items) for kind, items in kinds.items()}
    cases: dict[str, Case] = {}
    for kind in cycle(queues):
        queues[kind] = [item for item in queues[kind] if item not in cases]
        if len(cases) >= wanted.number or not any(queues.values()):
            break
        if queues[kind]:
            item = queues[kind][0]
            others = [name for name in kinds if name != kind and item in kinds[name]]
            means = tuple(one.get(item) for one in scores)
            cases[item] = Case(item, [kind, *others], kinds[kind][item].records, means)
    return list(cases.values())
