"""Results -> tables in the paper's layout: objectives down, benchmarks across."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.compare import against_best
from adaptsft.evals.origin import outdated, score_command
from adaptsft.evals.scored import other_task
from adaptsft.files import distinct

MARK = "~"  # beside a score that is within noise of the best one
OF_SAMPLES = (
    "pass@k: chance that at least one of k answers is right, unbiased (arXiv:2107.03374). Entropy: "
    "of the model's next-token distribution, mean over the tokens that it drew itself, in nats; "
    "not the entropy on the targets of training."
)


@dataclass
class Cell:
    value: float  # fraction, or nats
    se: float | None
    n: int
    notes: list[int] = field(default_factory=list)  # footnotes, from 1
    best: bool = False
    within_noise: bool = False  # of the best
    unit: Literal["percent", "nats"] = "percent"
    # shares of the answers: in which the grader found none, that were cut off at max_tokens, that
    # ended by an error, and that have no score; None: not known
    unparsed: float | None = None
    truncated: float | None = None
    error: float | None = None
    ungraded: float | None = None

    def figure(self) -> str:
        factor, digits = (100, 1) if self.unit == "percent" else (1, 3)
        error = "" if self.se is None else f" ± {factor * self.se:.{digits}f}"
        return f"{factor * self.value:.{digits}f}{error}"

    def text(self) -> str:
        return self.figure() + (f" {MARK}" if self.within_noise else "")


@dataclass
class Table:
    """One group of tasks: their scores, or (`sampled`) what several samples say beside them.

    Cells are found by (row label, column header); a run need not have every column.
    """

    group: str
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    footnotes: list[str]
    compared: bool
    sampled: bool = False
    left_out: list[str] = field(default_factory=list)  # folders, with the reason


def read_results(run: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[tuple[str, str]]]:
    """(folder, result.json) of every scored task below `run`; (group, why) of those left out: not
    scored, or answers have changed since.

    Raises DataError where nothing is left, or a result is of another version.
    """
    found, left_out = list[tuple[Path, dict[str, Any]]](), list[tuple[str, str]]()
    for folder in samples.folders(run):
        asked = samples.read_json(folder / "run.json")
        if not (folder / "result.json").is_file():
            reason = f"{folder}: not scored yet: {score_command(folder)}"
            left_out.append((asked["task"]["group"], reason))
            continue
        result = samples.read_json(folder / "result.json")
        if result.get("schema_version") != 1:
            raise DataError(
                f"{folder / 'result.json'}: schema_version {result.get('schema_version')}, this "
                "version reads 1: score again"
            )
        if reason := outdated(folder, asked, result):
            left_out.append((asked["task"]["group"], reason))
        else:
            found.append((folder, result))
    if not found:
        nothing = f"{run}: no result.json below it: {score_command(run)}"
        raise DataError("; ".join(reason for _, reason in left_out) or nothing)
    return found, left_out


def build(
    runs: list[Path], compare: bool = False, labels: dict[Path, str] | None = None
) -> list[Table]:
    """The tables of some runs: one per group of tasks, and one of its pass@k and entropy where
    there are any.

    Rows are called by `labels`, by default by the runs' objectives. `compare` marks, in every
    column, the best run and those that a paired bootstrap over the items does not separate from it.
    """
    read = {run: read_results(run) for run in runs}
    results = {run: found for run, (found, _) in read.items()}
    labels = labels or _labels(results)
    tables: dict[str, Table] = {}
    # (group, column) -> (row, folder, metric)
    entries: dict[tuple[str, str], list[tuple[str, Path, str]]] = {}
    for run, found in results.items():
        row = labels[run]
        for folder, result in found:
            task = result["task"]
            table = tables.setdefault(task["group"], Table(task["group"], [], [], {}, [], compare))
            if row not in table.rows:
                table.rows.append(row)
            notes = [_footnote(table, f"{task['title']}: {n}") for n in result["protocol_notes"]]
            for header, metric in task["columns"].items():
                if metric not in result["metrics"]:
                    # such as a length-controlled win rate without the file that it is fitted with
                    continue
                column = f"{header} ({_mode(result)})"
                if (row, column) in table.cells:
                    raise DataError(
                        f"{folder}: another task below {run} has the column {column!r} too: give "
                        "one of them `columns` of its own"
                    )
                if column not in table.columns:
                    table.columns.append(column)
                table.cells[row, column] = Cell(
                    **result["metrics"][metric], notes=[*notes], **_shares(result, metric)
                )
                entries.setdefault((task["group"], column), []).append((row, folder, metric))
    if compare:
        for (group, column), compared in entries.items():
            _mark(tables[group], column, compared)
    for table in tables.values():
        _note_unparsed(table)
        _note_ends(table)
    for _, left_out in read.values():
        for group, reason in left_out:
            table = tables.get(group) or next(iter(tables.values()))
            table.left_out.append(reason)
            _footnote(table, f"left out: {reason}")
    ordered = []
    for group, table in tables.items():
        beside = _sampled(group, results, labels, compare)
        ordered += [table, beside] if beside.columns else [table]
    return ordered


def _sampled(
    group: str,
    results: dict[Path, list[tuple[Path, dict[str, Any]]]],
    labels: dict[Path, str],
    compare: bool,
) -> Table:
    """pass@k of the figures in the group's table, and the entropy of the answers."""
    table = Table(f"{group}: pass@k and entropy", [], [], {}, [], compare, sampled=True)
    entries: dict[str, list[tuple[str, Path, str]]] = {}

    def put(row: str, column: str, cell: Cell) -> None:
        table.rows += [row] if row not in table.rows else []
        table.columns += [column] if column not in table.columns else []
        table.cells[row, column] = cell

    for run, found in results.items():
        for folder, result in found:
            task, row = result["task"], labels[run]
            if task["group"] != group:
                continue
            at = _temperature(result)
            for header, metric in task["columns"].items():
                for name in _passes(result, metric):
                    column = f"{header} {name.rpartition('/')[2]} ({at})"
                    put(row, column, Cell(**result["metrics"][name]))
                    entries.setdefault(column, []).append((row, folder, name))
            if (entropy := result.get("entropy")) is not None:
                value, se, n = (entropy[key] for key in ("value", "se", "n"))
                column = f"{task['name']}: entropy, nats per token ({at})"
                put(row, column, Cell(value, se, n, unit="nats"))
    if compare:
        for column, compared in entries.items():
            _mark(table, column, compared)
    return table


