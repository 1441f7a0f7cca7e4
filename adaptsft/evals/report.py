"""Third stage: results -> tables in the paper's layout (objectives down, benchmarks across) as
Markdown, CSV and LaTeX, and a bar plot.

`--compare` also marks, in every column, the best run, and those that a paired bootstrap over the
items cannot tell from it.
"""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptsft.drawing import canvas, save
from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.compare import against_best
from adaptsft.files import distinct

MARK = "~"  # beside a score that cannot be told from the best one


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
    """The tables of some runs, one per group of tasks; rows are called by `labels`, or else as
    `_labels` finds.
    """
    results = {run: read_results(run) for run in runs}
    labels = labels or _labels(results)
    tables: dict[str, Table] = {}
    where: dict[
        tuple[str, str], list[tuple[str, Path, str]]
    ] = {}  # (group, column) -> (row, folder, metric)
    for run, found in results.items():
        for folder, result in found:
            task = result["task"]
            table = tables.setdefault(task["group"], Table(task["group"], [], [], {}, [], compare))
            if labels[run] not in table.rows:
                table.rows.append(labels[run])
            notes = []
            for note in result["protocol_notes"]:
                text = f"{task['title']}: {note}"
                if text not in table.footnotes:
                    table.footnotes.append(text)
                notes.append(table.footnotes.index(text) + 1)
            for header, metric in task["columns"].items():
                if metric not in result["metrics"]:
                    # such as a length-controlled win rate without the file that it is fitted with
                    continue
                column = f"{header} ({_mode(result)})"
                if (labels[run], column) in table.cells:
                    raise DataError(
                        f"{folder}: another task below {run} has the column {column!r} too: give "
                        "one of them `columns` of its own"
                    )
                if column not in table.columns:
                    table.columns.append(column)
                table.cells[labels[run], column] = Cell(**result["metrics"][metric], notes=notes)
                where.setdefault((task["group"], column), []).append((labels[run], folder, metric))
    if compare:
        for (group, column), entries in where.items():
            _mark(tables[group], column, entries)
    return list(tables.values())


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
    decoding = "greedy" if temperature == 0 else f"T={temperature:g}"
    return decoding + (f", mean of {result['gen']['n']}" if result["gen"]["n"] > 1 else "")


def _labels(results: dict[Path, list[tuple[Path, dict[str, Any]]]]) -> dict[Path, str]:
    """A run is called by its objective; with its folder where two have the same, which in the
    layout RUN/evals are alike at their end.
    """
    names = {run: found[0][1]["model"]["objective"] for run, found in results.items()}
    alike = {name: [run for run in names if names[run] == name] for name in names.values()}
    folders = {
        run: folder
        for same in alike.values()
        for run, folder in zip(same, distinct(same), strict=True)
    }
    return {
        run: f"{name} ({folders[run]})" if len(alike[name]) > 1 else name
        for run, name in names.items()
    }


def markdown(tables: list[Table]) -> str:
    parts = []
    for table in tables:
        parts += [
            f"## {table.group}",
            "",
            "| objective | " + " | ".join(table.columns) + " |",
            "|---" * (len(table.columns) + 1) + "|",
        ]
        for row in table.rows:
            cells = []
            for column in table.columns:
                cell = table.cells.get((row, column))
                text = "" if cell is None else f"**{cell.text()}**" if cell.best else cell.text()
                cells.append(
                    text
                    + (
                        ""
                        if cell is None or not cell.notes
                        else f" [{', '.join(map(str, cell.notes))}]"
                    )
                )
            parts.append(f"| {row} | " + " | ".join(cells) + " |")
        parts += [
            "",
            _legend(table),
            *[f"[{number}] {note}  " for number, note in enumerate(table.footnotes, 1)],
            "",
        ]
    return "\n".join(parts)


