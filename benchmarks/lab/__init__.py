"""The continuum lab: generated tasks whose place between a strong and a weak prior is set by
pretraining, and measured.

    tasks        what a task and a family of tasks are; questions, labels with noise, data files
    letters, digits, facts   the families: rewriting words, arithmetic on digits, looking up records
    regimes      which tasks, noise and budget make up an experiment
    settings     presets (configs/lab) and the methods that they compare
    runs         configurations for adaptsft.train, and what the worker processes do with them
    grid         all runs of a preset, in worker processes
    real         the same on a real model, data and evaluator, by commands
    scoring      exact match greedily and at temperature 1, diversity, and mean p (Eq. 5 of
                 arXiv:2510.00526)
    fingerprint  what a result was made from
    stages       a line per stage, with its seconds
    report, plots   tables and pictures of the results

The command is `python -m benchmarks.lab`; the quick start uses the same parts.
"""
