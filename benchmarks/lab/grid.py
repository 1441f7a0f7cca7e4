"""Every run that is asked for and not there yet, in worker processes that stay: importing torch
costs as much as a run of the lab."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from adaptsft.errors import UserError
from benchmarks.lab import families
from benchmarks.lab.bases import Base, pretrain, pretraining_log
from benchmarks.lab.runs import UNTOUCHED, Run, execute
from benchmarks.lab.settings import Lab, reads_base
from benchmarks.lab.stacked.execution import execute_stack, stacks

Show = Callable[[str], None]  # receives what the trainer is doing now
Bases = dict[tuple[str, Base], str]  # (family, base) -> fingerprint of its model
POLL = 0.5  # seconds between two looks at the trainer's log


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """`count` processes with one thread each. What has not been started is dropped when the block
    ends by an exception."""
    # read when torch is imported: one thread each, and nothing that reaches for the network
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # forkserver: torch is imported once for all workers, in a process that has not run it; a fork
    # of one that has may hang
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.lab.runs"])
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def pretrained(
    pool: ProcessPoolExecutor, lab: Lab, folder: Path, show: Show = lambda line: None
) -> Bases:
    """The fingerprint of the model of every (family, base). `show` receives the step that a
    training has reached, and nothing where its model is there already."""
    asked = list(product(lab.families, map(Base.of, lab.bases)))
    logs = {one: pretraining_log(folder, *one) for one in asked}
    shown = {one: _step(log) for one, log in logs.items()}
    futures = {one: pool.submit(pretrain, folder, *one, lab.model, lab.pretrain) for one in asked}
    while True:
        running = wait(futures.values(), POLL).not_done
        for one, log in logs.items():
            if (step := _step(log)) != shown[one]:
                shown[one] = step
                family, base = families.find(one[0]).name, one[1]
                show(step if len(logs) == 1 else f"{family} base {base} {step}")
        if not running:
            return {one: future.result() for one, future in futures.items()}


def _step(log: Path) -> str:
    """The trainer's last step in its log, such as "step 50/500"; "" where it has none."""
    if not log.is_file():
        return ""
    steps = [line for line in log.read_text().splitlines() if line.startswith("step ")]
    return " ".join(steps[-1].split()[:2]) if steps else ""


def asked(
    lab: Lab, methods: dict[str, dict[str, Any]], folder: Path, bases: Bases, keep: bool = False
) -> list[Run]:
    """All runs of a lab, seed by seed, so that an interrupted one holds whole seeds. `methods` are
    settings.check's. What does not train has no learning rate."""
    grid = product(lab.seeds, map(Base.of, lab.bases), lab.families, lab.regimes, methods)
    return [
        Run(
            folder,
            family,
            regime,
            method,
            seed,
            lab.items,
            methods[method],
            base,
            bases[family, base],
            keep,
            lr,
            lab.fast and not reads_base(methods[method]),
        )
        for seed, base, family, regime, method in grid
        for lr in ((lab.lrs or [None]) if method != UNTOUCHED else [None])
    ]


def complete(
    pool: ProcessPoolExecutor, missing: Sequence[Run]
) -> Iterator[tuple[Run, dict[str, Any] | UserError]]:
    """Each run with its result as they come; the UserError of one does not stop the others,
    anything else is raised."""
    slow = [run for run in missing if not run.fast]
    futures: dict[Future[Any], list[Run]] = {pool.submit(execute, run): [run] for run in slow}
    for stack in stacks([run for run in missing if run.fast]):
        futures[pool.submit(execute_stack, stack)] = stack
    for future in as_completed(futures):
        runs = futures[future]
        try:
            result = future.result()
            yield from zip(runs, result if runs[0].fast else [result], strict=True)
        except UserError as error:
            yield from ((run, error) for run in runs)
