import itertools
import math

import numpy as np
import pytest

from adaptsft.evals import metrics


def test_mean_and_its_error_are_clustered_by_item():
    scores = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    found = metrics.mean(scores)
    assert found == (0.5, pytest.approx(np.std([1, 0.5, 0], ddof=1) / math.sqrt(3)), 3)
    repeated = metrics.mean(np.repeat(scores, 8, axis=1))
    assert repeated == pytest.approx(found), "more samples of the same kind are not more items"
    assert metrics.mean(np.array([[1.0]])).se is None
    assert metrics.mean(np.array([[1.0], [np.nan], [0.0]])) == pytest.approx((0.5, 0.5, 2)), (
        "an item without a score is none"
    )


def test_standard_error_covers_the_truth():
    """95 % intervals hold the true mean about that often, where items differ in difficulty."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        p = generator.beta(0.5, 0.5, 60)
        found = metrics.mean((generator.random((60, 16)) < p[:, None]).astype(float))
        hits += abs(found.value - 0.5) < 1.96 * (found.se or 0)
    assert 0.92 < hits / 400 < 0.98


def test_pass_at_k_is_the_mean_over_all_choices():
    scores = np.array(
        [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=float
    )
    for k in range(1, 6):
        by_hand = np.mean(
            [[max(choice) for choice in itertools.combinations(row, k)] for row in scores]
        )
        assert metrics.pass_at_k(scores, k).value == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="pass@6"):
        metrics.pass_at_k(scores, 6)


def test_a_mean_over_tokens_counts_tokens_and_its_error_items():
    """Against the sums by hand, and a bootstrap over items for the error."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 40, (50, 3)).astype(float)
    means = generator.random((50, 1)) + 0.1 * generator.random((50, 3))
    found = metrics.per_token(np.where(tokens > 0, means, np.nan), tokens)
    assert found.value == pytest.approx((means * tokens).sum() / tokens.sum())
    assert found.n == 50
    sums, counts = (means * tokens).sum(1), tokens.sum(1)
    drawn = generator.integers(0, 50, (4000, 50))
    assert found.se == pytest.approx((sums[drawn].sum(1) / counts[drawn].sum(1)).std(), rel=0.06)
    assert metrics.per_token(means[:1], tokens[:1]).se is None


def test_paper_rounding_is_that_of_the_paper():
    """16 columns of AIME (30 items), 1 right in 2 of them: 2 x 3.3 / 16 = 0.41, not 0.42.

    Table 2 prints 0.41.
    """
    scores = np.zeros((30, 16))
    scores[0, :2] = 1
    assert round(100 * metrics.paper_rounding(scores), 2) == 0.41
    assert round(100 * metrics.mean(scores).value, 2) == 0.42
    assert metrics.by_sample(scores)[:3] == pytest.approx([1 / 30, 1 / 30, 0])


def test_paired_bootstrap():
    generator = np.random.default_rng(1)
    hard = generator.random((300, 1))
    a = (generator.random((300, 8)) > hard).astype(float)
    better = np.maximum(a, generator.random((300, 8)) < 0.15)
    found = metrics.paired_bootstrap(a, better)
    assert found.value == pytest.approx(better.mean() - a.mean())
    assert 0 < found.low < found.value < found.high
    assert found.p < 0.001 and found.n == 300
    assert metrics.paired_bootstrap(a, better) == found, "the same every time"
    same = metrics.paired_bootstrap(a, a)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    # pairing: the items differ far more than the runs do, which an unpaired error would drown in
    assert found.high - found.low < 2 * 1.96 * metrics.mean(a).se
    with pytest.raises(ValueError, match="300 and 299"):
        metrics.paired_bootstrap(a, a[1:])


def test_the_interval_agrees_with_the_t_test():
    generator = np.random.default_rng(2)
    a, b = generator.random((200, 1)), generator.random((200, 1))
    found = metrics.paired_bootstrap(a, b)
    error = np.std(b - a, ddof=1) / math.sqrt(200)
    assert found.low == pytest.approx((b - a).mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx((b - a).mean() + 1.96 * error, abs=0.1 * error)
    t = abs((b - a).mean()) / error
    assert found.p == pytest.approx(math.erfc(t / math.sqrt(2)), abs=0.03)
