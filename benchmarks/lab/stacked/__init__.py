"""The fast mode of the lab: many runs of one shape trained at once, as one model whose weights have
a leading dimension of runs.

    model      the decoder, with the runs as the batch of every matrix product
    training   the steps of adaptsft.train for all of them, with its samplers, objectives,
               controllers and statistics; equal to it within rounding (tests/lab/test_stacked.py)
    scoring    exact match, greedily and expected at temperature 1, from one forward

A run of the lab's size takes a tenth of the time: most of adaptsft.train's, at 0.13 M parameters,
is spent between the operations. It is for searching; results that are published are checked
against runs of adaptsft.train.
"""
