"""The code grader of the evaluation pipeline: programs are taken out of answers, then run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError
from adaptsft.evals.code import problems
from adaptsft.evals.code.evalplus import grade
from adaptsft.evals.code.extract import SECONDS, OutOfTime
from adaptsft.evals.graders.grading import require_packages
from adaptsft.evals.tasks import Task


def grade_answers(
    records: Sequence[dict[str, Any]],
    task: Task,
    *,
    data_dir: Path | None,
    allow_code_exec: bool,
    workers: int,
    progress: Callable[[int], Any],
) -> list[dict[str, Any]]:
    """`records` hold question and response; the program is taken out of them as evalplus does.

    Returns base and plus (bool), timeout, and extracted: the program. An answer in which it is not
    found in time fails, and its `error` says so.
    """
    require_packages(["code"])
    from adaptsft.evals.code.sanitize import sanitize  # its parser, tree-sitter, is optional

    if data_dir is None:
        raise ConfigError(
            f"{task.name}: name the folder of its data by --data-dir: the tests are read there"
        )
    version = Path(task.sources[0].file).name.removesuffix(".jsonl.gz")
    family = next(
        family for family, prefix in problems.FAMILIES.items() if version.startswith(prefix)
    )
    by_id = problems.load(family, data_dir, [version]).by_id
    solutions, errors = [], []
    for record in records:
        text = record["question"] + record["response"] if task.prompt.raw else record["response"]
        try:
            entry_point = by_id[record["task_id"]].entry_point
            program, error = sanitize(text, entry_point, SECONDS), None
        except OutOfTime:
            program, error = "", f"no program was found in {SECONDS:g} s of CPU"
        solutions.append({"task_id": record["task_id"], "solution": program})
        errors.append(error)
    graded = grade(
        solutions,
        data_dir=data_dir,
        allow_code_exec=allow_code_exec,
        version=[version],
        workers=workers,
        progress=progress,
    )
    return [
        {
            "base": verdict["base"] == "pass",
            "plus": verdict["plus"] == "pass",
            "timeout": verdict["timeout"] or error is not None,
            "extracted": solution["solution"],
        }
        | ({} if error is None else {"error": error})
        for verdict, solution, error in zip(graded, solutions, errors, strict=True)
    ]
