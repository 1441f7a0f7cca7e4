"""Grading many records with one grader, in this process or in isolated ones."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.graders.pool import grade_isolated
from adaptsft.evals.graders.registry import GRADERS

NEEDS = {name: grader.needs for name, grader in GRADERS.items()}
NEEDS["code"] = ("tree_sitter", "tree_sitter_python")  # adaptsft.evals.code


def require_packages(names: Iterable[str]) -> None:
    """Raises ConfigError where one of these graders needs a package that is not installed. Call it
    before the answers that they are to grade are generated."""
    for name in names:
        missing = [package for package in NEEDS.get(name, ()) if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"grader {name} needs {', '.join(missing)}: pip install 'adaptsft[eval]'"
            )


def grade_all(
    name: str,
    records: Iterable[dict],
    *,
    workers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[dict]:
    """The verdicts of grader `name` on the records, in their order.

    `workers`: processes of an isolated grader; 0 is one per core. `progress` is called with 1 after
    each record (tqdm's `update`). An answer that runs out of time, or kills its process, is wrong,
    and its verdict has `timeout: true` or an `error`. A record that cannot be graded (a key is
    missing or not of its type) has None for all that the grader writes, and an `error`. Raises
    ConfigError for an unknown grader or a missing package.
    """
    if name not in GRADERS:
        raise ConfigError(f"grader {name!r} is unknown; there are {', '.join(GRADERS)}")
    require_packages([name])
    grader, records = GRADERS[name], list(records)
    if grader.isolated:
        return grade_isolated(grader, records, workers, progress)
    verdicts = []
    for record in records:
        try:
            grader.check(record)
            verdict = grader.verdict(record)
        except DataError as error:
            verdict = grader.ungraded(str(error))
        except Exception as error:  # something in the record is of a type that `check` lets pass
            verdict = grader.ungraded(f"{type(error).__name__}: {error}"[:200])
        verdicts.append(verdict)
        if progress:
            progress(1)
    return verdicts
