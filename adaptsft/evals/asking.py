"""The loop that asks for what a folder lacks, and records what it gets: of generate, of lm-eval's
tasks and of the judge."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from adaptsft.errors import CheckpointError, DataError
from adaptsft.evals.protocol import Stopped
from adaptsft.evals.samples import Samples

T = TypeVar("T")


def ask_for_missing(
    have: Samples,
    asked: dict[str, T],
    ask: Callable[[list[T]], Sequence[Any]],
    record: Callable[[T, Any], dict[str, Any]],
    *,
    batch_size: int,
    label: str,
    unit: str = "answer",
    retry_errors: bool = False,
    length: Callable[[T], int] = lambda _: 0,
    rank: int = 0,
    world: int = 1,
) -> list[str]:
    """Ask this rank's share of the questions {key: question} that `have` lacks; returns their keys.

    `ask` answers a batch in order, and `record` makes of question and answer what is kept beside
    the key, after every batch. With `retry_errors` recorded errors are asked again. Raises
    DataError where `ask` is Stopped, after what it had was recorded; CheckpointError where that
    cannot be written.
    """
    missing = [
        (key, question)
        for key, question in asked.items()
        if key not in have.records or (retry_errors and have.records[key].get("error"))
    ]
    # the longest first: memory runs out at once or not at all, and the last batches are the fast
    # ones
    missing.sort(key=lambda pair: -length(pair[1]))
    mine = missing[rank::world]
    bar = tqdm(
        total=len(asked),
        initial=len(asked) - len(missing),
        desc=label,
        unit=unit,
        disable=rank != 0,
        smoothing=0.1,
        mininterval=1.0,
    )
    with bar:
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            stopped = None
            try:
                answers = ask([question for _, question in batch])
            except Stopped as error:
                # without outputs it has none
                answers, stopped = error.outputs or [None] * len(batch), error
            pairs = zip(batch, answers, strict=True)
            try:
                have.add(
                    [
                        {"key": key} | record(question, answer)
                        for (key, question), answer in pairs
                        if answer is not None
                    ]
                )
            except OSError as error:
                raise CheckpointError(
                    f"{have.file}: cannot be written: {error}. Its records are kept: the same "
                    "command continues from them"
                ) from None
            if stopped is not None:
                raise DataError(str(stopped))  # to all ranks, without the outputs
            bar.update(min(len(batch) * world, bar.total - bar.n))
    return [key for key, _ in mine]
