"""Grading many records with one grader, in this process or in isolated ones."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.graders.pool import grade_isolated
from adaptsft.evals.graders.registry import GRADERS


def grade_all(
    name: str,
    records: Iterable[dict],
    *,
    workers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[dict]:
    """The verdicts of grader `name` on the records, in their order.

    `workers`: processes of an isolated grader; 0 is one per core. `progress` is called with 1 after
    each record (tqdm's `update`). A record that runs out of time, or kills its process, is wrong,
    and its verdict has `timeout: true` or an `error`. Raises ConfigError for an unknown grader or a
    missing package, DataError (with the record's number, from 1) for a record that cannot be
    graded.
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
