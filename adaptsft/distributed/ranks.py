"""Process groups, devices and meshes; one process without torchrun is a world of one."""

import hashlib
import itertools
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from adaptsft.errors import ConfigError, DisagreementError, UserError

# what ranks find each other by; torchrun sets it
RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")
_runs = itertools.count()


@contextmanager
def process_group(device_kind: str):
    """Join (or, without torchrun, be) the process group; yields this rank's device.

    Collectives on CPU tensors go through gloo also where the GPUs use NCCL: checkpoints and objects
    need them. Two hours of time-out: rank 0 tokenises alone while the others wait.
    """
    cuda = torch.cuda.is_available() if device_kind == "auto" else device_kind == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: torch sees no GPU here; use train.device=cpu or auto")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    wanted = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), (device.index or 0) + 1)
    # all ranks of the node raise it, and one of them prints it
    if cuda and wanted > torch.cuda.device_count():
        raise ConfigError(
            f"{wanted} ranks on this node, which has {torch.cuda.device_count()} GPUs: lower "
            "--nproc-per-node"
        )
    if cuda:
        # cuBLAS reads it when it starts, and train.deterministic needs it: 8 buffers of 4 MiB, as
        # torch takes by itself on Hopper. What the user has set stays.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # restarted ranks would read the addresses that the dead ones left in the shared store, and
        # hang (pytorch#135712)
        raise ConfigError(
            "torchrun --max-restarts hangs after a restart unless "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set: export it"
        )
    if "RANK" in os.environ:
        _check_rendezvous()
        # a name for each group of this process: a second run would otherwise meet the keys that the
        # first left in torchrun's store
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


def _check_rendezvous() -> None:
    """Raises ConfigError where RANK is set, and not all that ranks need to meet."""
    missing = [name for name in RENDEZVOUS if not os.environ.get(name)]
    wrong = [
        f"{name}={value}"
        for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")
        if (value := os.environ.get(name)) and not value.isdigit()
    ]
    if missing or wrong:
        what = f"{', '.join(missing)} not" if missing else f"{', '.join(wrong)} not as a number"
        raise ConfigError(
            f"the environment has RANK={os.environ['RANK']}, and {what}: start several ranks with "
            "torchrun, which sets them all, or unset RANK for a single one"
        )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size()


class ContextGroup(NamedTuple):
    """The ranks that compute the same packs, each its own part of their tokens."""

    group: dist.ProcessGroup
    rank: int  # of this process among them
    size: int


def context_group(device: torch.device, size: int) -> ContextGroup | None:
    """The dimension `context` of a mesh of all ranks, `size` neighbours each; None for a size of
    1."""
    if size == 1:
        return None
    shape, names = (world_size() // size, size), ("data", "context")
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)["context"]
    return ContextGroup(mesh.get_group(), mesh.get_local_rank(), size)


def data_ranks(context_parallel: int) -> tuple[int, int]:
    """Of the groups of ranks that compute the same packs: (the number of this rank's, how many
    there are)."""
    return rank() // context_parallel, world_size() // context_parallel


def device_mesh(device: torch.device, replicas: int, context_parallel: int = 1) -> DeviceMesh:
    """One dimension to shard over; with replicas > 1 (HSDP) a second one, outermost, to replicate
    over. The inner one should fit a node. It holds whole groups of context_parallel ranks, and
    shards over them as over others: gradients are summed, whoever shares tokens with whom."""
    world = world_size()
    if world % replicas:
        raise ConfigError(
            f"train.replicas={replicas} does not divide the {world} ranks of this run"
        )
    if world // replicas % context_parallel:
        raise ConfigError(
            f"train.context_parallel={context_parallel} does not divide the {world // replicas} "
            f"ranks of {'this run' if replicas == 1 else 'a replica (train.replicas)'}"
        )
    if replicas == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    shape = (replicas, world // replicas)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def print0(message: str) -> None:
    if rank() == 0:
        print(message, file=sys.stderr, flush=True)


def rank0_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0, then on the others, which find what rank 0 left on disk. A UserError on
    any rank is raised on every rank."""
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
    """Raise on all ranks unless all were started with the same configuration (on several nodes each
    has its own command line)."""
    everyone: list[object] = [None] * world_size()
    dist.all_gather_object(everyone, config)
    other = [number for number, theirs in enumerate(everyone) if theirs != everyone[0]]
    if other:
        raise DisagreementError(
            f"ranks {other} were started with another configuration than rank 0, or with other "
            "code of yours by the same name: give every node the same command and files"
        )


def check_same_state(step: int, content: bytes) -> None:
    """Raise on all ranks unless `content` (statistics, objective state) is the same on all of them,
    naming those that differ from the majority."""
    digests: list[str] = [""] * world_size()
    dist.all_gather_object(digests, hashlib.sha256(content).hexdigest())
    common = max(digests, key=digests.count)
    other = [number for number, digest in enumerate(digests) if digest != common]
    if other:
        raise DisagreementError(
            f"by step {step}, ranks {other} hold other statistics or another objective state than "
            "the rest: a damaged device?"
        )


def sync_errors(error: UserError | None) -> None:
    """Raise on every rank if any rank has an error: none is left waiting in a collective for a rank
    that has gone."""
    errors: list[UserError | None] = [None] * world_size()
    dist.all_gather_object(errors, error)
    for first in errors:
        if first is not None:
            raise first
