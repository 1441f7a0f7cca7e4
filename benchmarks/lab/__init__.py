"""The continuum lab: tasks whose place between a strong and a weak prior is set by pretraining, and
measured.

    tasks        what a task and a family of tasks are; questions, labels with noise, data files
    families     a file each; which are for choosing settings and which for reporting
    regimes      which tasks, noise and budget make up an experiment
    loading      families and regimes from files
    settings     presets (configs/lab) and the methods that they compare
    bases        the pretrained models of a family
    runs         a run: trained by adaptsft.train, scored, its result written
    grid         all runs of a preset, in worker processes
    real         the same on a real model, data and evaluator, by commands
    training     configurations and logs of adaptsft.train
    scoring      exact match greedily, at temperature 1 and in 8 samples, entropy, and mean p (Eq. 5
                 of arXiv:2510.00526)
    fingerprint  what a result was made from
    stages       a line per stage, with its seconds
    scores       results by row and method, gaps to the best fixed alpha, learning rates
    report, tables, plots   tables and pictures of the results

The command is `python -m benchmarks.lab`; the quick start uses the same parts.
"""
