"""The files that samples are kept in."""

import pytest

from adaptsft.errors import DataError
from adaptsft.evals import samples


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "samples.rank0.jsonl").write_text('{"key": "a"}\n{"key": \n{"key": "b"}\n')
    with pytest.raises(DataError, match=r"samples\.rank0\.jsonl:2: not JSON"):
        samples.Samples(tmp_path, 0)


def test_seeds_are_of_the_request_alone():
    seeds = {
        samples.seed_of(42, task, item, i)
        for task in ("a", "b")
        for item in ("1", "2", "11")
        for i in range(4)
    }
    assert len(seeds) == 24 and all(0 <= seed < 2**31 for seed in seeds)
    assert (
        samples.seed_of(42, "a", "1", 1)
        != samples.seed_of(42, "a", "11", 1)
        != samples.seed_of(43, "a", "11", 1)
    )
