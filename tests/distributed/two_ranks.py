"""Two gloo ranks or more: in processes that torch need not be imported in again, or torchrun's."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from adaptsft.config.load import read_config
from adaptsft.config.schema import Config
from adaptsft.distributed.ranks import rank
from adaptsft.errors import UserError
from adaptsft.train import train
from tests.conftest import REPO
from tests.runs import PROCESSES, _run, loaded_state

RANKS = 2


def on_two_ranks(
    work: Callable[..., Any], *arguments: Any, log: Path, ranks: int = RANKS
) -> tuple[list[int], str]:
    """Run work(*arguments) on two ranks, or so many; their exit codes, and what they have printed.

    As under torchrun, the ranks meet at a store of the process that starts them.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [log.with_name(f"{log.name}.{number}") for number in range(ranks)]
    processes = [
        PROCESSES.Process(target=_rank, args=(number, ranks, store.port, path, work, arguments))
        for number, path in enumerate(logs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.exitcode != 0:  # the other rank may wait for this one
            for other in processes:
                other.join(30)
                other.kill()
    codes = [-1 if process.exitcode is None else process.exitcode for process in processes]
    return codes, "".join(path.read_text() for path in logs)


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    """A program under torchrun, where its start is what is tested: ten seconds of imports."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={RANKS}", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600
    )


def _rank(
    number: int, ranks: int, port: int, log: Path, work: Callable[..., Any], arguments: tuple
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    try:
        code = work(*arguments)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code)


class Reductions(TorchDispatchMode):
    """Counts the collectives that reduce gradients."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def train_all(folder: Path) -> None:
    """Train every configuration of the folder, counting the reductions of those that load.json
    names, and load the checkpoint that it names, which one rank saved."""
    reductions = {}
    job = json.loads((folder / "load.json").read_text())
    for file in sorted(folder.glob("*.yaml")):
        with Reductions() if file.stem in job["counted"] else nullcontext() as counter:
            train(read_config(file))
        if counter:
            reductions[file.stem] = counter.count
    state = loaded_state(read_config(folder / f"{job['config']}.yaml"), Path(job["checkpoint"]))
    if rank() == 0:
        torch.save(state, folder / "loaded.pt")
        (folder / "reductions.json").write_text(json.dumps(reductions))


def train_lives(lives: list[tuple[Config, int]]) -> None:
    """Train configurations, each of which may be killed in that call of its objective,
    nll_then_killed (0: it is not). What is refused is written in place of its folder."""
    for config, kill_after_calls in lives:
        try:
            _run(config, kill_after_calls)
        except UserError as refused:
            Path(config.run_dir).with_suffix(".refused").write_text(str(refused))
