"""Which examples make up a step, however it is split."""

import itertools
from collections import Counter

import numpy as np
import pytest

from adaptsft.errors import ConfigError
from tests.data.sizes import sampler_of, sizes_only


def test_a_step_has_the_same_examples_however_it_is_split():
    data = sizes_only()
    reference = sampler_of(data)
    for step in (0, 5, 6, 40):  # step 6 crosses the end of an epoch of 100
        expected = Counter(reference.examples(step).tolist())
        for world, micro, packing, length in itertools.product(
            (1, 2, 3, 40), (1, 4, 100), (True, False), (64, 200)
        ):
            split = sampler_of(data, micro=micro, packing=packing, world=world, length=length)
            shares = [split.micro_batches(step, rank) for rank in range(world)]
            assert len({len(share) for share in shares}) == 1
            micro_batches = [packs for share in shares for packs in share]
            assert all(len(packs) <= micro for packs in micro_batches)
            packs = [pack for packs in micro_batches for pack in packs]
            assert Counter(i for pack in packs for i in pack) == expected
            capacity = length if packing else 60
            assert all(sum(data.lengths[i] for i in pack) <= capacity for pack in packs)
            if not packing:
                assert all(len(pack) == 1 for pack in packs)
            assert split.target_tokens(step) == sum(
                data.target_tokens[i] * n for i, n in expected.items()
            )
            assert split.tokens(step) == sum(data.lengths[i] * n for i, n in expected.items())


def test_the_sampler_depends_on_seed_and_step_alone():
    data = sizes_only()
    first, again = sampler_of(data), sampler_of(data)
    late = again.examples(30)  # asked in another order, as after a resume
    assert all((first.examples(step) == again.examples(step)).all() for step in range(31))
    assert (first.examples(30) == late).all()
    assert not (first.examples(0) == sampler_of(data, seed=1).examples(0)).all()
    assert first.micro_batches(3, 0) == again.micro_batches(3, 0)


def test_each_epoch_has_every_example_once_in_another_order():
    sampler = sampler_of(sizes_only(), batch=7)
    stream = np.concatenate([sampler.examples(step) for step in range(60)])
    epochs = [stream[i * 100 : (i + 1) * 100] for i in range(4)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [len(sampler.examples(step)) for step in range(60)] == [7] * 60


def test_a_step_may_span_several_epochs():
    sampler = sampler_of(sizes_only((3,)), batch=8)
    three = np.concatenate([sampler.examples(step) for step in range(3)])
    assert Counter(three.tolist()) == {0: 8, 1: 8, 2: 8}
    packed = Counter(i for packs in sampler.micro_batches(0, 0) for pack in packs for i in pack)
    assert packed == Counter(sampler.examples(0).tolist())


def test_weights_are_copies_per_epoch():
    data = sizes_only((10, 10, 10), (2.0, 0.5, 1.3))
    sampler = sampler_of(data, batch=38)  # 20 + 5 + 13: a step is an epoch
    assert sampler.epoch_size == 38
    halves = set()
    for epoch in range(6):
        counts = Counter(sampler.examples(epoch).tolist())
        assert [counts[i] for i in range(10)] == [2] * 10
        assert sorted(counts[i] for i in range(10, 20)) == [0] * 5 + [1] * 5
        assert sorted(counts[i] for i in range(20, 30)) == [1] * 7 + [2] * 3
        halves.add(tuple(counts[i] for i in range(10, 20)))
    assert len(halves) > 1
    refused = r"data\.sources\[1\] \(source1\): weight 0\.04 of 10 examples"
    with pytest.raises(ConfigError, match=refused):
        sampler_of(sizes_only((10, 10), (1.0, 0.04)))


def test_steps_and_epochs():
    sampler = sampler_of(sizes_only(), batch=16)
    assert [sampler.steps(epochs) for epochs in (0.1, 0.16, 0.5, 1.0, 2.0)] == [1, 1, 4, 7, 13]
    seen = np.concatenate([sampler.examples(step) for step in range(7)])
    assert set(seen.tolist()) == set(range(100)) and len(seen) == 7 * 16
    assert sampler.epoch(0) == 0.0
    assert sampler.epoch(25) == 4.0
    assert [sampler_of(sizes_only(), batch=25).steps(epochs) for epochs in (1.0, 3.0)] == [4, 12]
    assert sampler_of(sizes_only((3,)), batch=8).steps(1.0) == 1


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_get_about_the_same_number_of_tokens(world):
    data = sizes_only((400,))
    sampler = sampler_of(data, batch=200, micro=1, packing=False, world=world)
    loads = [
        sum(
            int(data.lengths[pack].sum())
            for packs in sampler.micro_batches(0, rank)
            for pack in packs
        )
        for rank in range(world)
    ]
    assert max(loads) - min(loads) <= 60  # the longest pack


def test_most_packs_of_a_step_are_not_fewer_than_any_step_has():
    data = sizes_only((400,))
    sampler = sampler_of(data, batch=16)
    counts = [len(sampler.packs(step)) for step in range(100)]
    assert max(counts) <= sampler.most_packs(100) <= min(16, 1.2 * max(counts) + 1)
    assert sampler_of(data, batch=16, packing=False).most_packs(100) == 16
