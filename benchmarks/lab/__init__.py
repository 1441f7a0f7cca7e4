"""The continuum lab: generated tasks whose place between a strong and a weak prior is set by pretraining, and measured.

    tasks      what a task and a family of tasks are; questions, labels with noise, data files
    letters, digits, facts   the families: rewriting words, arithmetic on digit strings, looking up records
    regimes    which tasks, noise and budget make up an experiment
    runs       configurations for adaptsft.train, and what the worker processes do with them
    scoring    exact match greedily and at temperature 1, diversity, and mean p (Eq. 5 of arXiv:2510.00526)
    pool       worker processes, many runs each, with a progress line
    report     tables and plots of the results

`benchmarks/lab/__main__.py` is the command; the quick start uses the same parts.
"""
