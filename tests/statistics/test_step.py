"""Statistics are what a direct computation over the tokens gives, for any split of the tokens."""

import dataclasses

import numpy as np
import pytest
import torch

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.controllers.moved_objective import with_step_statistics
from adaptsft.data.collator import Batch
from adaptsft.objectives.state import initial_state
from adaptsft.statistics.step import (
    BINS,
    COLUMNS,
    LOG_NLL_RANGE,
    LOGIT_RANGE,
    StepStatistics,
    bin_index,
    histogram_quantile,
    p_of_bin_edges,
    running_sums,
)
from adaptsft.training.metrics import summary
from adaptsft_kernels import TokenOutputs

CPU = torch.device("cpu")


def draw(
    sequence_lengths: list[int], sequence_source: list[int], seed: int = 0
) -> tuple[TokenOutputs, Batch]:
    """Random statistics of these sequences, as the model returns them, and their batch."""
    n = sum(sequence_lengths)
    generator = torch.Generator().manual_seed(seed)
    logit = 6 * torch.randn(n, generator=generator)
    logp, rest = torch.nn.functional.logsigmoid(logit), torch.sigmoid(-logit)
    noise = torch.rand(n, generator=generator)
    tokens = TokenOutputs(logp, rest, noise, noise**2, noise > 0.4, logp / 2, -logp, torch.ones(n))
    lengths, source = torch.tensor(sequence_lengths), torch.tensor(sequence_source)
    empty = torch.empty(0, dtype=torch.int64)
    per_token = source.repeat_interleave(lengths)
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    batch = Batch(
        empty,
        empty,
        empty,
        empty,
        torch.zeros(n, dtype=torch.int64),
        per_token,
        sequence,
        lengths,
        source,
    )
    return tokens, batch


def part(tokens: TokenOutputs, batch: Batch, begin: int, end: int) -> tuple[TokenOutputs, Batch]:
    """The sequences [begin, end) alone."""
    bounds = [0, *batch.sequence_lengths.cumsum(0).tolist()]
    span = slice(bounds[begin], bounds[end])
    fields = (
        batch.targets[span],
        batch.source[span],
        batch.sequence[span] - begin,
        batch.sequence_lengths[begin:end],
        batch.sequence_source[begin:end],
    )
    return TokenOutputs(*(field[span] for field in tokens)), Batch(
        batch.ids, batch.ids, batch.ids, batch.ids, *fields
    )


def test_the_weights_of_turns_do_not_enter_the_pull():
    tokens, batch = draw([5, 300], [0, 1])
    turns = torch.arange(1, 306, dtype=torch.float32) / 100
    plain, weighted = StepStatistics(2, CPU), StepStatistics(2, CPU)
    kept = torch.ones_like(tokens.top1)
    plain.add(tokens, kept, batch)
    found = tokens._replace(weight=tokens.weight * turns)  # as linear_objective returns it
    weighted.add(found, kept, dataclasses.replace(batch, token_weight=turns))
    torch.testing.assert_close(weighted.column("pull"), plain.column("pull"))


def test_columns_equal_a_direct_computation_per_source():
    tokens, batch = draw([5, 300, 17, 1, 250], [0, 1, 1, 0, 2])
    statistics = StepStatistics(3, CPU)
    kept = tokens.logp > -1.0
    statistics.add(tokens, kept, batch)
    p = tokens.logp.double().exp()
    for source in range(3):
        mine = batch.source == source
        values = summary(statistics.table[source].numpy(), kept_only=False)
        assert values["tokens"] == int(mine.sum())
        assert values["kept"] == int(kept[mine].sum())
        assert values["mean_p"] == pytest.approx(float(p[mine].mean()), rel=1e-6)
        assert values["nll"] == pytest.approx(float(-tokens.logp[mine].double().mean()), rel=1e-12)
        for name, limit in (
            ("below_0.2", p < 0.2),
            ("above_0.5", p > 0.5),
            ("above_0.55", p > 0.55),
            ("top1", tokens.top1),
        ):
            assert values[name] == pytest.approx(float(limit[mine].double().mean()), rel=1e-12)
        seen = statistics.per_source()
        assert float(seen.top1[source]) == values["top1"]
        assert float(seen.high[source]) == values["above_0.5"]
        assert values["entropy"] == pytest.approx(
            float(tokens.entropy[mine].double().mean()), rel=1e-6
        )
        assert values["sequences"] == int((batch.sequence_source == source).sum())
        pull = float((tokens.weight.double() * (1 - p))[mine].mean())
        assert float(seen.pull[source]) == pytest.approx(pull, rel=1e-5)
    histogram = statistics.table[:, len(COLUMNS) : len(COLUMNS) + BINS]
    expected, _ = np.histogram(p.numpy(), bins=np.array([0, *p_of_bin_edges()[1:-1], 1 + 1e-9]))
    assert np.abs(histogram.sum(0).numpy() - expected).sum() <= 2, (
        "at most one token on the edge of a bin"
    )