def _passes(result: dict[str, Any], metric: str) -> list[str]:
    """The names of pass@k of a metric, by k."""
    names = [name for name in result["metrics"] if name.startswith(f"{metric}/pass@")]
    return sorted(names, key=lambda name: int(name.rpartition("@")[2]))


def _shares(result: dict[str, Any], metric: str) -> dict[str, Any]:
    """Of the answers behind a metric, by the names of a Cell."""
    rates = result["rates"]

    def of_grader(shares: dict[str, float]) -> float | None:
        """lm-eval, the code grader and the judge have metrics with names of their own."""
        others = [share for name, share in shares.items() if name in ("lm-eval", "code", "judge")]
        return shares.get(metric, others[0] if others else None)

    return {
        "unparsed": of_grader(rates["unparsed"]),
        "truncated": rates["truncated"],
        "error": rates["error"],
        "ungraded": of_grader(rates.get("ungraded", {})),
    }


def _note_unparsed(table: Table) -> None:
    """A footnote for every row in which graders found no answer, beside the scores concerned."""
    for row in table.rows:
        concerned = {
            column: cell
            for column in table.columns
            if (cell := table.cells.get((row, column))) and cell.unparsed
        }
        shares = (
            f"{column} {100 * (cell.unparsed or 0):.1f} %" for column, cell in concerned.items()
        )
        text = f"{row}: answers in which the grader found none, or guessed it: {', '.join(shares)}"
        for cell in concerned.values():
            cell.notes.append(_footnote(table, text))


def _note_ends(table: Table) -> None:
    """A footnote for every row with answers that were cut off, ended by an error or have no score:
    the shares, with the columns that have them."""
    for row in table.rows:
        said: dict[str, list[str]] = {}
        for column in table.columns:
            if cell := table.cells.get((row, column)):
                shares = (
                    ("cut off", cell.truncated),
                    ("ended by an error", cell.error),
                    ("without a score", cell.ungraded),
                )
                if text := "; ".join(f"{what} {100 * of:.1f} %" for what, of in shares if of):
                    said.setdefault(text, []).append(column)
        parts = [f"{', '.join(columns)}: {text}" for text, columns in said.items()]
        for column in (column for columns in said.values() for column in columns):
            note = _footnote(table, f"{row}: of the answers: {'. '.join(parts)}")
            table.cells[row, column].notes.append(note)


def _footnote(table: Table, text: str) -> int:
    """The number of a footnote, from 1."""
    if text not in table.footnotes:
        table.footnotes.append(text)
    return table.footnotes.index(text) + 1


def _mark(table: Table, column: str, entries: list[tuple[str, Path, str]]) -> None:
    if len(entries) < 2:
        return
    try:
        found = against_best([(folder, metric) for _, folder, metric in entries])
    except DataError as error:
        number = _footnote(table, f"{column}: not compared: {error}")
        for row, _, _ in entries:
            table.cells[row, column].notes.append(number)
        return
    asked = [samples.read_json(folder / "run.json") for _, folder, _ in entries]
    for i, (row, _, _) in enumerate(entries):
        for note in other_task(asked[0], asked[i], (entries[0][0], row)):
            table.cells[row, column].notes.append(_footnote(table, f"{column}: {note}"))
        cell = table.cells[row, column]
        cell.best = i == found.index
        cell.within_noise = i != found.index and found.same[i]
        if found.items < cell.n:
            text = f"{column}: the best is that on the {found.items} items that all rows have"
            cell.notes.append(_footnote(table, text))


def _mode(result: dict[str, Any]) -> str:
    decoding, n = _temperature(result), result["gen"]["n"]
    return f"{decoding}, mean of {n}" if n > 1 else decoding


def _temperature(result: dict[str, Any]) -> str:
    temperature = result["gen"]["params"].get("temperature")
    if temperature is None:
        return "likelihood"
    return "greedy" if temperature == 0 else f"T={temperature:g}"


def _labels(results: dict[Path, list[tuple[Path, dict[str, Any]]]]) -> dict[Path, str]:
    """A run is called by its objective, with its folder where two have the same objective."""
    objectives = {run: found[0][1]["model"]["objective"] for run, found in results.items()}
    labels = dict(objectives)
    for objective in set(objectives.values()):
        same = [run for run in objectives if objectives[run] == objective]
        if len(same) > 1:
            for run, folder in zip(same, distinct(same), strict=True):
                labels[run] = f"{objective} ({folder})"
    return labels
