"""What is due after a step."""

from typing import NamedTuple

from adaptsft.config.schema import Config
from adaptsft.data.training_data import TrainingData


class Due(NamedTuple):
    log: bool
    evaluate: bool
    save: bool
    stop: bool  # the run was asked to stop: it saves before it evaluates


def due_after(step: int, data: TrainingData, config: Config, asked_to_stop: bool) -> Due:
    """After `step` (0-based). Everything is due after the last one. Metrics of a stream are read at
    the end of each shard: the examples of skipped steps, which they name, go with it."""
    done, last = step + 1, step + 1 == data.steps
    stop = asked_to_stop and not last
    save = last or stop or _every(config.checkpoint.every, done)
    return Due(
        log=save or _every(config.log.every, done) or done == data.sampler.end,
        evaluate=last or _every(config.eval.every, done),
        save=save,
        stop=stop,
    )


def _every(steps: int, done: int) -> bool:
    return steps > 0 and done % steps == 0
