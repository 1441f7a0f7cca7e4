"""Where the tasks stand for the base: a table beside the lab's."""

from pathlib import Path
from typing import Any

from benchmarks.lab.runs import UNTOUCHED
from benchmarks.lab.smollm2.runs import FAMILY
from benchmarks.lab.tables import table

COLUMNS = {
    "mean p": "mean_p",
    "share p < .2": "share_below_0.2",
    "k": "k",
    "top-1": "top1",
    "greedy": "greedy",
    "temperature 1": "sampled",
    "pass@8": "pass_at_8",
    "entropy": "entropy",
    "similarity": "similarity",
}


def write(folder: Path, results: list[dict[str, Any]]) -> None:
    """Leave base.md in the folder, where the results hold the base of this family: of each task's
    held-out right answers, strongest first; k is mean p / mean sum p_i^2."""
    found = {}
    for result in results:
        if result["family"] == FAMILY and result["method"] == UNTOUCHED:
            found |= result["parts"]
    if not found:
        return
    rows = [["task", *COLUMNS]]
    for task, part in sorted(found.items(), key=lambda pair: -pair[1]["mean_p"]):
        cells = (part.get(key) for key in COLUMNS.values())
        rows.append([task, *("" if cell is None else f"{cell:.2f}" for cell in cells)])
    lines = ["# The base, SmolLM2 after the warm-up, on held-out right answers", "", *table(rows)]
    (folder / "base.md").write_text("\n".join(lines) + "\n")
