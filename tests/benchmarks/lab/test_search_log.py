"""What docs/results.md says of the search is what the command beside it prints."""

import json

import pytest

from benchmarks.lab.search_log import lines, means, shared
from tests.conftest import REPO

RESULTS = REPO / "benchmarks" / "results"
LOG = RESULTS / "lab_search_feedback.json"
SCALE = RESULTS / "lab_search_scale.json"
COMPARED = ["auto_old", "auto_trust4", "cap_trust4", "cap_trust6", "cap_trust8"]


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


@pytest.mark.parametrize(
    ("variants", "name", "said"),
    [
        (COMPARED, "auto_old", "mean gap 1.54 and worst 11.5 of the auto before"),
        (COMPARED, "cap_trust6", "1.69 and 15.4 of the one that ships"),
        (COMPARED, "cap_trust8", "1.85 and 18.1 with N = 8"),
        (COMPARED, "cap_trust4", "2.46 and 39.7 with N = 4"),
    ],
)
def test_the_figures_of_chosen_variants_are_those_of_the_log(variants, name, said):
    runs = [run for run in json.loads(SCALE.read_text())["runs"] if run["steps"] == 200]
    cells = shared(means(runs, 2), variants)
    assert len(cells) == 42
    _, mean, worst, *_ = {line[0]: line for line in lines(cells)}[name]
    assert mean in said and worst in said
    assert said in (REPO / "docs" / "results.md").read_text()
