"""HumanEval(+) and MBPP(+): programs are run in the sandbox, and judged as evalplus 0.3.1 does.

`base` passes where all tests of the original benchmark do, `plus` where those and evalplus' further
ones do. Expected outputs are computed by running the data set's own solution, in the same sandbox,
and cached.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.code import problems, sandbox
from adaptsft.evals.code.expected import expected_outputs
from adaptsft.evals.code.problems import Problem, Problems
from adaptsft.evals.code.verdict import judge

Record = dict[str, Any]


def grade(
    records: Sequence[Record],
    *,
    data_dir: Path,
    allow_code_exec: bool,
    version: Iterable[str] = (),
    workers: int = 0,
    cache_dir: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[Record]:
    """Verdicts on `records` ({"task_id", "solution"}), in their order.

    A verdict is what `judge` returns, and "data", the version. `workers` sandboxes run at a time
    (0: one per core), each with `sandbox.Limits`. `progress` is called with 1 after each record.
    Raises ConfigError without `allow_code_exec` or where nothing isolates; DataError for a record
    that names no problem.
    """
    if not allow_code_exec:
        raise ConfigError(
            "the solutions are programs that a model wrote, and grading runs them: add "
            "--allow-code-exec to permit it"
        )
    sandbox.isolation()
    tasks = _problems_of(records, data_dir, version)
    cache = cache_dir or _default_cache()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            needed = {(found.name, problem.task_id): problem for found, problem in tasks}
            truths = pool.map(
                lambda item: expected_outputs(item[1], cache / item[0][0]), needed.items()
            )
            bar = tqdm(
                truths, "expected outputs", len(needed), unit="problem", mininterval=1.0, delay=5.0
            )
            expected = dict(zip(needed, bar, strict=True))

            def work(item: tuple[tuple[Problems, Problem], Record]) -> Record:
                (found, problem), record = item
                verdict = judge(problem, expected[found.name, problem.task_id], record["solution"])
                if progress is not None:
                    progress(1)
                return verdict | {"data": found.name}

            return list(pool.map(work, zip(tasks, records, strict=True)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "adaptsft" / "code"


def _problems_of(
    records: Sequence[Record], data_dir: Path, version: Iterable[str]
) -> list[tuple[Problems, Problem]]:
    """The problem of each record, with the data set that it is in."""
    families = [_family(record, number) for number, record in enumerate(records, 1)]
    data = {family: problems.load(family, data_dir, version) for family in sorted(set(families))}
    tasks = []
    for number, (family, record) in enumerate(zip(families, records, strict=True), 1):
        found = data[family]
        if record["task_id"] not in found.by_id:
            raise DataError(
                f"record {number}: task_id {record['task_id']!r} is not in {found.name}; another "
                "--version has it, or none"
            )
        tasks.append((found, found.by_id[record["task_id"]]))
    return tasks


def _family(record: Record, number: int) -> str:
    for key in ("task_id", "solution"):
        if not isinstance(record.get(key), str):
            raise DataError(
                f"record {number}: {key!r} must be a text; the record has "
                f"{', '.join(record) or 'nothing'}"
            )
    family = record["task_id"].partition("/")[0]
    if family not in problems.FAMILIES:
        raise DataError(
            f"record {number}: task_id {record['task_id']!r} must begin with HumanEval/ or Mbpp/"
        )
    return family


def pass_at_1(verdicts: Iterable[Record]) -> dict[str, float]:
    """Share of passed samples, per task and then over tasks, of base and of plus."""
    by_task = defaultdict(list)
    for verdict in verdicts:
        by_task[verdict["task_id"]].append(verdict)

    def share(tests: str) -> float:
        passed = [sum(v[tests] == "pass" for v in found) / len(found) for found in by_task.values()]
        return sum(passed) / len(passed)

    return {tests: share(tests) for tests in ("base", "plus")}
