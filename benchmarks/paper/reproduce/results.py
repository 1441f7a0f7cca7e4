"""What a reproduction found, beside what the paper prints: rows.json, table.md, table.csv, and the
figure where the table is one."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from adaptsft.config.resolve import load_config
from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.alpaca.annotations import read_annotations
from adaptsft.evals.alpaca.winrate import evaluate as evaluate_win_rate
from benchmarks.lab.fingerprint import commit
from benchmarks.paper.figures import command as figures
from benchmarks.paper.reproduce.stages import evaluation
from benchmarks.paper.reproduce.table import (
    BASE,
    Column,
    Job,
    Table,
    billions,
    columns_of,
    hub_name,
    jobs,
    paper_results,
)

ROUNDED = "/paper_rounding"  # of a metric: the mean over samples of percentages rounded to .1
Row = dict[str, Any]


def collect(name: str, table: Table, out: Path, strict: bool) -> list[Row]:
    """The rows of every model that has results below `out`, in percent, and of what the paper has
    for these models."""
    rows: list[Row] = []
    for model in table.models:
        own = [
            row
            for job in [Job(model, BASE), *jobs(name, table, model, [])]
            for row in job_rows(name, table, job, out, strict)
        ]
        rows += own + (paper_rows(table, model) if own else [])
    return rows


def job_rows(name: str, table: Table, job: Job, out: Path, strict: bool) -> list[Row]:
    """One row per column, and one for the average where all columns of the model are there."""
    folder, found = out / job.model, {}
    for header, column in columns_of(table, job).items():
        metrics = judged(folder, job) if table.against else graded(folder, job, column)
        exact, chosen = (
            metrics.get(column.metric),
            metrics.get(column.metric + (ROUNDED if strict else "")),
        )
        if exact is not None:
            found[header] = {
                "value": 100 * (chosen or exact)["value"],
                "se": _percent(exact["se"]),
                "n": exact["n"],
            }
    if table.average and len(found) == len(columns_of(table, job)) > 1:
        errors = [cell["se"] for cell in found.values()]
        se = None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(errors)
        found[table.average] = {
            "value": sum(cell["value"] for cell in found.values()) / len(found),
            "se": se,
            "n": None,
        }
    more = facts(name, table, job, folder)
    return [
        {
            "model": job.model,
            "objective": more["objective"],
            "column": header,
            **cell,
            "origin": "ours",
            **more,
        }
        for header, cell in found.items()
    ]


def facts(name: str, table: Table, job: Job, folder: Path) -> Row:
    """What a figure needs to know of a job beside its scores."""
    more: Row = {
        "objective": job.objective,
        "job": job.name,
        "billions": billions(hub_name(name, job.model)),
    }
    if job.key == "objective.alpha":
        more["alpha"] = job.value
    elif job.key:
        more |= {"percentile": 100 * job.value, "side": ">=" if "lower" in job.key else "<="}
        more["objective"] = load_config(job.arguments).objective.base
    if table.likelihood:
        place = "diagnosis" if job.objective == BASE else f"{job.name}/likelihood"
        if (folder / place / "base_stats.json").is_file():
            sources = samples.read_json(folder / place / "base_stats.json")["sources"].values()
            tokens = sum(source["tokens"] for source in sources)
            more["mean_p"] = sum(source["mean_p"] * source["tokens"] for source in sources) / tokens
    return more


def graded(folder: Path, job: Job, column: Column) -> dict[str, Any]:
    task = (job.objective == BASE and column.base_task) or column.task
    found = list((evaluation(folder, job) / task).glob("*/result.json"))
    if len(found) > 1:  # a task that decodes otherwise now has left its older answers
        raise DataError(
            f"{found[0].parent.parent}: results of {len(found)} ways of decoding: delete those "
            "that the table is not about"
        )
    return samples.read_json(found[0])["metrics"] if found else {}


def judged(folder: Path, job: Job) -> dict[str, Any]:
    """win_rate, and lc_win_rate where the folder of judgements also holds df_gamed.csv, which it is
    fitted with."""
    file = folder / job.name / "judge" / "annotations.json"
    if not file.is_file():
        return {}
    gamed = file.with_name("df_gamed.csv")
    found = evaluate_win_rate(
        read_annotations(file)[0], df_gamed=gamed if gamed.is_file() else None
    )
    errors = {"win_rate": "standard_error", "lc_win_rate": "lc_standard_error"}
    return {
        metric: {"value": found[metric] / 100, "se": found[error] / 100, "n": found["n_total"]}
        for metric, error in errors.items()
        if found[metric] is not None
    }


def _percent(error: float | None) -> float | None:
    return None if error is None or not math.isfinite(error) else 100 * error


def paper_rows(table: Table, model: str) -> list[Row]:
    """As printed; `footnote` says what is wrong with it."""
    rows, content = [], paper_results(table.results)
    for entry in content["rows"]:
        if entry["model"] != model:
            continue
        for header, value in zip(content["columns"], entry["values"], strict=True):
            if value is None:
                continue
            row = {
                "model": model,
                "objective": entry["objective"],
                "job": entry["objective"],
                "column": header,
                "value": value,
            }
            row |= {"se": None, "n": None, "origin": "paper"}
            erratum = entry.get("erratum")
            if erratum and header == table.average:
                row["footnote"] = (
                    f"printed {erratum['printed']:.2f}; the mean of the printed columns is "
                    f"{erratum['recomputed']:.2f}"
                )
            rows.append(row)
    return rows


def write(name: str, table: Table, out: Path, strict: bool, deviations: list[str]) -> list[Path]:
    """rows.json, table.md, table.csv and the figure, from all that is there. Raises DataError where
    nothing is."""
    rows = collect(name, table, out, strict)
    if not rows:
        raise DataError(f"{out}: no results of {name} below it yet")
    samples.write_json(out / "rows.json", rows)
    written = [out / "rows.json"]
    for file, text in (
        ("table.md", markdown(table, rows, strict, deviations)),
        ("table.csv", comma_separated(rows)),
    ):
        (out / f"{file}.tmp").write_text(text)
        (out / f"{file}.tmp").rename(out / file)
        written.append(out / file)
    return written + (figure(table, out) if table.figure else [])


def markdown(table: Table, rows: list[Row], strict: bool, deviations: list[str]) -> str:
    """One table per model: ours ± standard error, and the paper's in parentheses."""
    notes: list[str] = []

    def mark(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f" [{notes.index(text) + 1}]"

    parts = [f"# {table.title}", "", "Ours ± standard error (the paper's), percent.", ""]
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        headers = [
            h
            for h in [*table.columns, table.average]
            if any(row["column"] == h for row in of_model)
        ]
        cells = {(table_row(row), row["column"], row["origin"]): row for row in of_model}
        means = {table_row(row): row["mean_p"] for row in of_model if "mean_p" in row}
        parts += [
            f"## {model}",
            "",
            "| | " + " | ".join(headers + (["mean p"] if means else [])) + " |",
        ]
        parts += ["|---" * (len(headers) + 1 + bool(means)) + "|"]
        for label in dict.fromkeys(table_row(row) for row in of_model):
            line = []
            for header in headers:
                ours, paper = (cells.get((label, header, origin)) for origin in ("ours", "paper"))
                text = "" if ours is None else f"{ours['value']:.2f}"
                if ours is not None and ours["se"] is not None:
                    text += f" ± {ours['se']:.2f}"
                if paper is not None:
                    footnote = mark(paper["footnote"]) if "footnote" in paper else ""
                    text += f" ({paper['value']:g}{footnote})"
                line.append(text.strip())
            line += [f"{means[label]:.3f}" if label in means else ""] if means else []
            parts.append(f"| {label} | " + " | ".join(line) + " |")
        parts.append("")
    if strict:
        notes.append(
            "--strict: trained as the authors' code did; ours are means of percentages rounded to "
            ".1 where several samples were taken"
        )
    notes += [*table.notes, *deviations]
    paper_note = paper_results(table.results).get("note")
    notes += [f"the paper: {paper_note}"] if paper_note else []
    parts += [f"[{number}] {note}  " for number, note in enumerate(notes, 1)]
    return "\n".join([*parts, "", f"commit {commit()}", ""])


def table_row(row: Row) -> str:
    """The objective, with the point of its sweep; the conditions of a table are columns."""
    if "side" in row:
        return f"{row['objective']} p {row['side']} {row['percentile']:g} %"
    return f"alpha {row['alpha']:g}" if "alpha" in row else row["objective"]


def comma_separated(rows: list[Row]) -> str:
    names = [
        "model",
        "objective",
        "job",
        "column",
        "value",
        "se",
        "n",
        "origin",
        "alpha",
        "percentile",
        "side",
        "billions",
        "mean_p",
        "footnote",
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def figure(table: Table, out: Path) -> list[Path]:
    """By benchmarks.paper.figures, from rows.json: of the averages, or of the column where a model
    has one. What cannot be drawn yet (one model of several sizes, say) is reported on stderr."""
    alone = [
        next(iter(own))
        for own in (columns_of(table, Job(model, BASE)) for model in table.models)
        if len(own) == 1
    ]
    shown = "|".join(dict.fromkeys([table.average, *alone]))
    drawn = (
        figures.main(
            [table.figure, str(out / "rows.json"), "--only", f"column={shown}", "--out", str(out)]
        )
        == 0
    )
    return [out / f"{table.figure}.{suffix}" for suffix in ("png", "pdf")] if drawn else []
