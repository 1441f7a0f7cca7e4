"""The fast mode of the lab: many runs of one shape trained at once, as one model whose weights have
a leading dimension of runs.

    model      the decoder, with the runs as the batch of every matrix product
    examples   the tokens of the runs' data, and those of a step of all of them
    tokens     what objectives read of the targets, and the gradient of the logits
    training   the steps of adaptsft.train for all runs, with its samplers, objectives, controllers
               and statistics; equal to it within rounding (tests/benchmarks/lab/test_stacked.py)
    execution  which runs can be trained together, and their results; scored as all others

A run takes about half of adaptsft.train's time (docs/results.md).
"""
