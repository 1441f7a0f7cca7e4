"""One rank of a real run, `adaptsft.train` itself, with faults in it; started by
tests/faults/ranks.py or by torchrun:

    FAULTS='[{"rank": 1, "at": "step", "step": 3, "do": "kill"}]' \\
        torchrun … -m tests.faults.faulty CONFIG.yaml [key=value …]

A fault: `rank`; where it happens (`at`); what happens (`do`: a name of ACTIONS below). Places:
    step, call      in the objective, in its call `call` (1-based, default 1) of the step (1-based)
    eval, call      the same in an evaluation
    begin, flush, all_reduce, optimizer, lock, load, export
                    on entering these, of `step` where there is one
    wait            on waiting for the shard of a stream that begins with `step`
    save, op        before file operation `op` (1-based) of the save after `step`: open, fsync,
                    mkdir, rename, remove, rmdir
    run             from the start: `do` changes what the whole run sees (a clock that jumps, a
                    prune that fails)
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adaptsft import train as trainer
from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.data.stream import Stream
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed import checkpoint
from adaptsft.distributed.ranks import rank
from adaptsft.objectives.base import register
from adaptsft.objectives.library.weighted import talr
from adaptsft.objectives.state import ObjectiveState
from adaptsft.statistics.step import StepStatistics
from adaptsft.training import resume
from adaptsft.training.evaluation import Evaluator
from adaptsft.training.metrics import Metrics

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


class State:
    """Where this rank is."""

    faults: tuple[dict[str, Any], ...] = ()
    phase, step, call = "start", 0, 0
    saving, operation = 0, 0  # the step of the save that goes on, its file operations so far
    trace: Path | None = None  # receives a line per step and per file operation of a save
    objective: ObjectiveState | None = None
    lock, mine = threading.Lock(), threading.local()


def fault_at(at: str, **where: int) -> dict[str, Any] | None:
    for fault in State.faults:
        here = fault.get("rank", 0) == rank() and fault["at"] == at
        if here and all(fault.get(key, 1) == value for key, value in where.items()):
            return fault
    return None


def hold(fault: dict[str, Any]) -> None:
    """Stay here until a file appears."""
    Path(fault["file"] + ".held").touch()
    while not Path(fault["file"]).exists():
        time.sleep(0.02)


def raise_error(fault: dict[str, Any]) -> None:
    raise RuntimeError("a fault of the test, on one rank only")


def fill(fault: dict[str, Any]) -> None:
    """Fill a disk to its last byte."""
    with (
        (Path(fault["folder"]) / "fill").open("wb", buffering=0) as file,
        contextlib.suppress(OSError),
    ):
        for size in (2**16, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"0" * size)


ACTIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "kill": lambda fault: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda fault: os.kill(os.getpid(), signal.SIGTERM),
    "SIGUSR1": lambda fault: os.kill(os.getpid(), signal.SIGUSR1),
    "hang": lambda fault: time.sleep(10_000),
    "raise": raise_error,
    "hold": hold,
    "fill": fill,
}


def strike(at: str, **where: int) -> None:
    if fault := fault_at(at, **where):
        ACTIONS[fault["do"]](fault)


@register("talr_with_faults")
def talr_with_faults(logp, sequence, sequence_nll):
    """talr, steered by the statistics of the step before: a lost signal would show in the loss."""
    State.call += 1
    where = {"step": State.step, "call": State.call}
    fault = fault_at(State.phase, **where)
    loss, weight = talr(logp, sequence, sequence_nll)
    if fault is None:
        return loss, weight
    if fault["do"] in ("nan", "inf"):
        return torch.full_like(loss, float(fault["do"])), torch.full_like(
            weight, float(fault["do"])
        )
    ACTIONS[fault["do"]](fault)
    return loss, weight


def note(**values: Any) -> None:
    if State.trace is not None:
        with State.trace.open("a") as file:
            file.write(json.dumps(values) + "\n")


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    """Run `action` with the same arguments before the function or method `owner.name`."""
    function = getattr(owner, name)

    def both(*arguments, **named):
        action(*arguments, **named)
        return function(*arguments, **named)

    setattr(owner, name, both)


def file_operation(name: str, path: str) -> None:
    """Called before every file operation of the process, in any thread."""
    if (
        not State.saving
        or getattr(State.mine, "inside", False)
        or not ("/checkpoints" in path or name in ("os.remove", "os.rmdir"))
    ):
        return
    State.mine.inside = True  # the trace is a file too
    with State.lock:
        State.operation += 1
        operation = State.operation
        note(save=State.saving, op=operation, what=name, path=path)
    strike("save", step=State.saving, op=operation)
    State.mine.inside = False


def begin_step(data: TrainingData, step: int, watchdog: Any) -> None:
    """The loop's first call in a step."""
    State.phase, State.step, State.call = "step", step + 1, 0
    note(step=step + 1)
    strike("begin", step=step + 1)
    if State.objective is not None and fault_at("state", step=step + 1) is not None:
        # in place: what the loop holds, after the last checkpoint was saved
        State.objective.alpha.add_(1)


