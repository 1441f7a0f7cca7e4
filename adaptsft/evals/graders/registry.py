"""The graders by name, and what each one reads and writes.

A new grader is a function `record -> verdict` in this package and an entry in GRADERS.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module

from adaptsft.errors import DataError


@dataclass(frozen=True)
class Option:
    """A key that a record may have: one of the choices, a list of some, or a whole number."""

    choices: tuple[str, ...] = ()  # none: a whole number, 0 or above
    several: bool = False

    def problem(self, value: object) -> str | None:
        """What the value must be, where it is not."""
        if not self.choices:
            right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            return None if right else "a whole number, 0 or above"
        if self.several:
            right = isinstance(value, list | tuple) and all(one in self.choices for one in value)
            return None if right else f"a list of {', '.join(self.choices)}"
        return None if value in self.choices else " or ".join(self.choices)


@dataclass(frozen=True)
class Grader:
    name: str
    function: str  # "module:function" in this package, imported when first needed
    help: str
    reads: tuple[str, ...]  # keys that a record must have; "a|b" is a, or b where there is no a
    # further keys of a record; tasks may set them for all
    optional: dict[str, Option] = field(default_factory=dict)
    writes: tuple[str, ...] = ("correct", "extracted")  # and `unparsed`, where no answer was found
    needs: tuple[str, ...] = ()  # packages of the extra `eval`
    # CPU time that a record may take, in a process of its own; None: harmless, graded in this one
    seconds: float | None = None

    @property
    def isolated(self) -> bool:
        return self.seconds is not None

    @property
    def metrics(self) -> list[str]:
        """What it writes by the names in tables: `correct` is called as the grader is."""
        scores = (key for key in self.writes if key != "extracted")
        return [self.name if key == "correct" else key for key in scores]

    @cached_property
    def verdict(self) -> Callable[[dict], dict]:
        """The function itself, without limits."""
        module, function = self.function.split(":")
        return getattr(import_module(f"adaptsft.evals.graders.{module}"), function)

    def ungraded(self, reason: str) -> dict:
        """The verdict on what cannot be graded."""
        return dict.fromkeys(self.writes) | {"error": reason}

    def check(self, record: object) -> None:
        """Raises DataError where the record lacks a key, or one holds no text."""
        if isinstance(record, DataError):  # of the line that it was read from
            raise record
        if not isinstance(record, dict):
            raise DataError(f"a JSON object is needed, not {record!r:.80}")
        for key in self.reads:
            found = [name for name in key.split("|") if name in record]
            if not found:
                raise DataError(
                    f"{self.name} reads {key.replace('|', ' or ')}, but the keys are "
                    f"{', '.join(record) or 'none'}"
                )
            value = record[found[0]]
            kind: type | tuple[type, ...] = dict if found[0] == "options" else str
            if key == "gold" and self.isolated:  # the math graders read numbers too
                kind = (str, int, float)
            finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(value, kind) or isinstance(value, bool) or not finite:
                wanted = "an object" if kind is dict else "text"
                raise DataError(f"{found[0]} is {value!r:.80}; it must be {wanted}")
        for key, option in self.optional.items():
            if key in record and (wanted := option.problem(record[key])):
                raise DataError(f"{key} is {record[key]!r:.80}; it must be {wanted}")


_MATH_READS = ("response|prediction", "gold")
_MATH_NEEDS = ("latex2sympy2_extended", "word2number")
_CHOICE_READS = ("response", "options", "gold")

GRADERS = {
    grader.name: grader
    for grader in (
        Grader(
            "math-paper",
            "mathematics.paper:grade",
            "mathematics, as published",
            reads=_MATH_READS,
            needs=_MATH_NEEDS,
            seconds=3.0,
        ),
        Grader(
            "math-robust",
            "mathematics.robust:grade",
            "mathematics, without the published grader's known errors",
            reads=_MATH_READS,
            optional={
                "units": Option(("ignore", "strict")),
                "precision": Option(),
                "match_types": Option(("latex", "expr", "string", "NativeLetters"), several=True),
            },
            needs=(*_MATH_NEEDS, "math_verify"),
            seconds=3.0,
        ),
        Grader(
            "medical-paper",
            "medical:grade_paper",
            "options, as published: the last match",
            reads=_CHOICE_READS,
        ),
        Grader(
            "medical-m1",
            "medical:grade_m1",
            "options, by m1's protocol: the box first",
            reads=_CHOICE_READS,
        ),
        Grader(
            "mcq-robust",
            "choice:grade",
            "options, or none where the answer commits to none",
            reads=("response", "options|lang", "gold"),
        ),
        Grader(
            "figfont",
            "figfont:grade",
            "words: exact match, two Jaro-Winkler similarities",
            reads=("output", "answer"),
            writes=("exact_match", "jw_paper", "jw_standard"),
            needs=("rapidfuzz",),
        ),
        Grader(
            "mmlu-prox",
            "mmlu_prox:grade",
            "letters, in seven languages",
            reads=("lang", "response", "gold"),
        ),
    )
}
