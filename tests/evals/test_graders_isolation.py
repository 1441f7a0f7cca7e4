"""Hostile and endless answers, through the processes that grade them."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from adaptsft.evals.graders.grading import grade_all
from adaptsft.evals.graders.mathematics import paper, robust
from adaptsft.evals.graders.pool import grade_isolated
from adaptsft.evals.graders.registry import GRADERS
from tests.conftest import REPO

ENDLESS = (
    "9^{9^{9^{9}}}",
    "\\sum_{n=1}^{10^{9}} \\frac{\\sin(n^{n})}{n!}",
    "((((((x+1)^{99})^{99}+1)^{99}+y)^{99}+z)^{99}+1)^{99}",
    "(10^{10})!",
)


@pytest.mark.parametrize("name", ["math-paper", "math-robust"])
def test_endless_answers_are_stopped_and_the_others_graded_in_order(name: str) -> None:
    golds = [str(i) for i in range(8)]
    records = [{"gold": gold, "response": f"\\boxed{{{gold}}}"} for gold in golds]
    for i, answer in enumerate(ENDLESS):
        records.insert(2 * i, {"gold": "(x+y)^{77}+1", "response": f"\\boxed{{{answer}}}"})
    done = []
    before = os.times()
    verdicts = grade_isolated(
        replace(GRADERS[name], seconds=1.0), records, workers=2, progress=done.append
    )
    after = os.times()
    stopped = [verdict["timeout"] for verdict in verdicts]
    assert sum(done) == len(records) == len(verdicts)
    assert [verdict["correct"] for verdict in verdicts] == [
        "x" not in record["gold"] for record in records
    ]
    assert any(stopped) and not any(
        stopped[i] for i, record in enumerate(records) if "x" not in record["gold"]
    )
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    # stopped in time; the rest is for starting six processes
    assert cpu < (1.0 + 5.0) * len(ENDLESS)


def payloads(path: Path) -> list[str]:
    opens = f"open({str(path)!r},'w')"
    return [
        opens,
        opens.replace("'", '"'),
        f"__import__('os').system('touch {path}')",
        f"({opens},1)",
        f"[{opens}]",
        f"{{{opens}}}",
        f"x={opens}",
        f"{opens}=1",
        f"1+{opens}",
        f"\\begin{{pmatrix}}{opens}\\end{{pmatrix}}",
        f'eval("{opens}")',
        f"(lambda: {opens})()",
    ]


def test_payloads_are_not_run(tmp_path: Path) -> None:
    """In this process, where nothing would stop them."""
    target = tmp_path / "made"
    for grade in (paper.grade, robust.grade):
        for payload in payloads(target):
            for record in (
                {"response": f"\\boxed{{{payload}}}"},
                {"response": f"The answer is {payload}"},
                {"prediction": f"${payload}$"},
            ):
                for gold in ("7", "x+1", "\\text{abc}", "(1,2)"):
                    grade(record | {"gold": gold})
                    assert not target.exists(), (grade, record, gold)


def test_a_worker_may_not_write_or_start_anything(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom adaptsft.evals.graders.pool import forbid\nsys.addaudithook(forbid)\n"
    )
    for attempt in (
        f"open({str(tmp_path / 'a')!r}, 'w')",
        f"os.open({str(tmp_path / 'a')!r}, os.O_CREAT | os.O_RDWR)",
        "os.system('true')",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.fork()",
        f"os.mkdir({str(tmp_path / 'a')!r})",
    ):
        done = subprocess.run(
            [sys.executable, "-c", program + attempt],
            capture_output=True,
            text=True,
            cwd=REPO,
            check=False,
        )
        assert "PermissionError: a grading process may not" in done.stderr, attempt
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_cannot_grade_is_said() -> None:
    good, bad = {"gold": "1", "prediction": "1"}, {"match_types": ["nonsense"]}
    found = grade_all("math-robust", [good, good | bad, good], workers=1)
    assert [verdict["correct"] for verdict in found] == [True, None, True]
    assert found[1]["error"].startswith("match_types is ['nonsense']; it must be a list of latex")


def test_workers_end_with_their_parent() -> None:
    """kill -9 of the parent while a worker is busy: the kernel's clock ends it."""
    record = json.dumps({"gold": "7", "prediction": ENDLESS[0]}) + "\n"
    program = f"""
import os, signal
from dataclasses import replace
from adaptsft.evals.graders.pool import Worker
from adaptsft.evals.graders.registry import GRADERS
process = Worker(replace(GRADERS["math-paper"], seconds=1.0))._start()
process.stdin.write({record.encode()!r})
process.stdin.flush()
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPO, check=False
    )
    worker = Path("/proc") / done.stdout.strip()
    deadline = time.monotonic() + 600  # a last resort: the worker's own clock ends it
    while worker.exists() and "Z" not in (worker / "stat").read_text().rsplit(")", 1)[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
