"""The process group of a run, its devices, and the checkpoint from which it continues."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import DeviceMesh

from adaptsft.config import user_code
from adaptsft.config.schema import Config
from adaptsft.distributed.ranks import (
    check_same_config,
    device_mesh,
    process_group,
    raise_on_all_ranks,
    rank,
    rank0_first,
)
from adaptsft.distributed.signals import Stopper
from adaptsft.distributed.watchdog import Watchdog
from adaptsft.training.hub import check_push
from adaptsft.training.run_folder import check_same_checkpoint, find_checkpoint
from adaptsft.training.trackers.build import check_installed

T = TypeVar("T")


@dataclass
class Run:
    """What lasts as long as the run. `enter` closes a context manager at its end."""

    config: Config
    folder: Path
    checkpoint: Path | None  # verified, to resume from; None for a new run
    device: torch.device
    mesh: DeviceMesh
    watchdog: Watchdog
    stack: ExitStack
    stopper: Stopper = field(default_factory=Stopper)
    result: dict[str, Any] = field(default_factory=dict)  # figures of the last step taken here

    def enter(self, manager: AbstractContextManager[T]) -> T:
        return self.stack.enter_context(manager)


def check_services(config: Config) -> None:
    """Raises ConfigError where what the run talks to, trackers and the hub, would not answer."""
    check_installed(config)
    check_push(config)


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Join the process group, and find out whether there is a run to continue. Writes nothing."""
    with process_group(config.train.device) as device, ExitStack() as stack:
        torch.use_deterministic_algorithms(config.train.deterministic)
        check_same_config((config, user_code.digest(config)))
        raise_on_all_ranks(lambda: check_services(config) if rank() == 0 else None)
        checkpoint = rank0_first(lambda: find_checkpoint(config))
        check_same_checkpoint(checkpoint)
        mesh = device_mesh(device, config.train.replicas, config.train.context_parallel)
        watchdog = Watchdog(config.train.hang_timeout)
        yield Run(config, Path(config.run_dir), checkpoint, device, mesh, watchdog, stack)
