"""What `compare` prints, and `report` writes to disagreements.md, about two runs or one."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError, UserError
from adaptsft.evals import samples
from adaptsft.evals.disagreements import (
    Case,
    Compared,
    Row,
    Wanted,
    compare_runs,
    verdict,
)
from adaptsft.evals.pages import Markdown, Page, Terminal, visible
from adaptsft.evals.scored import Record
from adaptsft.files import write_atomically

CHARACTERS, LINES = 800, 12  # of a question and of an answer that are shown
EXTRACTED = 60  # characters of what a grader extracted
NAME = "disagreements.md"


def run_command(options: argparse.Namespace) -> int:
    """`python -m adaptsft.evals compare`."""
    if len(options.runs) > 2:
        raise ConfigError(
            f"compare: takes two runs, or one for its graders, and {len(options.runs)} are named; "
            "`report --compare` has tables of any number"
        )
    tasks = tuple(name for name in (options.tasks or "").split(",") if name)
    wanted = Wanted(options.disagreements, tasks, options.metric, options.kind, options.seed)
    terminal = Terminal(shutil.get_terminal_size((100, 24)).columns)
    found = compare_runs(options.runs, wanted)
    lay_out(terminal, options.runs, found, options.full)
    if options.to:
        page = Markdown()
        lay_out(page, options.runs, found, options.full)
        try:
            options.to.mkdir(parents=True, exist_ok=True)
            write_atomically(options.to / NAME, str(page))
        except OSError as error:
            raise ConfigError(f"--to {options.to}: cannot be written: {error}") from None
    encoding = sys.stdout.encoding or "utf-8"  # not every terminal has every character
    print(str(terminal).encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    if options.to:
        print(f"\n{options.to / NAME}")
    return 0


def markdown(runs: list[Path], wanted: Wanted) -> str:
    """Of one run, or of the first run and each of the others. Where runs cannot be compared, the
    page says why."""
    page = Markdown()
    for pair in [[runs[0], other] for other in runs[1:]] or [runs]:
        try:
            found = compare_runs(pair, wanted)
        except UserError as error:
            page.heading(" against ".join(page.code(str(run)) for run in reversed(pair)), 1)
            page.paragraph(f"Not compared: {page.code(str(error))}")
        else:
            lay_out(page, pair, found)
    return str(page)


def lay_out(
    page: Page, runs: list[Path], found: tuple[list[Compared], list[str]], full: bool = False
) -> None:
    """Put the tables and the disagreements of two runs, or one, on a page: what `compare_runs`
    found. `full`: nothing is shortened."""
    tasks, skipped = found
    two = len(runs) == 2
    models = [page.code(one.result["model"]["objective"]) for one in tasks[0].scored]
    page.heading(" against ".join("BA" if len({*models}) < len(runs) else reversed(models)), 1)
    places = [page.code(str(run)) for run in runs]
    if two:
        named = zip("AB", models, places, strict=True)
        places = [f"{letter}: {model}, {place}" for letter, model, place in named]
    page.paragraph("\n".join(places))
    x, y = "AB" if two else "XY"
    header = ["task", "metric" if two else "graders X, Y", x, y, f"{y} - {x}", "95 %", "items"]
    rows = [[page.code(task.name), *_cells(page, row)] for task in tasks for row in task.rows]
    page.table([*header, f"{x} better", f"{y} better"], rows, names=2)
    page.paragraph(
        f"{x} and {y} in percent, {y} - {x} in points with the 95 % interval of a paired bootstrap "
        f"over the items that both have. {x} better, {y} better: items."
    )
    for reason in skipped:
        page.paragraph(f"Not compared: {page.code(reason)}")
    for task in tasks:
        _task(page, task, full)


def _cells(page: Page, row: Row) -> list[str]:
    found = row.difference
    means = [f"{100 * row.a:.1f}", f"{100 * row.b:.1f}", f"{100 * found.value:+.1f}"]
    interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return [page.code(row.name), *means, interval, *map(str, [found.n, row.a_better, row.b_better])]


def _task(page: Page, task: Compared, full: bool) -> None:
    by = f", runs by {page.code(task.metric)}" if task.metric and task.by_runs else ""
    page.heading(f"{page.code(task.name)}{by}", 2)
    counts = [f"{kind}: {_items(len(items))}" for kind, items in task.kinds.items()]
    page.paragraph("\n".join(counts) or "No disagreement.")
    for note in task.notes:
        page.paragraph(f"Note: {page.code(note)}")
    questions = _questions(task.scored[0].folder)
    for number, case in enumerate(task.cases, 1):
        count, kinds = f"{number} of {len(task.cases)}", "; ".join(case.kinds)
        page.heading(f"{count}: item {page.code(case.item)}: {kinds}", 3)
        _case(page, task, case, questions, full)


def _items(number: int) -> str:
    return "1 item" if number == 1 else f"{number:,} items"


def _case(page: Page, task: Compared, case: Case, questions: dict[str, Record], full: bool) -> None:
    fields, first = questions.get(case.item, {}), case.records[0]
    shown = [str(fields.get("question") or _asked(first.get("prompt"))), fields.get("listed")]
    question = "\n".join(str(part) for part in shown if part)
    page.verbatim("Question:", question if full else _middle_out(question))
    if (gold := first.get("gold")) is not None:
        page.paragraph(f"Gold: {page.code(_text(gold))}")
    two = len(case.records) == 2
    letters = "AB" if two else [""]
    rows = [
        [letter, *cells]
        for letter, record in zip(letters, case.records, strict=True)
        for cells in _verdicts(page, record, full)
    ]
    header = ["run", "metric", "verdict", "extracted"]
    page.table(header if two else header[1:], rows if two else [row[1:] for row in rows])
    for letter, record, mean, run in zip(
        letters, case.records, case.means, task.scored, strict=True
    ):
        answer = _text(record.get("output"))
        end = answer if full else _end(answer)
        label = f"{letter} answered" if two else "Answer"
        about = _about(page, record, len(run.items[case.item]), mean, task.metric)
        if len(end) < len(answer):
            about.append(f"its last {len(end):,} of {len(answer):,} characters")
        page.verbatim(f"{label} ({', '.join(about)}):" if about else f"{label}:", end)


def _about(page: Page, record: Record, n: int, mean: float | None, metric: str | None) -> list[str]:
    about = []
    if n > 1:
        about.append(f"sample {record['sample'] + 1} of {n}")
        if mean is not None and metric is not None:
            about.append(f"their {page.code(metric)} {100 * mean:.1f} %")
    if record.get("finish_reason"):
        about.append(f"ended by {page.code(str(record['finish_reason']))}")
    if record.get("error"):
        about.append(page.code(str(record["error"])))
    if record.get("n_tokens"):
        about.append(f"{record['n_tokens']:,} tokens")
    return about


def _verdicts(page: Page, record: Record, full: bool) -> list[list[str]]:
    """Metric, verdict, extracted: of every metric, and every grader that extracted something."""
    extracted = record.get("extracted")
    by_grader = extracted if isinstance(extracted, dict) else {}
    rows = []
    for name in dict.fromkeys([*record["scores"], *by_grader]):
        said = verdict(record["scores"].get(name))
        if remark := record.get("remarks", {}).get(name):
            said += f" ({page.code(remark)})"
        # lm-eval's has no name
        text = visible(_text(by_grader.get(name) if isinstance(extracted, dict) else extracted))
        if not full and len(text) > EXTRACTED:
            text = text[: EXTRACTED - 1] + "…"
        nothing = "nothing" if name in by_grader else ""
        rows.append([page.code(name), said, page.code(text) if text.strip() else nothing])
    return rows


def _questions(folder: Path) -> dict[str, Record]:
    """Item id -> its fields. Tasks of lm-eval have none: their prompts are in their samples."""
    path = folder / "items.jsonl"
    items = samples.read_lines(path)[0] if path.is_file() else []
    return {item["id"]: item["fields"] for item in items}


def _asked(prompt: Any) -> str:
    """Of a prompt in messages, the last one."""
    return str(prompt[-1].get("content")) if isinstance(prompt, list) and prompt else _text(prompt)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _end(text: str) -> str:
    """The last lines, where an answer usually says its result."""
    return "\n".join(text.split("\n")[-LINES:])[-CHARACTERS:].lstrip("\n")


def _middle_out(text: str) -> str:
    """The beginning, and the end, where a question usually asks."""
    half = CHARACTERS // 2
    if len(text) <= CHARACTERS:
        return text
    left = f"[… {len(text) - 2 * half:,} characters: --full shows them …]"
    return f"{text[:half]}\n{left}\n{text[-half:]}"
