"""Lives of a run: two ranks in processes of their own, started without torchrun's ten seconds of
imports, and ended as torchrun ends them."""

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.config.load import save_config
from adaptsft.config.schema import Config
from adaptsft.distributed import checkpoint
from tests.runs import PROCESSES

RANKS = 2
PROCESSES.set_forkserver_preload(["adaptsft.train", "tests.runs", "tests.faults.faulty"])
# seconds that the other ranks have after one has failed; torchrun gives 30 between its SIGTERM and
# SIGKILL
GRACE = 15.0
KILLED, STOPPED, HUNG = -signal.SIGKILL, 75, 7


@dataclass
class Life:
    """What became of one start of a run."""

    codes: list[int]  # exit code of each rank, negative for a signal
    ended_alone: bool  # no rank had to be killed because it went on waiting
    stderr: str  # of all ranks
    steps: list[int]  # that rank 0 began, 1-based
    operations: list[list[dict[str, Any]]]  # of each rank, file operations in saves
    newest: int  # step of the newest complete checkpoint afterwards, 0 for none
    seconds: float


def _rank(
    number: int,
    port: int,
    arguments: list[str],
    faults: list[dict[str, Any]],
    log: Path,
    trace: Path,
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(RANKS)})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    from tests.faults.faulty import main

    sys.exit(main(arguments, faults, trace))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Started:
    """A run that goes on; `end` waits for it."""

    def __init__(
        self,
        config: Config,
        *faults: dict[str, Any],
        overrides: dict[int, list[str]] | None = None,
        tag: str = "",
    ) -> None:
        self.run, self.began = Path(config.run_dir), time.monotonic()
        side = self.run.with_name(f"{self.run.name}{tag}.life")
        save_config(config, side.with_suffix(".yaml"))
        self.logs = [side.with_suffix(f".{number}.log") for number in range(RANKS)]
        self.traces = [side.with_suffix(f".{number}.trace") for number in range(RANKS)]
        port = free_port()
        self.processes = []
        for number, (log, trace) in enumerate(zip(self.logs, self.traces, strict=True)):
            trace.unlink(missing_ok=True)
            arguments = [str(side.with_suffix(".yaml")), *(overrides or {}).get(number, [])]
            self.processes.append(
                PROCESSES.Process(
                    target=_rank, args=(number, port, arguments, list(faults), log, trace)
                )
            )
            self.processes[-1].start()

    def end(self, timeout: float = 150) -> Life:
        """Wait for all ranks; like torchrun, kill those that outlive a failed one for too long."""
        deadline, failed = time.monotonic() + timeout, None
        while any(process.is_alive() for process in self.processes):
            if failed is None and any(
                process.exitcode not in (None, 0) for process in self.processes
            ):
                failed = time.monotonic()
            if time.monotonic() > (deadline if failed is None else min(deadline, failed + GRACE)):
                break
            time.sleep(0.02)
        alone = all(not process.is_alive() for process in self.processes)
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join(30)
        codes = [
            process.exitcode if process.exitcode is not None else -999 for process in self.processes
        ]
        lines = [
            [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []
            for trace in self.traces
        ]
        complete = checkpoint.complete_checkpoints(self.run / "checkpoints")
        for path in complete:
            checkpoint.verify(path)
        return Life(
            codes=codes,
            ended_alone=alone,
            stderr="".join(
                f"[rank {number}]\n{log.read_text()}" for number, log in enumerate(self.logs)
            ),
            steps=[line["step"] for line in lines[0] if "step" in line],
            operations=[[line for line in each if "op" in line] for each in lines],
            newest=int(complete[-1].name.removeprefix("step_")) if complete else 0,
            seconds=time.monotonic() - self.began,
        )


def live(config: Config, *faults: dict[str, Any], **named: Any) -> Life:
    """One life of a run, to its end."""
    return Started(config, *faults, **named).end()
