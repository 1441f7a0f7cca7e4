"""Third stage: tables as Markdown, CSV and LaTeX, and a bar plot."""

import argparse
import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

from adaptsft.drawing import canvas, save
from adaptsft.errors import ConfigError
from adaptsft.evals.disagreements import Wanted
from adaptsft.evals.pages import Markdown
from adaptsft.evals.side_by_side import NAME as DISAGREEMENTS, markdown as markdown_of
from adaptsft.evals.tables import MARK, OF_SAMPLES, Cell, Table, build
from adaptsft.files import write_atomically


def markdown(tables: list[Table]) -> str:
    page = Markdown()
    for table in tables:
        page.heading(table.group, 2)
        rows = [
            [row, *(_cell(table.cells.get((row, column))) for column in table.columns)]
            for row in table.rows
        ]
        page.table(["objective", *table.columns], rows, names=1)
        page.paragraph(_legend(table))
        page.paragraph("\n".join(f"[{i}] {note}" for i, note in enumerate(table.footnotes, 1)))
    return str(page)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"**{cell.text()}**" if cell.best else cell.text()
    notes = ", ".join(map(str, cell.notes))
    return f"{text} [{notes}]" if notes else text


def _legend(table: Table) -> str:
    sizes = []
    for column in table.columns:
        n = sorted({cell.n for (_, name), cell in table.cells.items() if name == column})
        sizes.append(f"{column} {n[0]}" if len(n) == 1 else f"{column} {n[0]} to {n[-1]}")
    text = f"Percent, ± standard error clustered by item. N: {', '.join(sizes)}."
    text += f" {OF_SAMPLES}" if table.sampled else ""
    if table.compared:
        text += (
            f" Bold: best. {MARK}: a paired bootstrap over items cannot tell it from the best "
            "(95 %)."
        )
    return text


def comma_separated(tables: list[Table]) -> str:
    """One line per cell: figures for other programs, `percent` as fractions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    figures = ("value", "se", "n", "best", "within_noise", "unit")
    figures += ("unparsed", "truncated", "error", "ungraded")
    writer.writerow(["group", "objective", "column", *figures, "notes"])
    for table in tables:
        for (row, column), cell in table.cells.items():
            notes = "; ".join(table.footnotes[number - 1] for number in cell.notes)
            values = (getattr(cell, name) for name in figures)
            writer.writerow([table.group, row, column, *values, notes])
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
                if cell is None:
                    cells.append("")
                    continue
                text = _escape(cell.text())
                text = rf"\textbf{{{text}}}" if cell.best else text
                notes = ",".join(map(str, cell.notes))
                cells.append(rf"{text}$^{{{notes}}}$" if notes else text)
            parts.append(" & ".join(cells) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}"]
        parts += [
            rf"\\ {{\footnotesize $^{{{number}}}$ {_escape(note)}}}"
            for number, note in enumerate(table.footnotes, 1)
        ]
        parts += [r"\end{table}", ""]
    return "\n".join(parts)


def _escape(text: str) -> str:
    replaced = {"\\": r"\textbackslash{}", "~": r"$\sim$", "^": r"\^{}", "±": r"$\pm$"}
    replaced |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(replaced.get(character, character) for character in text)


def plot(tables: list[Table], path: Path) -> None:
    """Bars with their standard errors: a panel per group, a cluster per column, a bar per run.
    Scores alone: pass@k and entropy are in the tables."""
    tables = [table for table in tables if not table.sampled]
    height = max(2.4, max(0.3 * len(table.rows) * len(table.columns) for table in tables))
    figure, axes = canvas(len(tables), 1, (8, min(height, 60 / len(tables))))
    for axis, table in zip(axes[:, 0], tables, strict=True):
        bar = 1 / (len(table.rows) + 1)  # of a cluster's height, with a gap of one bar
        for i, row in enumerate(table.rows):
            cells = [
                (j, table.cells[row, column])
                for j, column in enumerate(table.columns)
                if (row, column) in table.cells
            ]
            axis.barh(
                [j + (i + 0.5) * bar for j, _ in cells],
                [100 * cell.value for _, cell in cells],
                0.9 * bar,
                xerr=[100 * (cell.se or 0.0) for _, cell in cells],
                label=row,
                capsize=2,
            )
        middles = [j + 0.5 * len(table.rows) * bar for j in range(len(table.columns))]
        axis.set_yticks(middles, table.columns)
        axis.invert_yaxis()
        axis.set(title=table.group, xlabel="percent")
        axis.legend(frameon=False, fontsize=8)
    save(figure, path)


def write(
    tables: list[Table], folder: Path, disagreements: Callable[[], str] | None = None
) -> None:
    """report.md, .csv, .tex and .png; then disagreements.md, where there is what makes its text.

    Raises ConfigError where the folder cannot be written.
    """
    text = markdown(tables)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if disagreements is not None:
            text += f"\n[Answers on which runs or graders disagree]({DISAGREEMENTS})\n"
        write_atomically(folder / "report.md", text)
        write_atomically(folder / "report.csv", comma_separated(tables))
        write_atomically(folder / "report.tex", latex(tables))
        plot(tables, folder / "report.png")
        if disagreements is not None:
            write_atomically(folder / DISAGREEMENTS, disagreements())
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written: {error}: name another folder by --to"
        ) from None


def run_command(options: argparse.Namespace) -> int:
    """`python -m adaptsft.evals report`."""
    if options.compare and options.runs:
        raise ConfigError(
            f"report {' '.join(map(str, options.runs))} --compare …: runs are named before "
            "--compare and behind it: name them all behind it"
        )
    runs = options.compare or options.runs
    if not runs:
        raise ConfigError("report: name the folders of evaluations")
    tables = build(runs, compare=bool(options.compare))
    for reason in (reason for table in tables for reason in table.left_out):
        print(f"adaptsft.evals: left out: {reason}", file=sys.stderr)
    folder, wanted = options.to or runs[0], Wanted(options.disagreements)
    write(tables, folder, (lambda: markdown_of(runs, wanted)) if wanted.number else None)
    print(f"\n{markdown(tables)}\n{folder}/report.md, .csv, .tex, .png")
    if wanted.number:
        print(folder / DISAGREEMENTS)
    return 0
