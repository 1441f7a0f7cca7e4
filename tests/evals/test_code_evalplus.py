"""HumanEval+ and MBPP+: programs that are run, and the published verdicts."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.code import evalplus, problems
from adaptsft.evals.code.answers import grade_answers
from adaptsft.evals.code.expected import expected_outputs
from adaptsft.evals.code.problems import Problem
from adaptsft.evals.code.verdict import judge
from adaptsft.evals.tasks import Prompt, Source, Task
from tests.evals.conftest import DOUBLE, executes
from tests.evals.pipeline import evals

RIGHT = "def double(x): return [x + x]"
ONLY_BASE = "def double(x): return [x + x] if x > 0 and x == int(x) else None"


@executes
def test_verdicts(data_dir: Path) -> None:
    slow = "def double(x):\n while x == -1: pass\n return [2 * x]"
    solutions = [
        RIGHT,
        ONLY_BASE,
        "def double(x): return 2 * x",
        "def other(x): return x",
        "def double(x): 1 / 0",
        slow,
        "x = = 1",
    ]
    records = [{"task_id": "HumanEval/0", "solution": solution} for solution in solutions]
    ticks = []
    found = evalplus.grade(
        records,
        data_dir=data_dir,
        allow_code_exec=True,
        workers=2,
        cache_dir=data_dir / "cache",
        progress=ticks.append,
    )
    assert [(row["base"], row["plus"], row["test"]) for row in found] == [
        ("pass", "pass", None),
        ("pass", "fail", 2),
        ("fail", "fail", 0),
        ("fail", "fail", 0),
        ("fail", "fail", 0),
        ("pass", "fail", 2),
        ("fail", "fail", 0),
    ]
    reasons = [row["reason"] for row in found]
    assert reasons[:3] == [None, "wrong answer", "wrong answer"] and reasons[5] == "timeout"
    assert [str(reason).split(":")[0] for reason in reasons[3:5]] == [
        "raised KeyError",
        "raised ZeroDivisionError",
    ]
    assert [row["timeout"] for row in found] == [False] * 5 + [True, False]
    assert {row["data"] for row in found} == {"HumanEvalPlus-v9.9.10"} and sum(ticks) == len(
        records
    )
    assert evalplus.pass_at_1(found) == {"base": 3 / 7, "plus": 1 / 7}


@executes
def test_the_module_is_fresh_for_each_set_of_tests(tmp_path: Path) -> None:
    """As in evalplus, which runs base and plus in processes of their own."""
    counting = "calls = []\ndef f(x):\n calls.append(x)\n return len(calls)"
    problem = Problem("HumanEval/0", "f", "def f(x): return x", [[1], [2]], [[1], [2]], 0)
    assert judge(problem, expected_outputs(problem, tmp_path), counting)["plus"] == "pass"


@executes
def test_expected_outputs_are_kept_and_checked(tmp_path: Path) -> None:
    problem = Problem(
        "HumanEval/0",
        "f",
        "import time\ndef f(x): return [time.perf_counter(), {x: 1}]",
        [[1]],
        [],
        0,
    )
    first = expected_outputs(problem, tmp_path)
    assert expected_outputs(problem, tmp_path) == first  # from the file: the clock has moved
    (file,) = tmp_path.iterdir()
    content = gzip.decompress(file.read_bytes())
    for damaged in (
        gzip.compress(content.replace(b'\\"v\\": [[', b'\\"v\\": [[[')),
        file.read_bytes()[:50],
        b"no gzip",
    ):
        file.write_bytes(damaged)
        assert expected_outputs(problem, tmp_path) != first
    assert list(tmp_path.iterdir()) == [file]


@executes
def test_an_expected_output_too_large_is_left_out_and_counted(tmp_path: Path) -> None:
    problem = Problem("HumanEval/0", "f", "def f(x): return 'x' * x", [[3], [17 * 2**20]], [[4]], 0)
    expected = expected_outputs(problem, tmp_path)
    assert [output is None for output in expected.outputs] == [False, True, False]
    verdict = judge(problem, expected, "def f(x): return x * 'x'")
    assert (verdict["plus"], verdict["untested"]) == ("pass", 1)
    assert judge(problem, expected, "def f(x): return 'xxx'")["test"] == 2


@pytest.fixture
def command(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """`grade code` on some lines; returns its exit code, stdout and stderr."""

    def run(lines: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        capsys.readouterr()
        places = ["--data-dir", data_dir, "--cache-dir", data_dir / "cache"]
        code = evals("grade", "code", *places, *options)
        return code, *capsys.readouterr()

    return run


@executes
def test_command(command: Callable[..., tuple[int, str, str]]) -> None:
    lines = "".join(
        json.dumps({"task_id": "HumanEval/0", "solution": solution}) + "\n"
        for solution in (ONLY_BASE, RIGHT)
    )
    code, out, err = command(lines, "--allow-code-exec", "--version", "v9.9.9")
    assert code == 0
    verdicts = [json.loads(line) for line in out.splitlines()]
    assert [(verdict["task_id"], verdict["base"], verdict["plus"]) for verdict in verdicts] == [
        ("HumanEval/0", "pass", "fail"),
        ("HumanEval/0", "pass", "pass"),
    ]
    summary = "base 100.0  plus 50.0  pass@1, 2 programs for 1 problems, 0 out of time"
    assert f"HumanEvalPlus-v9.9.9: {summary}" in err


RUN = ["--allow-code-exec"]


@executes
def test_every_line_of_the_command_has_its_verdict(command: Callable[..., tuple]) -> None:
    right = json.dumps({"task_id": "HumanEval/0", "solution": RIGHT})
    lines = {
        right: None,
        "{": "not JSON",
        "": "the line is blank",
        "[1]": "a JSON object is needed",
        '{"task_id": "HumanEval/0"}': "'solution' must be a text",
        '{"task_id": "Other/0", "solution": ""}': "must begin with HumanEval/ or Mbpp/",
        '{"task_id": "HumanEval/9", "solution": ""}': "is not in HumanEvalPlus-v9",
        json.dumps({"task_id": "HumanEval/0", "solution": RIGHT + "# \ud800"}): None,
    }
    code, out, err = command("".join(f"{line}\n" for line in lines), *RUN)
    verdicts = [json.loads(line) for line in out.splitlines()]
    for verdict, reason in zip(verdicts, lines.values(), strict=True):
        assert (reason or "") in verdict.get("error", "") and (verdict["base"] is None) == bool(
            reason
        )
    assert verdicts[0]["plus"] == "pass"
    assert "surrogates not allowed" in verdicts[-1]["reason"], "as where the program is run"
    assert code == DataError.exit_code and "5 of 8 lines could not be graded" in err
    code, out, err = command(f"{right}\n")
    assert (code, out) == (ConfigError.exit_code, "") and "add --allow-code-exec" in err


@executes
def test_published_verdicts(shared_data: Path, tmp_path: Path) -> None:
    """A few quick problems of those that benchmarks/evals_code.py compares in full."""
    file = shared_data.parent / "cases" / "evalplus_published_verdicts.json"
    cases = [case for case in json.loads(file.read_text())["cases"] if len(case["solution"]) < 2500]
    wanted = {f"HumanEval/{n}" for n in (11, 13, 19, 34)} | {
        f"Mbpp/{n}" for n in (2, 3, 7, 9, 62, 138)
    }
    chosen = [case for case in cases if case["task_id"] in wanted]
    assert {case["plus"] for case in chosen} == {"pass", "fail"} and len(chosen) >= 8
    found = evalplus.grade(
        chosen,
        data_dir=shared_data,
        allow_code_exec=True,
        version=["v0.1.9", "MbppPlus-v0.1.0"],
        workers=2,
        cache_dir=tmp_path,
    )
    assert [(row["base"], row["plus"]) for row in found] == [
        (case["base"], case["plus"]) for case in chosen
    ]


@executes
def test_reference_solutions_pass(shared_data: Path, tmp_path: Path) -> None:
    version = "HumanEvalPlus-Mini-v0.1.10"
    by_id = problems.load("HumanEval", shared_data, [version]).by_id
    records = [
        {"task_id": f"HumanEval/{n}", "solution": by_id[f"HumanEval/{n}"].reference}
        for n in (0, 2, 4, 32, 53, 111)
    ]
    found = evalplus.grade(
        records,
        data_dir=shared_data,
        allow_code_exec=True,
        version=[version],
        workers=2,
        cache_dir=tmp_path,
    )
    assert {row["plus"] for row in found} == {"pass"}


@executes
def test_in_the_pipeline_the_program_is_taken_out_of_the_answer(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(data_dir / "cache"))
    source = Source(file="code/HumanEvalPlus-v9.9.9.jsonl.gz")
    task = Task(name="t", sources=[source], prompt=Prompt(raw=True))
    how: dict[str, Any] = {"data_dir": data_dir, "allow_code_exec": True, "workers": 1}
    how["progress"] = lambda done: None
    records = [
        {
            "task_id": "HumanEval/0",
            "question": DOUBLE["prompt"],
            "response": "    return [2 * x]\n\nThat is it!",
        }
    ]
    (verdict,) = grade_answers(records, task, **how)
    assert verdict == {
        "base": True,
        "plus": True,
        "timeout": False,
        "extracted": "def double(x):\n    return [2 * x]",
    }
    task.prompt.raw = False
    assert not grade_answers(records, task, **how)[0]["base"]
    monkeypatch.setattr("adaptsft.evals.code.answers.SECONDS", 0.1)
    endless = records[0] | {"response": "(\n" * 4000}
    found = grade_answers([endless, *records], task, **how)
    assert found[0] == {
        "base": False,
        "plus": False,
        "timeout": True,
        "extracted": "",
        "error": "no program was found in 0.1 s of CPU",
    }
    assert "error" not in found[1]
