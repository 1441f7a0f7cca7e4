"""What docs/results.md says of the search is what the command beside it prints."""

import json

import pytest

from benchmarks.lab.search_log import lines, means
from tests.conftest import REPO

LOG = REPO / "benchmarks" / "results" / "lab_search_feedback.json"


@pytest.mark.parametrize(
    ("steps", "pairs", "said"),
    [
        (200, 4, "| **auto** | **0.96** | **5.9** |"),
        (200, 4, "| alpha_0.5 | 8.76 | 33.2 |"),
        (200, 2, "auto 0.87 and 9.8"),
        (60, 2, "auto has 0.68 and 14.7"),
    ],
)
def test_the_figures_of_the_page_are_those_of_the_log(steps, pairs, said):
    runs = [run for run in json.loads(LOG.read_text())["runs"] if run["steps"] == steps]
    found = {line[0]: line for line in lines(means(runs, pairs))}
    name = "alpha_0.5" if "alpha_0.5" in said else "auto"
    _, mean, worst, *_ = found[name]
    assert mean in said
    assert worst in said
    assert said in (REPO / "docs" / "results.md").read_text()
