"""Which examples make up a step (packing and the plan), and the tensors made of them."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch

from adaptsft.config.schema import Config, DataConfig, SourceConfig
from adaptsft.data.cache import TokenizedData, open_data
from adaptsft.data.collator import collate, eval_batches
from adaptsft.data.packing import best_fit_decreasing
from adaptsft.data.sampler import BatchSampler, assign_to_ranks
from adaptsft.errors import ConfigError
from adaptsft.model.tiny import bpe_tokenizer

PAD = 0


def sizes_only(counts=(100,), weights=(1.0,), seed: int = 0, longest: int = 60) -> TokenizedData:
    """Sources with so many examples of random length, without tokens: all a plan needs."""
    generator = np.random.default_rng(seed)
    total = sum(counts)
    lengths = generator.integers(2, longest + 1, total).astype(np.int32)
    target_tokens = (lengths * generator.random(total)).astype(np.int32).clip(1)
    source = np.repeat(np.arange(len(counts)), counts).astype(np.int16)
    names = [f"source{i}" for i in range(len(counts))]
    zeros = [0] * len(counts)
    return TokenizedData(
        names, list(weights), lengths, target_tokens, source, np.arange(total), [], zeros, zeros
    )


def plan(
    data: TokenizedData,
    batch: int = 16,
    micro: int = 2,
    packing: bool = True,
    world: int = 1,
    seed: int = 0,
    length: int = 64,
):
    config = Config(seed=seed)
    config.train.global_batch_size, config.train.micro_batch_size = batch, micro
    config.data.packing, config.data.max_length = packing, length
    return BatchSampler(data, config, world)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenizedData:
    """40 conversations of one to three turns, tokenised."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    with (folder / "talks.jsonl").open("w") as file:
        for _ in range(40):
            turns = [
                {"role": role, "content": "ab" * draw.randint(1, 9)}
                for _ in range(draw.randint(1, 3))
                for role in ("user", "assistant")
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    config = DataConfig(
        path=str(folder / "talks.jsonl"), cache_dir=str(folder / "cache"), max_length=256
    )
    return open_data(config, bpe_tokenizer([], 259), seed=0, log=lambda line: None)[0]


# --- packing


@pytest.mark.parametrize("seed", range(20))
def test_packs_hold_each_example_once_and_fit(seed):
    draw = random.Random(seed)
    capacity = draw.randint(10, 100)
    lengths = [draw.randint(1, capacity) for _ in range(draw.randint(1, 300))]
    rows = best_fit_decreasing(lengths, capacity)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)
    if len(rows) > 1:  # no two rows could be one
        assert sum(sorted(sum(lengths[i] for i in row) for row in rows)[:2]) > capacity
    assert rows == best_fit_decreasing(lengths, capacity)


def test_packing_takes_the_fullest_row_with_room():
    assert best_fit_decreasing([5, 6, 3, 4, 1], 10) == [[1, 3], [0, 2, 4]]
    assert best_fit_decreasing([10, 10, 10], 10) == [[0], [1], [2]]
    assert best_fit_decreasing([], 10) == []


# --- the plan


def test_a_step_has_the_same_examples_however_it_is_split():
    data = sizes_only()
    reference = plan(data)
    for step in (0, 5, 6, 40):  # step 6 crosses the end of an epoch of 100
        expected = Counter(reference.examples(step).tolist())
        for world, micro, packing, length in itertools.product(
            (1, 2, 3, 40), (1, 4, 100), (True, False), (64, 200)
        ):
            split = plan(data, micro=micro, packing=packing, world=world, length=length)
            shares = [split.micro_batches(step, rank) for rank in range(world)]
            assert (
                Counter(i for share in shares for rows in share for row in rows for i in row)
                == expected
            )
            assert len({len(share) for share in shares}) == 1
            assert all(len(rows) <= micro for share in shares for rows in share)
            capacity = length if packing else 60
            assert all(
                sum(data.lengths[i] for i in row) <= capacity
                for share in shares
                for rows in share
                for row in rows
            )
            if not packing:
                assert all(len(row) == 1 for share in shares for rows in share for row in rows)
            assert split.target_tokens(step) == sum(
                data.target_tokens[i] * n for i, n in expected.items()
            )
            assert split.tokens(step) == sum(data.lengths[i] * n for i, n in expected.items())