def install_hooks() -> None:
    """Know the step and the phase, and count the file operations of every save."""
    before(TrainingData, "advance", begin_step)
    update = AdaptiveObjective.update

    def update_objective(self, *arguments):
        update(self, *arguments)
        State.objective = self.state

    AdaptiveObjective.update = update_objective
    save = checkpoint.Checkpointer.save

    def save_step(self, step, *arguments, **named):
        State.saving, State.operation = step, 0
        save(self, step, *arguments, **named)
        if not self.group:  # a save in the background goes on
            State.saving = 0

    def evaluating(*arguments, **named):
        State.phase, State.call = "eval", 0

    checkpoint.Checkpointer.save = save_step
    before(Evaluator, "evaluate", evaluating)
    before(
        StepStatistics,
        "all_reduce",
        lambda self, group=None: State.phase == "step" and strike("all_reduce", step=State.step),
    )
    before(trainer, "guarded_step", lambda *arguments: strike("optimizer", step=State.step))
    before(Metrics, "flush", lambda self: strike("flush", step=State.step))
    before(resume, "lock_run_dir", lambda *_: strike("lock"))
    before(Stream, "_wait", lambda self, step, watchdog: strike("wait", step=step + 1))
    before(checkpoint, "load", lambda *arguments: strike("load"))
    before(trainer, "export", lambda *arguments: strike("export"))
    before(os, "fsync", lambda file: file_operation("fsync", path_of(file)))
    sys.addaudithook(audit)


def path_of(file: Any) -> str:
    return os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")


def audit(event: str, values: tuple) -> None:
    if event in FILE_EVENTS and isinstance(values[0], str | Path):
        file_operation(event, str(values[0]))


def change_the_run() -> None:
    """Faults that last: a clock that jumps, a prune that fails."""
    kinds = {
        fault["do"]: fault
        for fault in State.faults
        if fault["at"] == "run" and fault.get("rank", 0) == rank()
    }
    if "clock" in kinds:
        now, generator = time.time, random.Random(rank())
        time.time = lambda: now() + generator.choice([-1e6, -3600, 0, 3600, 1e6])
        nanoseconds = time.time_ns
        time.time_ns = lambda: nanoseconds() + generator.choice([-(10**15), 0, 10**15])
    if "prune" in kinds:
        rmtree = shutil.rmtree

        def fails(path, *arguments, **named):
            if Path(path).name == kinds["prune"]["folder"] and not named.get("ignore_errors"):
                raise PermissionError(13, "a fault of the test", str(path))
            return rmtree(path, *arguments, **named)

        shutil.rmtree = fails


def main(arguments: list[str], faults: list[dict[str, Any]], trace: Path | None = None) -> int:
    if (
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    ):  # a rank that torchrun starts again is sound
        State.faults = tuple(faults)
    State.trace = trace
    install_hooks()
    change_the_run()
    return trainer.main(arguments)


if __name__ == "__main__":
    log = os.environ.get("FAULTS_TRACE")
    sys.exit(
        main(
            sys.argv[1:],
            json.loads(os.environ.get("FAULTS", "[]")),
            Path(f"{log}.{rank()}") if log else None,
        )
    )
