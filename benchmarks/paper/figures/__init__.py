"""The figures of arXiv:2510.00526 from formulas, results and runs: `python -m benchmarks.paper.figures --help`.

    formulas   weights: W(p) of any registered objectives (Fig. 2)
    sweeps     quantiles, alpha, scale: from rows of results (Fig. 3, 4, 5)
    places     continuum: mean p of base models beside the paper's (Tables 6 and 7)
    curves     trajectories: what a controller did over a run
    inputs     rows.json, results of the lab, diagnoses and run folders
    command    the command line, `main`

Each function takes plain data, returns a matplotlib figure, and raises ConfigError where the data cannot fill it.
"""

from adaptsft.analysis.places import continuum
from benchmarks.paper.figures.command import main
from benchmarks.paper.figures.curves import trajectories
from benchmarks.paper.figures.formulas import weights
from benchmarks.paper.figures.sweeps import alpha, quantiles, scale

__all__ = ["alpha", "continuum", "main", "quantiles", "scale", "trajectories", "weights"]