def _legend(table: Table) -> str:
    found = {
        column: sorted({cell.n for (_, name), cell in table.cells.items() if name == column})
        for column in table.columns
    }
    sizes = [
        f"{column} {n[0]}" if len(n) == 1 else f"{column} {n[0]} to {n[-1]}"
        for column, n in found.items()
    ]
    text = "Percent, ± standard error clustered by item. N: " + ", ".join(sizes) + "."
    if table.compared:
        text += f" Bold: best. {MARK}: a paired bootstrap over items cannot tell it from the best (95 %)."
    return text


def comma_separated(tables: list[Table]) -> str:
    """One line per cell: figures for other programs, as fractions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["group", "objective", "column", "value", "se", "n", "best", "within_noise", "notes"]
    )
    for table in tables:
        for (row, column), cell in table.cells.items():
            notes = "; ".join(table.footnotes[number - 1] for number in cell.notes)
            writer.writerow(
                [
                    table.group,
                    row,
                    column,
                    cell.value,
                    cell.se,
                    cell.n,
                    cell.best,
                    cell.within_noise,
                    notes,
                ]
            )
    return buffer.getvalue()


def latex(tables: list[Table]) -> str:
    """booktabs tables."""
    parts = []
    for table in tables:
        parts += [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{_escape(table.group)}. {_escape(_legend(table))}}}",
        ]
        parts += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
        parts += [" & ".join(["Objective", *map(_escape, table.columns)]) + r" \\", r"\midrule"]
        for row in table.rows:
            cells = [_escape(row)]
            for column in table.columns:
                cell = table.cells.get((row, column))
                text = "" if cell is None else _escape(cell.text())
                text = rf"\textbf{{{text}}}" if cell is not None and cell.best else text
                cells.append(
                    text
                    + (
                        ""
                        if cell is None or not cell.notes
                        else rf"$^{{{','.join(map(str, cell.notes))}}}$"
                    )
                )
            parts.append(" & ".join(cells) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}"]
        parts += [
            rf"\\ {{\footnotesize $^{{{number}}}$ {_escape(note)}}}"
            for number, note in enumerate(table.footnotes, 1)
        ]
        parts += [r"\end{table}", ""]
    return "\n".join(parts)


def _escape(text: str) -> str:
    replaced = {"\\": r"\textbackslash{}", "~": r"$\sim$", "^": r"\^{}", "±": r"$\pm$"} | {
        character: f"\\{character}" for character in "&%$#_{}"
    }
    return "".join(replaced.get(character, character) for character in text)


def plot(tables: list[Table], path: Path) -> None:
    """Bars with their standard errors: a panel per group, a cluster per column, a bar per run."""
    height = max(2.4, max(0.3 * len(table.rows) * len(table.columns) for table in tables))
    figure, axes = canvas(len(tables), 1, (8, min(height, 60 / len(tables))))
    for axis, table in zip(axes[:, 0], tables, strict=True):
        for i, row in enumerate(table.rows):
            cells = [
                (j, table.cells[row, column])
                for j, column in enumerate(table.columns)
                if (row, column) in table.cells
            ]
            places = [j + (i + 0.5) / (len(table.rows) + 1) for j, _ in cells]
            errors = [100 * (cell.se or 0.0) for _, cell in cells]
            axis.barh(
                places,
                [100 * cell.value for _, cell in cells],
                0.9 / (len(table.rows) + 1),
                xerr=errors,
                label=row,
                capsize=2,
            )
        axis.set_yticks(
            [j + 0.5 * len(table.rows) / (len(table.rows) + 1) for j in range(len(table.columns))],
            table.columns,
        )
        axis.invert_yaxis()
        axis.set(title=table.group, xlabel="percent")
        axis.legend(frameon=False, fontsize=8)
    save(figure, path)


def write(tables: list[Table], folder: Path) -> None:
    """report.md, .csv, .tex and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.md", markdown(tables)),
        ("report.csv", comma_separated(tables)),
        ("report.tex", latex(tables)),
    ):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text)
        temporary.rename(folder / name)
    plot(tables, folder / "report.png")
