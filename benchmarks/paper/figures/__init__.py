"""The figures of arXiv:2510.00526 from formulas, results and runs:
`python -m benchmarks.paper.figures --help`.

    formulas   weights: W(p) of any registered objectives (Fig. 2)
    sweeps     quantiles, alpha, scale: results over one number (Fig. 3, 4, 5)
    curves     trajectories: what a controller did over a run
    inputs     rows.json, results of the lab, diagnoses and run folders
    command    the command line, `main`

The continuum (mean p of base models beside the paper's, Tables 6 and 7) is drawn by
adaptsft.analysis.places. Each function takes plain data, returns a matplotlib figure, and raises
ConfigError where the data cannot fill it.
"""
