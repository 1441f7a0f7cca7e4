"""The numbers of a run only move on purpose: `python -m tests.golden --write`."""

import json

from tests.golden.__main__ import FILE, differences, measure


def test_every_run_gives_the_numbers_of_the_file():
    assert differences(json.loads(FILE.read_text()), measure()) == []


def test_a_difference_is_named_by_run_step_and_figure():
    kept = json.loads(FILE.read_text())
    moved = json.loads(FILE.read_text())
    moved["runs"]["packed"]["steps"][1]["loss"] *= 1 + 1e-15
    (line,) = differences(kept, moved)
    assert line.startswith("packed: step 2: loss ")
    moved["machine"]["torch"] = "another"
    assert differences(kept, moved) == []
    moved["runs"]["packed"]["steps"][1]["loss"] *= 1.01
    (line,) = differences(kept, moved)
    assert line.startswith("packed: step 2: loss ")
