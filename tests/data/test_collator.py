"""The tensors made of packs of examples."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch

from adaptsft.config.schema import DataConfig, SourceConfig
from adaptsft.data.collator import PADDING_DOCUMENT, ConstantShape, collate, eval_batches
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.model.tiny import bpe_tokenizer
from adaptsft.objectives.reference import Reference
from tests.data.sizes import sampler_of

PAD = 0


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


@pytest.mark.parametrize(("packing", "multiple"), [(True, 1), (True, 8), (False, 16)])
def test_batch_is_its_documents(data, packing, multiple):
    """Cut the batch at cu_seqlens: each document is an example or padding; targets, positions and
    counts are those of the examples."""
    for packs in sampler_of(data, batch=40, micro=3, packing=packing, length=256).micro_batches(
        0, 0
    ):
        batch = collate(packs, data, pad_id=PAD, pad_multiple=multiple)
        examples = [i for pack in packs for i in pack]
        count, length = batch.ids.shape
        assert count == len(packs)
        assert length % multiple == 0
        assert length - max(sum(data.lengths[i] for i in pack) for pack in packs) < multiple
        ids, positions = batch.ids.flatten(), batch.positions.flatten()
        bounds = batch.documents.cu_seqlens.tolist()
        assert (bounds[0], bounds[-1]) == (0, count * length)
        assert set(range(0, count * length, length)) <= set(bounds)
        sequence, target = 0, 0
        for begin, end in itertools.pairwise(bounds):
            assert positions[begin:end].tolist() == list(range(end - begin))
            if sequence < len(examples) and end - begin == data.lengths[examples[sequence]]:
                tokens, mask = data.example(examples[sequence])
                assert ids[begin:end].tolist() == tokens.tolist()
                places = np.flatnonzero(mask)
                own = slice(target, target + len(places))
                assert batch.target_idx[own].tolist() == (begin + places - 1).tolist()
                assert batch.targets[own].tolist() == tokens[places].tolist()
                assert set(batch.sequence[own].tolist()) == {sequence}
                assert batch.sequence_lengths[sequence] == len(places)
                assert data.target_tokens[examples[sequence]] == len(places)
                sequence, target = sequence + 1, target + len(places)
            else:
                assert ids[begin:end].tolist() == [PAD] * (end - begin)
        assert (sequence, target) == (len(examples), len(batch.targets))
        assert (ids[batch.target_idx + 1] == batch.targets).all()


def test_dtypes(data):
    batch = collate([[0, 1], [2]], data, pad_id=PAD, pad_multiple=8)
    assert batch.documents.cu_seqlens.dtype == torch.int32
    per_token = (batch.target_idx, batch.targets, batch.source, batch.sequence)
    per_sequence = (batch.sequence_lengths, batch.sequence_source)
    for tensor in (batch.ids, batch.positions, *per_token, *per_sequence):
        assert tensor.dtype == torch.int64
    assert {tensor.shape for tensor in per_token} == {batch.targets.shape}
    assert batch.sequence_source.shape == batch.sequence_lengths.shape == (3,)


def test_what_the_host_reads_stays_there(data):
    batch = collate([[4, 1], [2]], data, pad_id=PAD)
    moved = batch.to(torch.device("meta"))
    assert moved.ids.is_meta and moved.sequence_lengths.is_meta
    assert moved.examples.tolist() == [4, 1, 2]


def test_what_the_base_model_makes_of_each_token_comes_in_its_place(data):
    """Also where a rank has no work; and it moves to the device."""
    columns = len(Reference._fields)

    def reference(example: int) -> np.ndarray:
        """In every column its number, in every place the example and the place."""
        places = example + np.arange(data.target_tokens[example], dtype=np.float32) / 1000
        return 100 * np.arange(columns, dtype=np.float32)[:, None] + places

    batch = collate([[4, 1], [2]], data, pad_id=PAD, reference=reference)
    expected = np.concatenate([reference(example) for example in (4, 1, 2)], axis=1)
    for column, values in zip(batch.reference, expected, strict=True):
        assert column.dtype == torch.float32
        assert column.tolist() == values.tolist()
    idle = collate([], data, pad_id=PAD, reference=reference)
    assert [column.shape for column in idle.reference] == [(0,)] * columns
    assert all(column.is_meta for column in batch.to(torch.device("meta")).reference)
    assert collate([[0]], data, pad_id=PAD).reference is None


def test_tokens_carry_their_source(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x", "completion": "yz"}\n')
    sources = [SourceConfig(path=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    config = DataConfig(sources=sources, cache_dir=str(tmp_path / "cache"))
    data, _ = open_data(config, bpe_tokenizer([], 259), seed=0, log=lambda line: None)
    batch = collate([[1, 0]], data, pad_id=PAD)
    assert batch.sequence_source.tolist() == [1, 0]
    assert batch.source.tolist() == [1, 1, 1, 0, 0, 0]  # y, z and the end of the turn


def test_batches_of_a_constant_shape_hold_the_same_targets(data):
    """Rows are a power of two, or all; the padding at the end of one is cut into documents that
    attention makes little of."""
    shape = ConstantShape(rows=6, tokens=512)
    assert [shape.rows_for(packs) for packs in range(7)] == [1, 1, 2, 4, 4, 6, 6]
    for packs in ([[4, 1], [2], [0]], [[4]], []):
        batch = collate(packs, data, pad_id=PAD, shape=shape)
        plain = collate(packs, data, pad_id=PAD)
        rows = shape.rows_for(len(packs))
        assert batch.ids.shape == batch.positions.shape == (rows, 512)
        bounds = batch.documents.cu_seqlens
        assert bounds[0] == 0 and bounds[-1] == rows * 512
        for name in ("targets", "source", "sequence", "sequence_lengths"):
            assert torch.equal(getattr(batch, name), getattr(plain, name))
        assert torch.equal(batch.ids.flatten()[batch.target_idx + 1], batch.targets)
        examples = [example for pack in packs for example in pack]
        longest = [int(data.lengths[example]) for example in examples]
        assert int(bounds.diff().max()) <= max([PADDING_DOCUMENT, *longest])
        for begin, end in itertools.pairwise(bounds.tolist()):
            expected = torch.arange(end - begin)
            assert torch.equal(batch.positions.flatten()[begin:end], expected)


def test_a_batch_without_packs(data):
    batch = collate([], data, pad_id=PAD, pad_multiple=8)
    assert batch.ids.tolist() == [[PAD] * 8]
    assert batch.documents.cu_seqlens.tolist() == [0, 8]
    for tensor in (batch.targets, batch.target_idx, batch.source, batch.sequence_lengths):
        assert tensor.shape == (0,)
    for tensor in (batch.targets, batch.target_idx, batch.source, batch.sequence):
        assert tensor.dtype == torch.int64


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
        targets = sum(len(batch.targets) for share in shares for batch in share)
        assert targets == data.target_tokens.sum()


def test_evaluation_of_more_than_one_window(data):
    many = data.take(np.arange(len(data)).repeat(20))
    batches = eval_batches(many, micro_batch_size=1, max_length=256, packing=True, pad_id=PAD)
    assert sum(len(batch.targets) for batch in batches) == 20 * data.target_tokens.sum()
