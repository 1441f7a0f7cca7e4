"""Graders: a record in, a verdict out.

Graders that run sympy on a model's output do so in processes of their own, which are killed when
they take too long (pool.py).
"""
