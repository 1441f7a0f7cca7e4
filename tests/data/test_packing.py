"""Which examples share a pack, and which rank gets it."""

import itertools
import random

import pytest

from adaptsft.data.packing import assign_to_ranks, best_fit_decreasing
from tests.data.sizes import sizes_only


@pytest.mark.parametrize("seed", range(20))
def test_packs_hold_each_example_once_and_fit(seed):
    draw = random.Random(seed)
    capacity = draw.randint(10, 100)
    lengths = [draw.randint(1, capacity) for _ in range(draw.randint(1, 300))]
    packs = best_fit_decreasing(lengths, capacity)
    assert sorted(itertools.chain(*packs)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in pack) <= capacity for pack in packs)
    if len(packs) > 1:  # no two packs could be one
        assert sum(sorted(sum(lengths[i] for i in pack) for pack in packs)[:2]) > capacity
    assert packs == best_fit_decreasing(lengths, capacity)


def test_packing_takes_the_fullest_pack_with_room():
    assert best_fit_decreasing([5, 6, 3, 4, 1], 10) == [[1, 3], [0, 2, 4]]
    assert best_fit_decreasing([10, 10, 10], 10) == [[0], [1], [2]]
    assert best_fit_decreasing([], 10) == []


def test_ranks_without_work():
    data = sizes_only((3,))
    shares = assign_to_ranks([[0], [1], [2]], data.lengths, world_size=5, micro_batch_size=1)
    assert sorted(len(share[0]) for share in shares) == [0, 0, 1, 1, 1]
    assert all(len(share) == 1 for share in shares)
