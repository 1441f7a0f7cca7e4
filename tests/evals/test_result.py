"""What result.json says of several samples: pass@k and entropy."""

import itertools

import numpy as np
import pytest

from adaptsft.evals import result


def any_of(row: list[float], k: int) -> float:
    """pass@k of an item: over all subsets of k of its samples."""
    return float(np.mean([max(chosen) for chosen in itertools.combinations(row, k)]))


@pytest.mark.parametrize(
    ("samples", "ks"), [(1, []), (2, [2]), (5, [2, 4, 5]), (8, [2, 4, 8]), (12, [2, 4, 8, 12])]
)
def test_pass_at_k_is_there_for_the_powers_of_two_that_there_are_samples_for(samples, ks):
    generator = np.random.default_rng(samples)
    table = (generator.random((7, samples)) < generator.random((7, 1))).astype(float)
    found = result.estimates("right", table)
    assert [name for name in found if "/pass@" in name] == [f"right/pass@{k}" for k in ks]
    for k in ks:
        by_item = [any_of(row, k) for row in table]
        assert found[f"right/pass@{k}"] == {
            "value": pytest.approx(np.mean(by_item)),
            "se": pytest.approx(np.std(by_item, ddof=1) / 7**0.5),
            "n": 7,
        }


def test_pass_at_k_needs_right_and_wrong_and_all_samples_of_an_item():
    assert "jw/pass@2" not in result.estimates("jw", np.array([[0.5, 1.0], [0.0, 1.0]]))
    table = np.array([[0.0, 1.0], [1.0, np.nan], [0.0, 0.0]])
    found = result.estimates("right", table)["right/pass@2"]
    assert (found["value"], found["n"]) == (0.5, 2)
    assert "right/pass@2" not in result.estimates("right", table[[1, 1]])


def test_entropy_is_the_mean_over_the_tokens_that_were_drawn():
    sampled = [
        {"entropy": 1.0, "drawn": 4},
        {"entropy": 2.0, "drawn": 2},
        {"entropy": None, "drawn": 0},  # a prompt that was too long
        {"entropy": 0.5, "drawn": 10},
    ]
    found = result.entropy(sampled, 2)
    # the error of a ratio: residuals 8 - 6 r and 5 - 10 r, r = 13/16
    residuals = np.array([8 - 6 * 13 / 16, 5 - 10 * 13 / 16])
    assert found == {
        "value": pytest.approx(13 / 16),
        "se": pytest.approx(np.sqrt(2 * (residuals**2).sum()) / 16),
        "n": 2,
        "tokens": 16,
    }
    nothing = {"entropy": None, "drawn": 0}
    unknown = {"entropy": None, "drawn": None}  # another backend
    assert result.entropy([nothing, nothing], 2) is None
    assert result.entropy([sampled[0], unknown], 2) is None
    assert result.entropy([sampled[0], {"output": "of an older version"}], 2) is None