def test_any_split_gives_the_same_sums():
    tokens, batch = draw([5, 30, 17, 1, 250, 3], [0, 1, 1, 0, 2, 1])
    kept = torch.ones_like(tokens.top1)
    whole, pieces = StepStatistics(3, CPU), StepStatistics(3, CPU)
    whole.add(tokens, kept, batch)
    for begin, end in ((4, 6), (0, 1), (1, 4)):
        some, its = part(tokens, batch, begin, end)
        pieces.add(some, torch.ones_like(some.top1), its)
    counts = [
        i
        for i, name in enumerate(COLUMNS)
        if name in ("tokens", "kept", "sequences", "top1", "below_0.2")
    ] + list(range(len(COLUMNS), whole.width))
    assert torch.equal(whole.table[:, counts], pieces.table[:, counts])
    assert torch.allclose(whole.table, pieces.table, rtol=1e-13, atol=0)


def test_statistics_are_the_steps_own_and_an_absent_source_keeps_its_last():
    tokens, batch = draw([40, 50, 60, 70, 80], [0, 0, 0, 0, 0])
    statistics = StepStatistics(2, CPU)
    statistics.add(tokens, torch.ones_like(tokens.top1), batch)
    state = with_step_statistics(
        initial_state(ObjectiveConfig(), 2, CPU), statistics, statistics.per_source()
    )
    means = torch.stack([-part.mean() for part in tokens.logp.split([40, 50, 60, 70, 80])])
    assert float(state.mean_p[0]) == pytest.approx(float(tokens.logp.exp().mean()), rel=1e-5)
    assert float(state.sequence_nll[0]) == pytest.approx(float(means.median()), rel=0.06), (
        "a bin is 5 % wide"
    )
    assert state.mean_p[1] == 0.5
    assert state.sequence_nll[1] == 1.0


def test_quantiles_of_a_histogram():
    counts = torch.zeros(2, 16384, dtype=torch.float64)
    values = 3 * torch.randn(
        100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    index = bin_index(values, LOGIT_RANGE, 16384)
    counts[0].index_add_(0, index, torch.ones_like(values))
    for q in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert float(histogram_quantile(counts, q, LOGIT_RANGE)[0]) == pytest.approx(
            float(values.quantile(q)), abs=0.004
        )
    assert histogram_quantile(counts, 0.5, LOGIT_RANGE)[1].isnan()


def test_running_sums_of_whole_numbers_are_those_of_cumsum():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 1 << 30, (3, 256), generator=generator).double()  # 1e11 tokens
    assert torch.equal(running_sums(counts), counts.cumsum(1))
    shares = counts / counts.sum(1, keepdim=True)
    shares[1] = torch.nan  # a running mean that has not begun
    found = running_sums(shares)
    torch.testing.assert_close(found, shares.cumsum(1), rtol=0, atol=256 * 2.0**-25, equal_nan=True)
    assert (found[0].diff() >= 0).all(), "searchsorted needs them in order"


def test_extremes_are_counted_in_the_outermost_bins():
    n = torch.tensor
    tokens = TokenOutputs(
        n([-1000.0, 0.0]),
        n([1.0, 0.0]),
        n([0.0, 0.0]),
        n([1.0, 1.0]),
        n([False, True]),
        n([0.0, 0.0]),
        n([1000.0, 0.0]),
        n([1.0, 1.0]),
    )
    _, batch = draw([2], [0])
    statistics = StepStatistics(1, CPU)
    statistics.add(tokens, torch.ones_like(tokens.top1), batch)
    histogram = statistics.table[0, len(COLUMNS) : len(COLUMNS) + BINS]
    assert (histogram[0], histogram[-1], histogram.sum()) == (1, 1, 2)
    assert statistics.table[0, -1] == 1, f"a sequence at 500 nats lies beyond {LOG_NLL_RANGE}"
