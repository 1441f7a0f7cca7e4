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

    A verdict is what `judge` returns, and "data", the version; of a record that names no problem
    base and plus are None, and its `error` says why. `workers` sandboxes run at a time
    (0: one per core), each with `sandbox.Limits`. `progress` is called with 1 after each record.
    Raises ConfigError without `allow_code_exec` or where nothing isolates.
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
            known = [task for task in tasks if not isinstance(task, DataError)]
            needed = {(found.name, problem.task_id): problem for found, problem in known}
            truths = pool.map(
                lambda item: expected_outputs(item[1], cache / item[0][0]), needed.items()
            )
            bar = tqdm(
                truths, "expected outputs", len(needed), unit="problem", mininterval=1.0, delay=5.0
            )
            expected = dict(zip(needed, bar, strict=True))

            def work(item: tuple[tuple[Problems, Problem] | DataError, Record]) -> Record:
                task, record = item
                if isinstance(task, DataError):
                    verdict: Record = {"base": None, "plus": None, "error": str(task)}
                else:
                    wanted = expected[task[0].name, task[1].task_id]
                    verdict = judge(task[1], wanted, record["solution"]) | {"data": task[0].name}
                if progress is not None:
                    progress(1)
                return verdict

            return list(pool.map(work, zip(tasks, records, strict=True)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "adaptsft" / "code"


def _problems_of(
    records: Sequence[Record], data_dir: Path, version: Iterable[str]
) -> list[tuple[Problems, Problem] | DataError]:
    """The problem of each record, with the data set that it is in; or why there is none."""
    families = [_family(record) for record in records]
    named = sorted({family for family in families if isinstance(family, str)})
    data = {family: problems.load(family, data_dir, version) for family in named}
    tasks: list[tuple[Problems, Problem] | DataError] = []
    for family, record in zip(families, records, strict=True):
        if isinstance(family, DataError):
            tasks.append(family)
        elif (problem := data[family].by_id.get(record["task_id"])) is None:
            reason = f"task_id {record['task_id']!r:.80} is not in {data[family].name}; another "
            tasks.append(DataError(f"{reason}--version has it, or none"))
        else:
            tasks.append((data[family], problem))
    return tasks


def _family(record: Any) -> str | DataError:
    if isinstance(record, DataError):  # of the line that it was read from
        return record
    if not isinstance(record, dict):
        return DataError(f"a JSON object is needed, not {record!r:.80}")
    for key in ("task_id", "solution"):
        if not isinstance(record.get(key), str):
            return DataError(
                f"{key!r} must be a text; the record has {', '.join(record) or 'nothing'}"
            )
    family = record["task_id"].partition("/")[0]
    if family not in problems.FAMILIES:
        return DataError(f"task_id {record['task_id']!r:.80} must begin with HumanEval/ or Mbpp/")
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
