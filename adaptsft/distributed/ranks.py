"""Process groups, devices and meshes; one process without torchrun is a world of one."""

import contextlib
import faulthandler
import hashlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from adaptsft.errors import ConfigError, DisagreementError, UserError

HUNG = 7  # exit code of a rank that made no progress

T = TypeVar("T")
_runs = itertools.count()


@contextmanager
def process_group(device_kind: str):
    """Join (or, without torchrun, be) the process group; yields this rank's device.

    Collectives on CPU tensors go through gloo also where the GPUs talk NCCL: checkpoints and objects need them.
    Two hours of time-out: rank 0 tokenises alone while the others wait.
    """
    cuda = torch.cuda.is_available() if device_kind == "auto" else device_kind == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: torch sees no GPU here; use train.device=cpu or auto")
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )
    wanted = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), (device.index or 0) + 1)
    if (
        cuda and wanted > torch.cuda.device_count()
    ):  # said by all ranks of the node, of which one is heard
        raise ConfigError(
            f"{wanted} ranks on this node, which has {torch.cuda.device_count()} GPUs: lower --nproc-per-node"
        )
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # restarted ranks would read the addresses that the dead ones left in the shared store, and hang (pytorch#135712)
        raise ConfigError(
            "torchrun --max-restarts hangs after a restart unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set: export it"
        )
    if "RANK" in os.environ:
        # a name for each group of this process: a second run would otherwise meet the keys that the first left in torchrun's store
        store, rank, world = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(f"run{next(_runs)}", store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=timedelta(hours=2)
        )
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size()


def mesh(device: torch.device, replicas: int) -> DeviceMesh:
    """One dimension to shard over; with replicas > 1 (HSDP) a second one, outermost, to replicate over. The inner one should fit a node."""
    world = world_size()
    if world % replicas:
        raise ConfigError(
            f"train.replicas={replicas} does not divide the {world} ranks of this run"
        )
    if replicas == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(
        device.type, (replicas, world // replicas), mesh_dim_names=("replicate", "shard")
    )


def print0(message: str) -> None:
    if rank() == 0:
        print(message, file=sys.stderr, flush=True)


def rank0_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0, then on the others, which find what rank 0 left on disk. A UserError on any rank is raised on every rank."""
    result: T | None = None
    for mine in (rank() == 0, rank() != 0):
        if mine:
            result = raise_on_all_ranks(work)
        else:
            sync_errors(None)
    return result  # type: ignore[return-value]


def raise_on_all_ranks(work: Callable[[], T]) -> T:
    """Run `work` on all ranks at once. A UserError on any rank is raised on every rank."""
    result: T | None = None
    error: UserError | None = None
    try:
        result = work()
    except UserError as caught:
        error = caught
    sync_errors(error)
    return result  # type: ignore[return-value]


def check_same_config(config: object) -> None:
    """Raise on all ranks unless all were started with the same configuration (on several nodes each has its own command line)."""
    everyone: list[object] = [None] * world_size()
    dist.all_gather_object(everyone, config)
    other = [number for number, theirs in enumerate(everyone) if theirs != everyone[0]]
    if other:
        raise DisagreementError(
            f"ranks {other} were started with another configuration than rank 0: give every node the same command"
        )


def check_same_state(step: int, content: bytes) -> None:
    """Raise on all ranks unless `content` (statistics, control) is the same on all of them, naming those that differ from the majority."""
    digests: list[str] = [""] * world_size()
    dist.all_gather_object(digests, hashlib.sha256(content).hexdigest())
    common = max(digests, key=digests.count)
    other = [number for number, digest in enumerate(digests) if digest != common]
    if other:
        raise DisagreementError(
            f"by step {step}, ranks {other} hold other statistics or another control than the rest: a damaged device?"
        )


def sync_errors(error: UserError | None) -> None:
    """Raise on every rank if any rank has an error: nobody is left waiting in a collective for a rank that has gone."""
    errors: list[UserError | None] = [None] * world_size()
    dist.all_gather_object(errors, error)
    for first in errors:
        if first is not None:
            raise first


class Stopper:
    """Asks all ranks to save and stop when any of them receives SIGTERM or SIGUSR1.

    The request rides in the step's all-reduce and is read one step late, when its copy to the host has long arrived. As a context
    manager it puts the signal handlers back.
    """

    def __init__(self) -> None:
        self.requested = False
        self.copies: list[tuple[Tensor, torch.cuda.Event | None]] = []
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            with contextlib.suppress(
                ValueError
            ):  # not the main thread: whoever runs the loop there handles its own signals
                self.before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        self.requested = True

    def ask(self, flag: Tensor) -> None:
        """Put this rank's request into `flag` (0-d, of the buffer that is summed over ranks)."""
        if self.requested:
            flag.fill_(1.0)

    def asked(self, flag: Tensor) -> bool:
        """Whether any rank had asked by the previous step; `flag` is this step's, after the all-reduce."""
        event = None
        if flag.is_cuda:
            copy = torch.empty((), dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            copy = flag.clone()
        self.copies.append((copy, event))
        if len(self.copies) < 2:
            return False
        copy, event = self.copies.pop(0)
        if event is not None:
            event.synchronize()
        return bool(copy > 0)


class Watchdog:
    """Ends this rank when it has made no progress for `seconds`, saying where it stands: a collective that one rank never joins would
    otherwise hold the others for hours. A context manager."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.step, self.last = seconds, 0, time.monotonic()
        self.over = threading.Event()

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()

    def beat(self, step: int) -> None:
        """There is progress: `step` (1-based) has begun, or goes on."""
        self.step, self.last = step, time.monotonic()

    def _watch(self) -> None:
        while not self.over.wait(min(self.seconds / 4, 10.0)):
            if time.monotonic() - self.last > self.seconds:
                print(
                    f"rank {rank()}: no progress in step {self.step} for {self.seconds:g} s (train.hang_timeout)",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(HUNG)
