"""What the ranks of a step send each other, and how long the step takes: on paper, from sizes.

Which groups are gathered and reduced how often is what FSDP2 does under
adaptsft.model.fsdp.before_micro_batch (tests/analysis/test_scaling.py counts its collectives). All
else is assumed, `Cluster.assumed` says what: nothing of it has been measured on a GPU yet.

A collective is taken to be a ring through the nodes, one after the other: every rank receives
(ranks - 1) / ranks of the buffer, an all-reduce twice that. Where a node has k members of the ring,
its channels enter the node by k network adapters, so that 1/k of it comes to each by the network
and the rest from its neighbours in the node.
"""

from dataclasses import dataclass
from typing import NamedTuple

from adaptsft.analysis.memory import Group, Memory
from adaptsft.errors import ConfigError
from adaptsft.training.flops import Operations
from adaptsft.training.gpus import GB, Gpu

NETWORK = 50.0  # GB/s each way: an adapter of 400 Gb/s for every GPU
EFFICIENCY = 0.8  # of stated bandwidths that is reached
# seconds: of a collective, and of every hop of its ring within and between nodes. From the model by
# which NCCL chooses its algorithms (src/graph/tuning.cc: baseLat and hwLat, Ring, Simple)
START, HOP, NETWORK_HOP = 8.4e-6, 3.4e-6, 14e-6


@dataclass(frozen=True)
class Cluster:
    gpus: int
    gpu: Gpu
    per_node: int = 8
    network: float = NETWORK * GB  # bytes/s each way, of every GPU
    mfu: float | None = None  # of the peak, beside communication and copies; None: as found

    @property
    def speeds(self) -> tuple[float, float]:
        """The least and the most that products and attention may reach of the peak."""
        return self.gpu.reached if self.mfu is None else (self.mfu, self.mfu)

    @property
    def speed(self) -> float:
        return sum(self.speeds) / 2

    def __post_init__(self) -> None:
        if self.gpus > self.per_node and self.gpus % self.per_node:
            raise ConfigError(
                f"--gpus {self.gpus} is not a multiple of --gpus-per-node {self.per_node}: "
                "estimate with whole nodes"
            )

    @property
    def assumed(self) -> str:
        gpu = self.gpu
        return (
            f"products at {self.speed:.0%} of {gpu.flops / 1e12:,.0f} TFLOP/s (--mfu"
            f"{'' if self.mfu else '; {:.0%} to {:.0%}: {}'.format(*self.speeds, gpu.found)}), "
            f"{gpu.by} {gpu.link / GB:,.0f} and network {self.network / GB:,.0f} GB/s each way "
            f"(--network), memory {gpu.bandwidth / GB:,.0f} GB/s, of all three {EFFICIENCY:.0%}; "
            f"{self.per_node} GPUs a node (--gpus-per-node), rings through them"
        )


class Traffic(NamedTuple):
    """Of collectives, on one GPU."""

    buffers: float = 0  # bytes: gathered outputs, inputs of reductions
    link: float = 0  # bytes received within the node
    network: float = 0  # and from other nodes
    seconds: float = 0

    def plus(self, other: "Traffic", times: int = 1) -> "Traffic":
        return Traffic(*(mine + times * its for mine, its in zip(self, other, strict=True)))


NOTHING = Traffic()


