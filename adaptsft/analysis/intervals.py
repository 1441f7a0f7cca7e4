"""How far a mean over tokens may be off where only a sample of the examples was measured."""

import numpy as np

Z = 1.96  # standard errors on either side of a 95 % interval
PRECISION = 0.01  # half-width of mean p's interval that the report asks for


def interval(sums: np.ndarray, tokens: np.ndarray, population: int) -> list[float] | None:
    """95 % interval of the mean over the tokens of all `population` examples, from the sums over m
    of them, drawn at random.

    Tokens of an example are not independent: the example is what was drawn, and the mean is a ratio
    of two sums over examples (delta method, with the correction for a finite population: Cochran,
    Sampling Techniques, 1977, chapter 6). None where the sample does not show it: one example, or
    examples that are all alike (for instance, none has a token of the kind).
    """
    error = _standard_error(sums, tokens, population)
    if error is None:
        return None
    mean = sums.sum() / tokens.sum()
    return [max(0.0, float(mean - Z * error)), float(mean + Z * error)]


def needed(sums: np.ndarray, tokens: np.ndarray, population: int) -> int | None:
    """How many examples would bring the interval to ± PRECISION; None where it is that narrow
    already, or is not known."""
    error = _standard_error(sums, tokens, population)
    if error is None or Z * error <= PRECISION:
        return None
    variance = error**2 / (1 / len(tokens) - 1 / population)  # of a single example's contribution
    return int(np.ceil(1 / ((PRECISION / Z) ** 2 / variance + 1 / population)))


def _standard_error(sums: np.ndarray, tokens: np.ndarray, population: int) -> float | None:
    m = len(tokens)
    if m == population:
        return 0.0
    if m == 1:
        return None
    residuals = sums - sums.sum() / tokens.sum() * tokens
    variance = (1 - m / population) / m * (residuals**2).sum() / (m - 1)
    error = float(np.sqrt(variance) / tokens.mean())
    return error if error > 1e-12 else None
