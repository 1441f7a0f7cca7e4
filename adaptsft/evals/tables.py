"""Results -> tables in the paper's layout: objectives down, benchmarks across."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.compare import against_best
from adaptsft.files import distinct

MARK = "~"  # beside a score that is within noise of the best one


@dataclass
class Cell:
    value: float  # fraction
    se: float | None
    n: int
    notes: list[int] = field(default_factory=list)  # footnotes, from 1
    best: bool = False
    within_noise: bool = False  # of the best

    def text(self) -> str:
        error = "" if self.se is None else f" ± {100 * self.se:.1f}"
        return f"{100 * self.value:.1f}{error}" + (f" {MARK}" if self.within_noise else "")


@dataclass
class Table:
    """One group of tasks.

    Cells are found by (row label, column header); a run need not have every column.
    """

    group: str
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    footnotes: list[str]
    compared: bool


def read_results(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, result.json) of every scored task below `run`.

    Raises DataError where there is none, or one of another version.
    """
    found = [
        (folder, samples.read_json(folder / "result.json"))
        for folder in samples.folders(run)
        if (folder / "result.json").is_file()
    ]
    if not found:
        raise DataError(
            f"{run}: no result.json below it: run `python -m adaptsft.evals score {run}` first"
        )
    for folder, result in found:
        if result.get("schema_version") != 1:
            raise DataError(
                f"{folder / 'result.json'}: schema_version {result.get('schema_version')}, this "
                "version reads 1: score again"
            )
    return found


def build(
    runs: list[Path], compare: bool = False, labels: dict[Path, str] | None = None
) -> list[Table]:
    """The tables of some runs, one per group of tasks.

    Rows are called by `labels`, by default by the runs' objectives. `compare` marks, in every
    column, the best run and those that a paired bootstrap over the items does not separate from it.
    """
    results = {run: read_results(run) for run in runs}
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
                table.cells[row, column] = Cell(**result["metrics"][metric], notes=notes)
                entries.setdefault((task["group"], column), []).append((row, folder, metric))
    if compare:
        for (group, column), compared in entries.items():
            _mark(tables[group], column, compared)
    return list(tables.values())


def _footnote(table: Table, text: str) -> int:
    """The number of a footnote, from 1."""
    if text not in table.footnotes:
        table.footnotes.append(text)
    return table.footnotes.index(text) + 1


def _mark(table: Table, column: str, entries: list[tuple[str, Path, str]]) -> None:
    if len(entries) < 2:
        return
    best, same = against_best([(folder, metric) for _, folder, metric in entries])
    for i, (row, _, _) in enumerate(entries):
        table.cells[row, column].best = i == best
        table.cells[row, column].within_noise = i != best and same[i]


def _mode(result: dict[str, Any]) -> str:
    params = result["gen"]["params"]
    temperature = params.get("temperature")
    if temperature is None:
        return "likelihood"
    decoding, n = "greedy" if temperature == 0 else f"T={temperature:g}", result["gen"]["n"]
    return f"{decoding}, mean of {n}" if n > 1 else decoding


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