def ring(size: float, ranks: int, stride: int, passes: int, cluster: Cluster) -> Traffic:
    """A collective over `size` bytes among so many ranks, each `stride` after the other; of which
    as many run at once as a node has ranks in others. `passes`: 2 for an all-reduce, else 1."""
    if ranks == 1 or not size:
        return NOTHING
    # ranks of the ring in a node
    members = min(ranks, max(1, cluster.per_node // stride))
    nodes = -(-ranks // members)
    received = passes * size * (ranks - 1) / ranks
    network = received / members if nodes > 1 else 0.0
    link = received - network if members > 1 else 0.0
    carried = max(link / cluster.gpu.link, network / cluster.network) / EFFICIENCY
    hops = passes * ((ranks - nodes) * HOP + (nodes - 1) * NETWORK_HOP)
    return Traffic(size, link, network, carried + START + hops)


def all_to_all(size: float, calls: int, ranks: int, cluster: Cluster) -> Traffic:
    """Exchanges of `size` bytes in all among so many neighbouring ranks, of which each keeps its
    own part and gets the others'."""
    if ranks == 1 or not size:
        return NOTHING
    members = min(ranks, cluster.per_node)
    link, network = size * (members - 1) / ranks, size * (ranks - members) / ranks
    carried = max(link / cluster.gpu.link, network / cluster.network) / EFFICIENCY
    hop = NETWORK_HOP if network else HOP
    return Traffic(size, link, network, carried + calls * (START + hop))


class Passes(NamedTuple):
    """What a micro-batch communicates, group by group, in this order."""

    times: int  # micro-batches of this kind
    forward: list[Group]  # gathered
    backward: list[Group]
    reduced: list[Group]
    last: bool  # sums over replicas too


def schedule(memory: Memory, micro_batches: int) -> list[Passes]:
    """Of a step, its micro-batches in order."""
    *blocks, top, rest = memory.groups
    tied = not rest.numel  # the embedding is in the group of the head
    forward = [top, *blocks] if tied else [rest, *blocks, top]
    # the backward pass ends at the lowest block that is trained; the one below is prefetched
    ends = (number for number, block in enumerate(blocks) if block.trained)
    lowest = 0 if (top if tied else rest).trained else next(ends, len(blocks) + 1)
    backward = blocks[max(0, lowest - 1) :][::-1]
    trained = [group for group in (top, *reversed(blocks), rest) if group.trained]
    kinds = []
    for number in range(micro_batches):
        last, first = number + 1 == micro_batches, number == 0
        passes = Passes(
            1,
            forward if memory.reshards or first else [],
            backward if memory.reshards else [],
            trained if memory.reduces or last else [],
            last,
        )
        if kinds and kinds[-1][1:] == passes[1:]:
            kinds[-1] = passes._replace(times=kinds[-1].times + 1)
        else:
            kinds.append(passes)
    return kinds


@dataclass(frozen=True)
class Step:
    """An optimizer step on one GPU; seconds."""

    gathered: Traffic
    reduced: Traffic
    all_reduced: Traffic
    exchanged: Traffic  # tokens for heads, with train.context_parallel
    needed: float  # products and attention, forward and backward
    recomputed: float
    copies: float  # of weights and gradients, in the GPU's own memory
    hidden: float  # communication beside the above
    exposed: float  # communication that all else waits for
    optimizer: float

    @property
    def seconds(self) -> float:
        busy = self.needed + self.recomputed + self.copies + self.optimizer
        return busy + self.exposed

    @property
    def communication(self) -> Traffic:
        return self.gathered.plus(self.reduced).plus(self.all_reduced).plus(self.exchanged)

    @property
    def limit(self) -> str:
        """What takes the time beside the products that cannot be avoided, and how much of it."""
        parts = {
            "communication": self.exposed,
            "recomputed activations": self.recomputed,
            "copies of weights and gradients": self.copies,
            "the optimizer": self.optimizer,
        }
        name = max(parts, key=lambda part: parts[part])
        if parts[name] < 0.1 * self.seconds:
            return f"compute: {self.needed / self.seconds:.0%} of the step are needed products"
        return f"{name}: {parts[name] / self.seconds:.0%} of the step"


def estimate(
    memory: Memory,
    operations: Operations,
    tokens: int,
    micro_batches: int,
    recomputes: bool,
    cluster: Cluster,
    exchanges: Traffic = NOTHING,
) -> Step:
    """`tokens`, `exchanges`: of a micro-batch on one GPU; `recomputes`: whole blocks, backward.

    Gathers overlap with the forward pass, and gathers and reductions with the backward pass, except
    the first ones (embedding and first block), and the last reduction. Copies do not, nor do
    `exchanges`, in the midst of a layer.
    """
    ranks, replicas = memory.ranks, memory.replicas
    rate = cluster.gpu.flops * cluster.speed
    forward, backward = tokens * operations.forward / rate, tokens * operations.backward / rate
    recomputed = tokens * operations.blocks / rate if recomputes else 0.0

    def gather(group: Group) -> Traffic:
        return ring(memory.element * group.local * ranks, ranks, 1, 1, cluster)

    def scatter(group: Group) -> Traffic:
        return ring(4 * group.local_trained * ranks, ranks, 1, 1, cluster)

    def replicate(group: Group) -> Traffic:
        return ring(4 * group.local_trained, replicas, ranks, 2, cluster)

    def all_of(traffic: list[Traffic]) -> Traffic:
        total = NOTHING
        for part in traffic:
            total = total.plus(part)
        return total

    gathered = reduced = all_reduced = NOTHING
    hidden = exposed = copied = 0.0
    for passes in schedule(memory, micro_batches):
        ahead = [gather(group) for group in passes.forward]
        again = [gather(group) for group in passes.backward]
        sums = [scatter(group) for group in passes.reduced]
        over = [replicate(group) for group in passes.reduced if passes.last]
        gathered = gathered.plus(all_of(ahead + again), passes.times)
        reduced = reduced.plus(all_of(sums), passes.times)
        all_reduced = all_reduced.plus(all_of(over), passes.times)
        copies = copied_bytes(memory, passes) / (cluster.gpu.bandwidth * EFFICIENCY)
        copied += passes.times * copies
        for moved, alone, beside in (
            (ahead, ahead[:2], forward),
            (again + sums + over, sums[-1:] + over[-1:], backward + recomputed),
        ):
            waits = sum(part.seconds for part in alone)
            overlaps = sum(part.seconds for part in moved) - waits
            hidden += passes.times * min(overlaps, beside)
            exposed += passes.times * (waits + max(0.0, overlaps - beside))
    # parameter, gradient and moments are read, all but the gradient written; and its norm
    own = sum(group.local_trained for group in memory.groups)
    optimizer = 8 * memory.master * own / (cluster.gpu.bandwidth * EFFICIENCY)
    return Step(
        gathered,
        reduced,
        all_reduced,
        NOTHING.plus(exchanges, micro_batches),
        micro_batches * (forward + backward),
        micro_batches * recomputed,
        copied,
        hidden,
        exposed + micro_batches * exchanges.seconds,
        optimizer,
    )


def copied_bytes(memory: Memory, passes: Passes) -> float:
    """Traffic in the GPU's memory of a micro-batch: gathered parameters are copied out of the
    buffer of the collective (on one rank, cast from the masters), gradients into the buffer of the
    reduction (read in the compute dtype, written in fp32), and where they are not reduced at once,
    they are added up in fp32."""
    element = memory.element
    moved = sum(group.numel for group in passes.forward + passes.backward)
    total = moved * (2 * element if memory.ranks > 1 else memory.master + element)
    if memory.accumulates and not memory.reduces:
        total += sum(group.trained for group in memory.groups) * (element + 8)
    return total + sum(group.trained for group in passes.reduced) * (element + 4)
