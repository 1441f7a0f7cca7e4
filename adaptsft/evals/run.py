"""python -m adaptsft.evals run: the three stages one after the other."""

import argparse

from adaptsft.evals import report, score
from adaptsft.evals.generate import answer


def run_command(options: argparse.Namespace) -> int:
    if answer(options) != 0:
        return 0  # only rank 0 scores and reports
    score.run_command(options)
    options.runs, options.compare, options.to = [options.out], [], None
    options.disagreements = 0
    return report.run_command(options)
