"""Graders: a record in, a verdict out, by name.

A new one is a function `record -> verdict` and a line in GRADERS.

Those that let sympy loose on a model's output run in processes of their own, which are killed when
they take too long (pool.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec

from adaptsft.errors import ConfigError, DataError


@dataclass(frozen=True)
class Grader:
    name: str
    function: str  # "module:function" in this package, imported when first needed
    reads: tuple[str, ...]  # keys that a record must have; "a|b" is either
    needs: tuple[str, ...] = ()  # packages of the extra `eval`
    # CPU time that a record may take, in a process of its own; None: harmless, graded in this one
    seconds: float | None = None
    help: str = ""
    writes: tuple[str, ...] = ("correct", "extracted")  # and `unparsed`, where no answer was found

    @property
    def isolated(self) -> bool:
        return self.seconds is not None

    def grade(self, record: dict) -> dict:
        """The verdict on one record.

        For an isolated grader this starts a process each time: use grade_all for many.
        """
        return grade_all(self.name, [record], workers=1)[0]

    @cached_property
    def verdict(self) -> Callable[[dict], dict]:
        """The function itself, without limits."""
        module, function = self.function.split(":")
        return getattr(import_module(f"{__name__}.{module}"), function)

    def check(self, record: object, line: int) -> None:
        """Raises DataError where the record lacks a key, or one holds no text."""
        if not isinstance(record, dict):
            raise DataError(f"line {line}: a JSON object is needed, not {record!r:.80}")
        for key in self.reads:
            found = [name for name in key.split("|") if name in record]
            if not found:
                raise DataError(
                    f"line {line}: {self.name} reads {key.replace('|', ' or ')}, but the keys are "
                    f"{', '.join(record) or 'none'}"
                )
            value = record[found[0]]
            kinds = (
                dict
                if key == "options"
                else (str, int, float)
                if key == "gold" and self.isolated
                else str
            )
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise DataError(
                    f"line {line}: {found[0]} is {value!r:.80}; it must be "
                    f"{'an object' if kinds is dict else 'text'}"
                )


_PAPER = ("latex2sympy2_extended", "word2number")
GRADERS = {
    grader.name: grader
    for grader in (
        Grader(
            "math-paper",
            "math_paper:grade",
            ("prediction|response", "gold"),
            _PAPER,
            3.0,
            "mathematics, as published",
        ),
        Grader(
            "math-robust",
            "math_robust:grade",
            ("prediction|response", "gold"),
            (*_PAPER, "math_verify"),
            3.0,
            "mathematics, graded right",
        ),
        Grader(
            "medical-paper",
            "medical:grade_paper",
            ("response", "options", "gold"),
            help="options, as published: the last match",
        ),
        Grader(
            "medical-m1",
            "medical:grade_m1",
            ("response", "options", "gold"),
            help="options, by m1's protocol: the box first",
        ),
        Grader(
            "figfont",
            "figfont:grade",
            ("output", "answer"),
            ("rapidfuzz",),
            help="words: exact match, two Jaro-Winkler similarities",
            writes=("exact_match", "jw_paper", "jw_standard"),
        ),
        Grader(
            "mmlu-prox",
            "mmlu_prox:grade",
            ("lang", "response", "gold"),
            help="letters, in seven languages",
        ),
    )
}


def grade_all(
    name: str, records: Iterable[dict], *, workers: int = 0, progress: Callable[[int], object] | None = None
) -> list[dict]:  # fmt: skip
    """The verdicts of grader `name` on the records, in their order.

    workers: processes of an isolated grader; 0 is one per core. progress is called with 1 after
    each record (tqdm's `update`). A record that runs out of time, or kills its process, is wrong,
    and its verdict says `timeout: true` or holds an `error`. Raises ConfigError for an unknown
    grader or a missing package, DataError (with the record's number, from 1) for a record that
    cannot be graded.
    """
    if name not in GRADERS:
        raise ConfigError(f"grader {name!r} is unknown; there are {', '.join(GRADERS)}")
    grader, records = GRADERS[name], list(records)
    missing = [package for package in grader.needs if find_spec(package) is None]
    if missing:
        raise ConfigError(f"grader {name} needs {', '.join(missing)}: pip install 'adaptsft[eval]'")
    for line, record in enumerate(records, 1):
        grader.check(record, line)
    if grader.isolated:
        from adaptsft.evals.graders.pool import grade_isolated

        return grade_isolated(grader, records, workers, progress)
    verdicts = []
    for line, record in enumerate(records, 1):
        try:
            verdicts.append(grader.verdict(record))
        except DataError as error:
            raise DataError(f"line {line}: {error}") from None
        if progress:
            progress(1)
    return verdicts
