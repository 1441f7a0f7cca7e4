"""The objectives: one function each. What a function gets and returns: adaptsft.objectives.base.

Weights are computed from log p and 1 - p so that they keep their relative accuracy at both ends;
tests/objectives/test_library.py checks every objective here against 50-digit arithmetic.
"""

from adaptsft.objectives.library import functions, reference, weighted

__all__ = ["functions", "reference", "weighted"]
