"""Taking the program out of a text."""

import json
from pathlib import Path

from adaptsft.evals.code.sanitize import code_extract, sanitize


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
