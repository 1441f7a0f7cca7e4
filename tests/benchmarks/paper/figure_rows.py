"""A row of rows.json, for the tests of the figures."""

from typing import Any


def row(
    objective: str, value: float, model: str = "M", column: str = "Avg.", **more: Any
) -> dict[str, Any]:
    return {
        "model": model,
        "objective": objective,
        "column": column,
        "value": value,
        "se": None,
        "n": None,
        "origin": "ours",
    } | more
