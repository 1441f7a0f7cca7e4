"""python -m adaptsft.evals run: the three stages one after the other, of the tasks asked for alone.

What else is below --out, such as a task that was given up, is left to `score` and `report`.
"""

import argparse

from adaptsft.evals import report, samples, score
from adaptsft.evals.generate import answer
from adaptsft.evals.tables import build


def run_command(options: argparse.Namespace) -> int:
    folders = answer(options)
    if not folders:
        return 0  # only rank 0 scores and reports
    score.score_folders(folders, options)
    # a folder each, and one row for those of a model
    results = [samples.read_json(folder / "result.json") for folder in folders]
    labels = [str(result["model"]["objective"]) for result in results]
    tables = build(folders, labels=dict(zip(folders, labels, strict=True)))
    report.write(tables, options.out)
    print(f"\n{report.markdown(tables)}\n{options.out}/report.md, .csv, .tex, .png")
    return 0
