"""HumanEval(+) and MBPP(+): runs solutions in the sandbox and judges what comes out, as evalplus
0.3.1 does.

    python -m adaptsft.evals grade code --data-dir DIR --allow-code-exec < in.jsonl > out.jsonl

`base` passes where all tests of the original benchmark do, `plus` where those and evalplus' further
ones do. Expected outputs are computed by running the data set's own solution, in the same sandbox,
and kept in a cache.
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptsft.errors import ConfigError, DataError, UserError
from adaptsft.evals.code import oracle, problems, sandbox, values
from adaptsft.evals.code.problems import Problem, Problems

Record = dict[str, Any]

# Limits of evalplus 0.3.1 (evalplus/config.py, untrusted_check), in seconds; of CPU here, so that a
# busy machine does not change verdicts.
TEST_SECONDS, TIMES_REFERENCE, ALL_TESTS_SECONDS = 1.0, 4.0, 60.0
LARGEST_OUTPUT = (
    16 * 2**20
)  # bytes of JSON; a test whose expected output is larger is not run, and is named in the results
SLACK = (
    2**16
)  # an output may take this much, and four times what the expected one takes; one that needs more is not equal to it


@dataclass(frozen=True)
class Expected:
    """What the reference solution returned, test by test, base then plus."""

    outputs: list[str | None]  # JSON (values.py); None where it is too large
    seconds: list[float]  # of CPU


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
    """Verdicts on `records` ({"task_id", "solution"}), in their order: what `judge` returns, and
    "data", the version.

    `workers` sandboxes at a time (0: one per core), each with `sandbox.Limits`. `progress` is
    called with 1 after each record. Raises ConfigError without `allow_code_exec` or where nothing
    isolates; DataError for a record that names no problem.
    """
    if not allow_code_exec:
        raise ConfigError(
            "the solutions are programs that a model wrote, and grading runs them: add "
            "--allow-code-exec if you mean to"
        )
    sandbox.isolation()
    data = {
        family: problems.load(family, data_dir, version)
        for family in sorted({_family(row, i) for i, row in enumerate(records)})
    }
    tasks = []
    for number, record in enumerate(records, 1):
        found = data[record["task_id"].partition("/")[0]]
        if record["task_id"] not in found.by_id:
            raise DataError(
                f"record {number}: task_id {record['task_id']!r} is not in {found.name}; another "
                "--version has it, or none"
            )
        tasks.append((found, found.by_id[record["task_id"]]))
    cache = (
        cache_dir
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adaptsft" / "code"
    )
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


def _family(record: Record, index: int) -> str:
    for key in ("task_id", "solution"):
        if not isinstance(record.get(key), str):
            raise DataError(
                f"record {index + 1}: {key!r} must be a text; the record has "
                f"{', '.join(record) or 'nothing'}"
            )
    family = record["task_id"].partition("/")[0]
    if family not in problems.FAMILIES:
        raise DataError(
            f"record {index + 1}: task_id {record['task_id']!r} must begin with HumanEval/ or Mbpp/"
        )
    return family


def judge(problem: Problem, expected: Expected, solution: str) -> Record:
    """Runs one solution on all tests, until the first that it fails.

    Returns task_id; base and plus: "pass" or "fail"; reason: why not, or None; test: number of the
    failed test (base first), or None; timeout: whether time was the reason; untested: tests left
    out because their expected output is too large.
    """
    split = len(problem.base)
    groups = [
        [i for i in indices if expected.outputs[i] is not None]
        for indices in (range(split), range(split, len(expected.outputs)))
    ]
    order = [i for group in groups for i in group]
    tests = [*problem.base, *problem.plus]
    limits = {i: max(TEST_SECONDS, TIMES_REFERENCE * expected.seconds[i]) for i in order}
    budgets = [
        min(
            max(ALL_TESTS_SECONDS, TIMES_REFERENCE * sum(expected.seconds[i] for i in group)),
            sum(limits[i] for i in group),
        )
        + 3
        for group in groups
    ]
    job = _job(
        solution,
        problem,
        [[tests[i] for i in group] for group in groups],
        [[limits[i] for i in g] for g in groups],
        budgets,
    )
    cpu = math.ceil(sum(budgets))
    texts = {i: expected.outputs[i] or "" for i in order}
    passed, atol, reason = 0, problem.atol, None
    try:
        most = [4 * len(texts[i]) + SLACK for i in order]
        with closing(sandbox.run(job, most, sandbox.Limits(cpu=cpu, wall=10.0 * cpu))) as messages:
            for index, message in zip(order, messages, strict=True):
                if passed == len(groups[0]):
                    atol = problem.atol
                reason = _failure(message)
                if reason is None:
                    wanted = values.decode(json.loads(texts[index]))
                    atol = oracle.tolerance(atol, wanted)
                    if not oracle.is_right(
                        problem, tests[index], _decoded(message["value"]), wanted, atol
                    ):
                        reason = "wrong answer"
                if reason is not None:
                    break
                passed += 1
    except sandbox.RunError as error:
        reason = str(error)
    except sandbox.SandboxError as error:
        raise UserError(
            f"{problem.task_id}: the sandbox did not start: {error}; nothing of this was counted. "
            "Try fewer --workers"
        ) from None
    return {
        "task_id": problem.task_id,
        "base": "pass" if passed >= len(groups[0]) else "fail",
        "plus": "pass" if passed == len(order) and reason is None else "fail",
        "reason": reason,
        "test": order[passed] if reason is not None and passed < len(order) else None,
        "timeout": reason == "timeout",
        "untested": len(expected.outputs) - len(order),
    }


def _failure(message: Record) -> str | None:
    """Why a test did not return, in the words of a (hostile) message, or None."""
    if message.get("timeout"):
        return "timeout"
    if "error" in message:
        return f"raised {str(message['error'])[:200]}"
    return None if isinstance(message.get("value"), str) else "output too large"


def _decoded(text: str) -> Any:
    try:
        return values.decode(json.loads(text))
    except (
        Exception
    ):  # nothing that values.encode writes: it was forged, or a number or a nesting out of range
        return values.Opaque("undecodable")


def _job(
    code: str,
    problem: Problem,
    inputs: list[list[Any]],
    limits: list[list[float]],
    load_limits: list[float],
) -> bytes:
    groups = [
        {
            "inputs": [[values.encode(item) for item in arguments] for arguments in group],
            "limits": most,
            "load_limit": load,
        }
        for group, most, load in zip(inputs, limits, load_limits, strict=True)
    ]
    job = {
        "code": code,
        "entry_point": problem.entry_point,
        "groups": groups,
        "most": LARGEST_OUTPUT,
    }
    return json.dumps(job).encode()


def expected_outputs(problem: Problem, folder: Path) -> Expected:
    """From the cache in `folder`, or by running the reference solution.

    A damaged file, or one of other code or Python, is made anew.
    """
    tests = [problem.base, problem.plus]
    job = _job(
        problem.reference, problem, tests, [[60.0] * len(group) for group in tests], [60.0, 60.0]
    )
    rules = b"".join(
        sandbox.CHILD.with_name(name).read_bytes() for name in ("child.py", "values.py")
    )
    key = hashlib.sha256(job + rules + f"{sys.version} {sandbox.ENVIRONMENT}".encode()).hexdigest()
    path = folder / f"{problem.task_id.replace('/', '_')}.json.gz"
    content = _cached(path)
    if content is not None and content["key"] == key:
        return Expected(content["outputs"], content["seconds"])
    count = len(problem.base) + len(problem.plus)
    outputs: list[str | None] = []
    seconds: list[float] = []
    try:
        for message in sandbox.run(
            job, [LARGEST_OUTPUT] * count, sandbox.Limits(memory=2**34, cpu=600, wall=6000.0)
        ):
            reason = _failure(message)
            if reason is not None and "large" not in message:
                raise sandbox.RunError(reason)
            outputs.append(message.get("value"))
            seconds.append(round(float(message["t"]), 6))
    except (sandbox.RunError, sandbox.SandboxError) as error:
        raise UserError(
            f"{problem.task_id}: the data set's own solution failed at test {len(outputs)} of "
            f"{count}: {error}; "
            f"without its outputs nothing can be graded. Is the memory enough?"
        ) from None
    written = json.dumps({"key": key, "outputs": outputs, "seconds": seconds}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_bytes(
        gzip.compress(
            hashlib.sha256(written).hexdigest().encode() + b"\n" + written, compresslevel=1
        )
    )
    partial.replace(path)
    return Expected(outputs, seconds)


def _cached(path: Path) -> Record | None:
    """The content of a cache file: a line with its sha256, then JSON.

    None where it is absent or they do not agree.
    """
    try:
        digest, _, content = gzip.decompress(path.read_bytes()).partition(b"\n")
    except (FileNotFoundError, EOFError, zlib.error, gzip.BadGzipFile):
        return None
    return json.loads(content) if hashlib.sha256(content).hexdigest().encode() == digest else None


def pass_at_1(verdicts: Iterable[Record]) -> dict[str, float]:
    """Share of passed samples, per task and then over tasks, of base and of plus."""
    by_task = defaultdict(list)
    for verdict in verdicts:
        by_task[verdict["task_id"]].append(verdict)
    return {
        tests: sum(
            sum(row[tests] == "pass" for row in rows) / len(rows) for rows in by_task.values()
        )
        / len(by_task)
        for tests in ("base", "plus")
    }


def grade_task(
    records: Sequence[Record], task: Any, grading: Any, progress: Callable[[int], Any]
) -> list[Record]:
    """The grader of the evaluation pipeline:

    `records` hold question and response; the program is taken out of them as evalplus does.

    `task` is an evals.tasks.Task, `grading` an evals.score.Grading. Returns base and plus (bool),
    timeout, and extracted: the program.
    """
    try:
        from adaptsft.evals.code.sanitize import sanitize
    except ImportError as error:
        raise ConfigError(f"{task.name} needs {error.name}: pip install 'adaptsft[eval]'") from None
    if grading.data_dir is None:
        raise ConfigError(
            f"{task.name}: name the folder of its data by --data-dir: the tests are read there"
        )
    version = Path(task.sources[0].file).name.removesuffix(".jsonl.gz")
    family = next(
        family for family, prefix in problems.FAMILIES.items() if version.startswith(prefix)
    )
    by_id = problems.load(family, grading.data_dir, [version]).by_id
    solutions = []
    for record in records:
        text = record["question"] + record["response"] if task.prompt.raw else record["response"]
        solutions.append(
            {
                "task_id": record["task_id"],
                "solution": sanitize(text, by_id[record["task_id"]].entry_point),
            }
        )
    graded = grade(
        solutions,
        data_dir=grading.data_dir,
        allow_code_exec=grading.allow_code_exec,
        version=[version],
        workers=grading.workers,
        progress=progress,
    )
    return [
        {
            "base": row["base"] == "pass",
            "plus": row["plus"] == "pass",
            "timeout": row["timeout"],
            "extracted": solution["solution"],
        }
        for row, solution in zip(graded, solutions, strict=True)
    ]


def grade_command(arguments: list[str]) -> int:
    """`grade code`: JSON lines from stdin to stdout. Returns 0; raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.evals grade code",
        description="Runs programs against the tests of HumanEval+ and MBPP+. Reads JSON lines "
        "with task_id (HumanEval/… or Mbpp/…) and "
        "solution (a whole program: prompt and completion); writes one line for each, in order: "
        "task_id, base and plus (pass or fail), "
        "reason, test, timeout, untested, data.",
        epilog="A solution is run as it is; adaptsft.evals.code.sanitize takes one out of an "
        "answer. How programs are isolated: "
        "docs/code_execution.md",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="folder with HumanEvalPlus-….jsonl.gz and MbppPlus-….jsonl.gz",
    )
    parser.add_argument(
        "--allow-code-exec", action="store_true", help="run the programs; without it nothing is run"
    )
    parser.add_argument(
        "--version",
        nargs="+",
        default=[],
        metavar="V",
        help="v0.1.9, or a file's name without .jsonl.gz; default: the newest",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="programs at a time, up to 4 GiB each (default: one per core)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        help="folder of expected outputs (default: ~/.cache/adaptsft/code)",
    )
    options = parser.parse_args(arguments)
    records = []
    for number, line in enumerate(sys.stdin, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"stdin, line {number}: not JSON: {error}") from None
    with tqdm(
        total=len(records), desc="programs", unit="program", mininterval=1.0, delay=1.0
    ) as bar:
        verdicts = grade(
            records,
            data_dir=options.data_dir,
            allow_code_exec=options.allow_code_exec,
            version=options.version,
            workers=options.workers,
            cache_dir=options.cache_dir,
            progress=bar.update,
        )
    sys.stdout.writelines(json.dumps(verdict) + "\n" for verdict in verdicts)
    for name, count in sorted(Counter(verdict["data"] for verdict in verdicts).items()):
        rows = [verdict for verdict in verdicts if verdict["data"] == name]
        share, timeouts = pass_at_1(rows), sum(row["timeout"] for row in rows)
        print(
            f"{name}: base {100 * share['base']:.1f}  plus {100 * share['plus']:.1f}  pass@1, "
            f"{count} programs for "
            f"{len({row['task_id'] for row in rows})} problems, {timeouts} out of time; isolated "
            f"by {sandbox.isolation()}",
            file=sys.stderr,
        )
    return 0
