import numpy as np

from adaptsft.analysis.intervals import interval, needed


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Examples of uneven length whose tokens are alike: 400 samples of 60 of 500 examples. Counting
    tokens as independent would fail."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 60, 500).astype(float)
    sums = tokens * generator.beta(0.5, 0.5, 500)
    truth, covered, naive = sums.sum() / tokens.sum(), 0, 0
    for _ in range(400):
        drawn = generator.permutation(500)[:60]
        low, high = interval(sums[drawn], tokens[drawn], 500)
        covered += low <= truth <= high
        mean = (low + high) / 2
        naive += abs(mean - truth) <= 1.96 * np.sqrt(mean * (1 - mean) / tokens[drawn].sum())
    assert 0.91 <= covered / 400 <= 0.98
    assert naive / 400 < 0.7
    low, high = interval(sums[:60], tokens[:60], 500)
    more = needed(sums[:60], tokens[:60], 500)
    assert 60 < more < 500
    assert needed(sums, tokens, 500) is None
    assert interval(sums[:1], tokens[:1], 500) is None
    assert interval(0 * sums[:60], tokens[:60], 500) is None, (
        "60 examples without such a token do not prove that there is none"
    )
    assert interval(sums, tokens, 500) == [truth, truth]
