"""HumanEval+ and MBPP+: taking the program out of a text, reading the files, judging outputs, and
the published verdicts.
"""

import collections
import decimal
import fractions
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.code import evalplus, oracle, problems, sandbox, values
from adaptsft.evals.code.problems import Problem
from adaptsft.evals.code.sanitize import code_extract, sanitize
from tests.conftest import REPO

try:
    sandbox.isolation()
    WHY_NOT = ""
except ConfigError as error:
    WHY_NOT = str(error)
executes = pytest.mark.skipif(bool(WHY_NOT), reason=f"nothing isolates here: {WHY_NOT}")

DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return [2 * x]\n",
    "entry_point": "double",
    "base_input": [[1], [2]],
    "plus_input": [[-1], [0.5]],
    "atol": 0,
}
RIGHT = "def double(x): return [x + x]"
ONLY_BASE = "def double(x): return [x + x] if x > 0 and x == int(x) else None"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data set of one problem, in two versions, the newer of which is not the last one by name."""
    for version in ("v9.9.9", "v9.9.10"):
        (tmp_path / f"HumanEvalPlus-{version}.jsonl.gz").write_bytes(
            gzip.compress(json.dumps(DOUBLE).encode())
        )
    return tmp_path


def test_sanitizer_cases(shared_data: Path) -> None:
    cases = json.loads((shared_data.parent / "cases" / "evalplus_sanitizer.json").read_text())[
        "cases"
    ]
    for case in cases:
        found = (
            code_extract(case["code"])
            if case["fn"] == "code_extract"
            else sanitize(case["code"], case["entrypoint"])
        )
        assert found == case["expected_output"]


def test_sanitizer_keeps_what_the_function_needs() -> None:
    text = """Here it is:
import math
UNIT = 1
OTHER = 2
class Box:
    def get(self): return UNIT
def unused(x):
    return OTHER
def f(x): return Box().get() + helper(x)
def helper(x):
    return math.floor(x)
def helper(x):
    return 0
def without(x):
    pass