def test_plan_depends_on_seed_and_step_alone():
    data = sizes_only()
    first, again = plan(data), plan(data)
    late = again.examples(30)  # asked in another order, as after a resume
    assert all((first.examples(step) == again.examples(step)).all() for step in range(31))
    assert (first.examples(30) == late).all()
    assert not (first.examples(0) == plan(data, seed=1).examples(0)).all()
    assert first.micro_batches(3, 0) == again.micro_batches(3, 0)


def test_each_epoch_has_every_example_once_in_another_order():
    steps = plan(sizes_only(), batch=7)
    stream = np.concatenate([steps.examples(step) for step in range(60)])
    epochs = [stream[i * 100 : (i + 1) * 100] for i in range(4)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [len(steps.examples(step)) for step in range(60)] == [7] * 60


def test_a_step_may_span_several_epochs():
    steps = plan(sizes_only((3,)), batch=8)
    assert Counter(np.concatenate([steps.examples(step) for step in range(3)]).tolist()) == {
        0: 8,
        1: 8,
        2: 8,
    }
    assert Counter(i for rows in steps.micro_batches(0, 0) for row in rows for i in row) == Counter(
        steps.examples(0).tolist()
    )


def test_weights_are_copies_per_epoch():
    data = sizes_only((10, 10, 10), (2.0, 0.5, 1.3))
    steps = plan(data, batch=38)  # 20 + 5 + 13: a step is an epoch
    assert steps.epoch_size == 38
    halves = set()
    for epoch in range(6):
        counts = Counter(steps.examples(epoch).tolist())
        assert [counts[i] for i in range(10)] == [2] * 10
        assert sorted(counts[i] for i in range(10, 20)) == [0] * 5 + [1] * 5
        assert sorted(counts[i] for i in range(20, 30)) == [1] * 7 + [2] * 3
        halves.add(tuple(counts[i] for i in range(10, 20)))
    assert len(halves) > 1
    with pytest.raises(
        ConfigError, match=r"data\.sources\[1\] \(source1\): weight 0\.04 of 10 examples"
    ):
        plan(sizes_only((10, 10), (1.0, 0.04)))


def test_steps_and_epochs():
    steps = plan(sizes_only(), batch=16)
    assert [steps.steps(epochs) for epochs in (0.5, 1.0, 2.0)] == [3, 6, 12]
    assert steps.epoch(0) == 0.0
    assert steps.epoch(25) == 4.0
    with pytest.raises(
        ConfigError, match=r"train\.epochs=0\.1 of 100 examples .*train\.global_batch_size=16"
    ):
        steps.steps(0.1)


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_get_about_the_same_number_of_tokens(world):
    data = sizes_only((400,))
    steps = plan(data, batch=200, micro=1, packing=False, world=world)
    loads = [
        sum(int(data.lengths[row].sum()) for rows in steps.micro_batches(0, rank) for row in rows)
        for rank in range(world)
    ]
    assert max(loads) - min(loads) <= 60  # the longest row


def test_ranks_without_work():
    data = sizes_only((3,))
    shares = assign_to_ranks([[0], [1], [2]], data.lengths, world_size=5, micro_batch_size=1)
    assert sorted(len(share[0]) for share in shares) == [0, 0, 1, 1, 1]
    assert all(len(share) == 1 for share in shares)


# --- batches


@pytest.mark.parametrize(("packing", "multiple"), [(True, 1), (True, 8), (False, 16)])
def test_batch_is_its_documents(data, packing, multiple):
    """Cut the batch at cu_seqlens: each document is an example or padding; targets, positions and counts are those of the examples."""
    for rows in plan(data, batch=40, micro=3, packing=packing, length=256).micro_batches(0, 0):
        batch = collate(rows, data, pad_id=PAD, pad_multiple=multiple)
        examples = [i for row in rows for i in row]
        count, length = batch.ids.shape
        assert count == len(rows)
        assert length % multiple == 0
        assert length - max(sum(data.lengths[i] for i in row) for row in rows) < multiple
        ids, positions, bounds = (
            batch.ids.flatten(),
            batch.positions.flatten(),
            batch.documents.cu_seqlens.tolist(),
        )
        assert (bounds[0], bounds[-1]) == (0, count * length)
        assert set(range(0, count * length, length)) <= set(bounds)
        sequence, target = 0, 0
        for begin, end in itertools.pairwise(bounds):
            assert positions[begin:end].tolist() == list(range(end - begin))
            if sequence < len(examples) and end - begin == data.lengths[examples[sequence]]:
                tokens, mask = data.example(examples[sequence])
                assert ids[begin:end].tolist() == tokens.tolist()
                learned = np.flatnonzero(mask)
                part = slice(target, target + len(learned))
                assert batch.target_idx[part].tolist() == (begin + learned - 1).tolist()
                assert batch.targets[part].tolist() == tokens[learned].tolist()
                assert set(batch.sequence[part].tolist()) == {sequence}
                assert (
                    batch.sequence_lengths[sequence]
                    == len(learned)
                    == data.target_tokens[examples[sequence]]
                )
                sequence, target = sequence + 1, target + len(learned)
            else:
                assert ids[begin:end].tolist() == [PAD] * (end - begin)
        assert (sequence, target) == (len(examples), len(batch.targets))
        assert (ids[batch.target_idx + 1] == batch.targets).all()


def test_dtypes(data):
    batch = collate([[0, 1], [2]], data, pad_id=PAD, pad_multiple=8)
    assert batch.documents.cu_seqlens.dtype == torch.int32
    for name in (
        "ids",
        "positions",
        "target_idx",
        "targets",
        "source",
        "sequence",
        "sequence_lengths",
        "sequence_source",
    ):
        assert getattr(batch, name).dtype == torch.int64
    assert (
        batch.source.shape == batch.targets.shape == batch.sequence.shape == batch.target_idx.shape
    )
    assert batch.sequence_source.shape == batch.sequence_lengths.shape == (3,)


def test_what_the_host_reads_stays_there(data):
    batch = collate([[4, 1], [2]], data, pad_id=PAD)
    moved = batch.to(torch.device("meta"))
    assert moved.ids.is_meta and moved.sequence_lengths.is_meta
    assert moved.examples.tolist() == [4, 1, 2]


def test_tokens_carry_their_source(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x", "completion": "yz"}\n')
    sources = [SourceConfig(path=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    config = DataConfig(sources=sources, cache_dir=str(tmp_path / "cache"))
    data, _ = open_data(config, bpe_tokenizer([], 259), seed=0, log=lambda line: None)
    batch = collate([[1, 0]], data, pad_id=PAD)
    assert batch.sequence_source.tolist() == [1, 0]
    assert batch.source.tolist() == [1, 1, 1, 0, 0, 0]  # y, z and the end of the turn


def test_a_batch_without_rows(data):
    batch = collate([], data, pad_id=PAD, pad_multiple=8)
    assert batch.ids.tolist() == [[PAD] * 8]
    assert batch.documents.cu_seqlens.tolist() == [0, 8]
    assert (
        batch.targets.shape
        == batch.target_idx.shape
        == batch.source.shape
        == batch.sequence_lengths.shape
        == (0,)
    )
    assert (
        batch.targets.dtype
        == batch.target_idx.dtype
        == batch.source.dtype
        == batch.sequence.dtype
        == torch.int64
    )


@pytest.mark.parametrize("packing", [True, False])
def test_evaluation_sees_every_example_once(data, packing):
    settings = {
        "micro_batch_size": 3,
        "max_length": 256,
        "packing": packing,
        "pad_id": PAD,
        "pad_multiple": 8,
    }
    expected = Counter(tuple(data.example(i)[0].tolist()) for i in range(len(data)))
    for world in (1, 3):
        shares = [
            list(eval_batches(data, **settings, world_size=world, rank=rank))
            for rank in range(world)
        ]
        assert len({len(share) for share in shares}) == 1
        seen: Counter = Counter()
        for batch in itertools.chain(*shares):
            bounds = batch.documents.cu_seqlens.tolist()
            seen.update(
                tuple(batch.ids.flatten()[a:b].tolist()) for a, b in itertools.pairwise(bounds)
            )
        assert Counter({tokens: n for tokens, n in seen.items() if any(tokens)}) == expected
        assert (
            sum(len(batch.targets) for share in shares for batch in share)
            == data.target_tokens.sum()
        )


def test_evaluation_of_more_than_one_window(data):
    many = data.take(np.arange(len(data)).repeat(20))
    batches = eval_batches(many, micro_batch_size=1, max_length=256, packing=True, pad_id=PAD)
    assert sum(len(batch.targets) for batch in batches) == 20 * data.target_tokens.sum()
