"""The table of docs/reliability.md is the file that `make faults` writes."""

import json
import re

from tests.conftest import REPO

ROW = re.compile(r"^\| (?:\*\*)?(.+?)(?:\*\*)? \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


def test_the_page_shows_what_was_measured():
    found = json.loads((REPO / "benchmarks/results/faults.json").read_text())
    assert found["exit_status"] == 0
    rows = {
        name: tuple(map(str, (row["tried"], row["survived"], row["lost_steps"])))
        for name, row in (found["faults"] | {"all": found["total"]}).items()
    }
    page = (REPO / "docs/reliability.md").read_text()
    assert {name: tuple(figures) for name, *figures in ROW.findall(page)} == rows
