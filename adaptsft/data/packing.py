"""Which examples share a pack, and which rank computes which packs.

A pack is a row of a batch: one or more examples concatenated. Attention never crosses from one
to the next (see `documents`).
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

Pack = list[int]  # examples, in their order in the pack
MicroBatch = list[Pack]  # packs of one forward on one rank; empty where the rank has nothing to do


def pack_examples(examples: np.ndarray, lengths: np.ndarray, capacity: int) -> list[Pack]:
    """Packs of at most `capacity` tokens.

    With capacity 0 every example is a pack of its own, longest first, so that neighbours need
    little padding. `lengths` are those of all data, which `examples` index.
    """
    sizes = lengths[examples].tolist()
    if capacity == 0:
        return [[int(examples[i])] for i in sorted(range(len(sizes)), key=lambda i: -sizes[i])]
    return [[int(examples[i]) for i in pack] for pack in best_fit_decreasing(sizes, capacity)]


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs of indices into `lengths`, each index once, the sum of a pack's lengths at most
    `capacity`.

    Longest first, each into the fullest pack that has room for it; ties go by index, so that the
    result depends on nothing else. Needs at most 11/9 of the fewest possible packs, and a few
    (Johnson et al. 1974).
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        assert length <= capacity, f"example of {length} tokens in packs of {capacity}"
        place = bisect_left(room, (length, -1))
        if place == len(room):
            packs.append([])
            left, pack = capacity, len(packs) - 1
        else:
            left, pack = room.pop(place)
        packs[pack].append(index)
        insort(room, (left - length, pack))
    return packs


def assign_to_ranks(
    packs: list[Pack], lengths: np.ndarray, world_size: int, micro_batch_size: int
) -> list[list[MicroBatch]]:
    """[rank][micro-batch] -> packs.

    Each pack, longest first, goes to the rank with the fewest tokens so far. All ranks get the same
    number of micro-batches, as few as hold the packs, since collectives run in each of them.
    """
    tokens = [sum(int(lengths[i]) for i in pack) for pack in packs]
    count = max(1, -(-len(packs) // (world_size * micro_batch_size)))
    shares: list[list[Pack]] = [[] for _ in range(world_size)]
    load = [(0, rank) for rank in range(world_size)]  # a heap
    for pack in sorted(range(len(packs)), key=lambda i: -tokens[i]):
        so_far, rank = heapq.heappop(load)
        shares[rank].append(packs[pack])
        if len(shares[rank]) < count * micro_batch_size:
            heapq.heappush(load, (so_far + tokens[pack], rank))
    return [
        [share[m * micro_batch_size : (m + 1) * micro_batch_size] for m in range(count)]
        for share in shares
    ]