@cache
def decorated(x): return x
print(f(2))
Is that what you wanted?"""
    assert sanitize(text, "f") == (
        "import math\nUNIT = 1\nclass Box:\n    def get(self): return UNIT\ndef f(x): return "
        "Box().get() + helper(x)\n"
        "def helper(x):\n    return math.floor(x)"
    )
    assert sanitize("no code at all, in one line", "f") == "no code at all, in one line"


def test_values_return_as_they_went() -> None:
    plain = [
        None,
        True,
        3,
        10**30,
        -(2**63),
        1.5,
        float("inf"),
        "é\ud800",
        [1, (2, [3])],
        {1, "a"},
        frozenset({2}),
        {(1, 2): {"t": "tuple"}},
    ]
    plain += [
        2 + 3j,
        b"\x00\xff",
        fractions.Fraction(1, 3),
        decimal.Decimal("1.10"),
        np.float64(0.1),
        np.bool_(True),
    ]
    for value in plain:
        found = values.decode(json.loads(json.dumps(values.encode(value))))
        assert found == value and type(found) is type(value)
    array = values.decode(json.loads(json.dumps(values.encode(np.arange(6.0).reshape(2, 3)))))
    assert array.dtype == float and (array == np.arange(6.0).reshape(2, 3)).all()
    point = collections.namedtuple("point", "x y")
    for value, plainly in ((collections.Counter("aab"), {"a": 2, "b": 1}), (point(1, 2), (1, 2))):
        assert values.decode(values.encode(value)) == plainly
    generator = values.decode(values.encode(x for x in (3, 1)))
    assert generator != [3, 1] and set(generator) == {1, 3}


@pytest.mark.parametrize(
    "forged",
    [
        '{"t": "pickle", "v": ""}',
        '{"t": ["x"], "v": 0}',
        '{"t": "ndarray", "v": ["O", [1]]}',
        '{"t": "set", "v": [[1]]}',
        '{"a": 1}',
    ],
)
def test_forged_values_are_refused(forged: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        values.decode(json.loads(forged))


@pytest.mark.parametrize(
    ("task", "function", "arguments", "out", "expected", "atol", "right"),
    [
        ("HumanEval/9", "f", [], [1, 2], [1, 2], 0, True),
        ("HumanEval/9", "f", [], (1, 2), [1, 2], 0, False),
        ("HumanEval/9", "f", [], 1, True, 0, True),
        ("HumanEval/9", "f", [], 1.0 + 1e-9, 1.0, 1e-6, True),
        ("HumanEval/9", "f", [], 1.0 + 1e-5, 1.0, 1e-6, False),
        (
            "HumanEval/9",
            "f",
            [],
            np.float64(1.0 + 1e-9),
            1.0,
            1e-6,
            False,
        ),  # near, but of another type
        ("HumanEval/9", "f", [], [1.0, 2.0, 3.0], [1.0, 2.0], 1e-6, False),
        ("HumanEval/9", "f", [], float("nan"), float("nan"), 1e-6, False),
        ("HumanEval/9", "f", [], values.Opaque("Any"), values.Opaque("Any"), 0, False),
        ("HumanEval/9", "f", [], np.array([1, 2]), [1, 2], 0, False),
        ("HumanEval/32", "find_zero", [[-6.0, 11.0, -6.0, 1.0]], 3.0, 1.0, 1e-4, True),
        ("HumanEval/32", "find_zero", [[-6.0, 11.0, -6.0, 1.0]], 3.1, 1.0, 1e-4, False),
        ("HumanEval/32", "find_zero", [[1.0, 1.0]], values.Opaque("Any"), -1.0, 1e-4, False),
        ("Mbpp/2", "similar_elements", [], [5, 4, 4], (4, 5), 0, True),
        ("Mbpp/2", "similar_elements", [], values.Opaque("map", [5, 4]), (4, 5), 0, True),
        ("Mbpp/2", "similar_elements", [], None, (4, 5), 0, False),
        ("Mbpp/72", "check_str", ["ab"], values.Opaque("Match"), values.Opaque("Match"), 0, True),
        ("Mbpp/72", "check_str", ["ab"], False, values.Opaque("Match"), 0, False),
        ("Mbpp/164", "are_equivalent", [1, 2], False, True, 0, True),
        ("Mbpp/295", "sum_div", [7], 0, 1, 0, True),
        ("Mbpp/558", "digit_distance_nums", [1, 21], 2, 1, 0, True),
        ("Mbpp/581", "surface_Area", [3, 4], 35, 33, 0, True),
    ],
)
def test_oracle(
    task: str,
    function: str,
    arguments: list,
    out: object,
    expected: object,
    atol: float,
    right: bool,
) -> None:
    assert (
        oracle.is_right(Problem(task, function, "", [], [], 0), arguments, out, expected, atol)
        is right
    )


def test_a_float_among_the_outputs_brings_a_tolerance() -> None:
    assert [oracle.tolerance(0, value) for value in (1, 1.0, (1.0, 2.0), [1.0, 2], [])] == [
        0,
        1e-6,
        1e-6,
        0,
        0,
    ]
    assert oracle.tolerance(1e-4, 1.0) == 1e-4


def test_versions(data_dir: Path) -> None:
    assert problems.load("HumanEval", data_dir).name == "HumanEvalPlus-v9.9.10"
    assert (
        problems.load("HumanEval", data_dir, ["MbppPlus-v0.1.0", "v9.9.9"]).name
        == "HumanEvalPlus-v9.9.9"
    )
    with pytest.raises(
        ConfigError, match=r"choose one of HumanEvalPlus-v9.9.10, HumanEvalPlus-v9.9.9"
    ):
        problems.load("HumanEval", data_dir, ["v1.0.0"])
    with pytest.raises(ConfigError, match="evalplus/mbppplus_release"):
        problems.load("Mbpp", data_dir)
    (data_dir / "HumanEvalPlus-v0.1.9.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="not that version"):
        problems.load("HumanEval", data_dir, ["v0.1.9"])
    (data_dir / "HumanEvalPlus-v9.9.9.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="problem 1: cannot be read: KeyError"):
        problems.load("HumanEval", data_dir, ["v9.9.9"])


def test_mbpp_inputs_are_the_types_of_their_problems(shared_data: Path) -> None:
    by_id = problems.load("Mbpp", shared_data, ["v0.1.0"]).by_id
    assert by_id["Mbpp/2"].base[0] == [(3, 4, 5, 6), (5, 7, 4, 10)]
    assert by_id["Mbpp/63"].base[0] == [[(3, 5), (1, 7), (10, 3), (1, 2)]]
    assert by_id["Mbpp/115"].base[1] == [[{1, 2}, {}, {}]]
    assert type(by_id["Mbpp/124"].base[0][1]) is complex
    assert by_id["Mbpp/580"].base[0] == [(4, 5, (7, 6, (2, 4)), 6, 8)]
    assert by_id["Mbpp/722"].base[0][0]["Cierra Vega"] == (6.2, 70)


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
        ("pass", "pass", None), ("pass", "fail", 2), ("fail", "fail", 0), ("fail", "fail", 0), ("fail", "fail", 0),
        ("pass", "fail", 2), ("fail", "fail", 0),
    ]  # fmt: skip
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
    assert (
        evalplus.judge(problem, evalplus.expected_outputs(problem, tmp_path), counting)["plus"]
        == "pass"
    )


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
    first = evalplus.expected_outputs(problem, tmp_path)
    assert (
        evalplus.expected_outputs(problem, tmp_path) == first
    )  # from the file: the clock has moved
    (file,) = tmp_path.iterdir()
    content = gzip.decompress(file.read_bytes())
    for damaged in (
        gzip.compress(content.replace(b'\\"v\\": [[', b'\\"v\\": [[[')),
        file.read_bytes()[:50],
        b"no gzip",
    ):
        file.write_bytes(damaged)
        assert evalplus.expected_outputs(problem, tmp_path) != first
    assert list(tmp_path.iterdir()) == [file]


@executes
def test_an_expected_output_too_large_is_left_out_and_counted(tmp_path: Path) -> None:
    problem = Problem("HumanEval/0", "f", "def f(x): return 'x' * x", [[3], [17 * 2**20]], [[4]], 0)
    expected = evalplus.expected_outputs(problem, tmp_path)
    assert [output is None for output in expected.outputs] == [False, True, False]
    verdict = evalplus.judge(problem, expected, "def f(x): return x * 'x'")
    assert (verdict["plus"], verdict["untested"]) == ("pass", 1)
    assert evalplus.judge(problem, expected, "def f(x): return 'xxx'")["test"] == 2


def command(data_dir: Path, lines: str, *options: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys\nfrom adaptsft.errors import UserError\nfrom adaptsft.evals.code.evalplus "
        "import grade_command\n"
        "try: grade_command(sys.argv[1:])\nexcept UserError as error: "
        "sys.exit(f'{type(error).__name__}: {error}')"
    )
    arguments = ["--data-dir", str(data_dir), "--cache-dir", str(data_dir / "cache"), *options]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input=lines,
        capture_output=True,
        text=True,
        cwd=REPO,
    )


@executes
def test_command(data_dir: Path) -> None:
    lines = "".join(
        json.dumps({"task_id": "HumanEval/0", "solution": solution}) + "\n"
        for solution in (ONLY_BASE, RIGHT)
    )
    run = command(data_dir, lines, "--allow-code-exec", "--version", "v9.9.9")
    assert [
        (row["task_id"], row["base"], row["plus"])
        for row in map(json.loads, run.stdout.splitlines())
    ] == [
        ("HumanEval/0", "pass", "fail"),
        ("HumanEval/0", "pass", "pass"),
    ]
    assert (
        "HumanEvalPlus-v9.9.9: base 100.0  plus 50.0  pass@1, 2 programs for 1 problems, 0 out of "
        "time" in run.stderr
    )


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ('{"task_id": "HumanEval/0", "solution": "x"}', [], "ConfigError: .* add --allow-code-exec"),
        ("{", ["--allow-code-exec"], "DataError: stdin, line 1: not JSON"),
        ('{"task_id": "HumanEval/0"}', ["--allow-code-exec"], "DataError: record 1: 'solution' must be a text"),
        ('{"task_id": "Other/0", "solution": ""}', ["--allow-code-exec"], "DataError: record 1: .* must begin with HumanEval/ or Mbpp/"),
        ('{"task_id": "HumanEval/9", "solution": ""}', ["--allow-code-exec"], "DataError: record 1: .* is not in HumanEvalPlus-v9"),
    ],
)  # fmt: skip
@executes
def test_what_the_command_refuses(
    data_dir: Path, line: str, options: list[str], message: str
) -> None:
    run = command(data_dir, line + "\n", *options)
    assert run.returncode == 1 and run.stdout == ""
    assert re.search(message, run.stderr)


@executes
def test_published_verdicts(shared_data: Path, tmp_path: Path) -> None:
    """Some of those that benchmarks/evals_code.py compares in full: the first on each of a few
    problems that take little time.
    """
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
    task = SimpleNamespace(
        name="t",
        sources=[SimpleNamespace(file="code/HumanEvalPlus-v9.9.9.jsonl.gz")],
        prompt=SimpleNamespace(raw=True),
    )
    grading = SimpleNamespace(data_dir=data_dir, allow_code_exec=True, workers=1)
    records = [
        {
            "task_id": "HumanEval/0",
            "question": DOUBLE["prompt"],
            "response": "    return [2 * x]\n\nThat is it!",
        }
    ]
    (verdict,) = evalplus.grade_task(records, task, grading, lambda done: None)
    assert verdict == {
        "base": True,
        "plus": True,
        "timeout": False,
        "extracted": "def double(x):\n    return [2 * x]",
    }
    task.prompt.raw = False
    assert not evalplus.grade_task(records, task, grading, lambda done: None)[0]["base"]
