"""Taking the program out of a text."""

import ast
import json
import random
import time
import warnings
from pathlib import Path

import pytest

from adaptsft.evals.code.extract import OutOfTime, code_extract
from adaptsft.evals.code.sanitize import sanitize


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


@pytest.mark.nightly
def test_runs_are_those_of_trying_all() -> None:
    """Random texts, of lines in which strings, brackets, blocks and clauses begin and end."""
    rng = random.Random(0)
    for _ in range(20_000):
        text = "\n".join(rng.choice(LINES) for _ in range(rng.randint(1, 10)))
        assert code_extract(text) == by_trying_all(text), repr(text)


LINES = [
    *("def f(x):", "    return x", "x = 1", "y = (", "]", ")", '"""', '    """', 's = """abc'),
    *("if x:", "else:", "elif y:", "    pass", "try:", "finally:", "    else:", "class A:", "@dec"),
    *(
        "",
        "  ",
        "\t",
        "# comment",
        "    # comment",
        "    def g(self):",
        "        return 2",
        "\tq = 2",
    ),
    *("Here is the code:", "Note: x", "```python", "- item", "1. First, don't", "Explanation"),
    *(
        "x = \\",
        "\\",
        "'abc' \\",
        "'''",
        "f'''",
        "'",
        "f'{x",
        "match x:",
        "    case 1:",
        "\x0cx = 2",
    ),
    *(
        "a\rb",
        "a\r  b",
        "# c\rq w",
        "x\r",
        "\u3000",
        "\u2028",
        "\x0b",
        "\ufeff",
        "\ufeffx = 1",
        "\0",
    ),
    *(
        "\ud800",
        "# \ud800",
        "# \0",
        "0777",
        "x = 'a' b'c'",
        "f(a=1, b)",
        "[1,",
        "3]",
        "'a': 1,",
        "x = {",
    ),
    *('text """', "    Indented prose.", "    y", "(" * 201, "é = 1", "x = 1; y = 2", "if x: y"),
]


def by_trying_all(text: str) -> str:
    """evalplus 0.3.1's code_extract, which keeps the first run of the largest size."""
    lines = text.split("\n")
    found, most = lines[0], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for first in range(len(lines)):
            for last in range(first + 1, len(lines)):
                run = lines[first : last + 1]
                size = sum(bool(line.strip()) for line in run)
                if size > most and parses("\n".join(run)):
                    found, most = "\n".join(run), size
    return found


def parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, MemoryError):
        return False
    return True


def test_time_is_linear_and_limited() -> None:
    prose = (
        "It works, since the list isn't sorted (see above): the first one is returned.\n\n" * 200
    )
    code = 'def f(x):\n    """Of x\n    and y.\n    """\n    return [\n        x,\n    ]\n\n\n' * 40

    def seconds(times: int) -> float:
        started = time.process_time()
        assert code_extract(times * (prose + code)).strip() == code.strip()
        return time.process_time() - started

    seconds(1)
    assert seconds(16) < 5.0, "12,000 lines; every run of them would take hours"
    # a bracket that each line opens and none closes: the only text known to take long
    with pytest.raises(OutOfTime):
        code_extract("(\n" * 150 + "x = [\n" * 40_000, seconds=0.2)


def test_a_lone_surrogate_is_no_program() -> None:
    assert sanitize("\ud800 and\nnothing else here", "f") == "\ud800 and"
    assert sanitize("x = '\ud800'\nimport os\ny = 1\n", "f") == "import os"
