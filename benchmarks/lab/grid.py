"""Every run that is asked for and not there yet, in worker processes that stay: importing torch costs as much as a run of the lab."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from adaptsft.errors import UserError
from benchmarks.lab.runs import Run, execute, pretrain
from benchmarks.lab.settings import Lab

Say = Callable[[str], None]


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """`count` processes with one thread each. What has not been started is dropped when the block ends by an exception."""
    # before they import torch: one thread each, and nothing that reaches for the network
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # spawn: a fork of a process that has run torch may hang
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def pretrained(pool: ProcessPoolExecutor, lab: Lab, folder: Path) -> dict[str, str]:
    """family -> fingerprint of its model. A single family shows the trainer's progress, several would write over each other."""
    alone = len(lab.families) == 1
    futures = [
        pool.submit(pretrain, folder, family, lab.model, lab.pretrain, alone)
        for family in lab.families
    ]
    return {family: future.result() for family, future in zip(lab.families, futures, strict=True)}


def asked(
    lab: Lab,
    methods: dict[str, dict[str, Any]],
    folder: Path,
    bases: dict[str, str],
    keep: bool = False,
) -> list[Run]:
    """All runs of a lab, seed by seed, so that an interrupted one holds whole seeds. `methods` are settings.check's."""
    grid = product(lab.seeds, lab.families, lab.regimes, methods)
    return [
        Run(folder, family, regime, method, seed, lab.items, methods[method], bases[family], keep)
        for seed, family, regime, method in grid
    ]


def complete(
    pool: ProcessPoolExecutor, missing: Sequence[Run]
) -> Iterator[tuple[Run, dict[str, Any] | UserError]]:
    """Each run with its result as they come; the UserError of one does not stop the others, anything else is raised."""
    futures: dict[Future[dict[str, Any]], Run] = {pool.submit(execute, run): run for run in missing}
    for future in as_completed(futures):
        try:
            yield futures[future], future.result()
        except UserError as error:
            yield futures[future], error
