"""Recorded judgements of one model against a reference.

A preference is the judge's: 1 for the reference (output_1), 2 for the model (output_2), anything
between is its probability + 1; 0 and 1.5 are draws.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsft.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Annotations:
    """One model against one reference. Arrays of n items, in the order of the 805 instructions."""

    model: str
    reference: str
    judge: str
    preference: Floats  # float64, probability that the model wins; NaN where the judge gave none
    delta_length: Floats  # float64, characters of the reference's output minus the model's


def read_annotations(path: str | Path) -> list[Annotations]:
    """Annotations of an annotations.json, which is a list of records of one model.

    Or of its compact layout, {model: {preference, len_1, len_2}}. Raises DataError with file, model
    and item.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if isinstance(content, dict) and content:
        return _compact(content, path)
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(r, dict) for r in content)
    ):
        raise DataError(
            f"{path}: holds neither a list of annotations nor {{model: table}}; see "
            "docs/alpaca_eval.md"
        )
    return [_one_model(content, path)]


def _compact(content: dict[str, Any], path: str | Path) -> list[Annotations]:
    found = []
    for name, table in content.items():
        place, keys = f"{path}, {name!r}", table if isinstance(table, dict) else ()
        missing = {"generator_1", "generator_2", "preference", "len_1", "len_2"} - set(keys)
        if missing:
            raise DataError(
                f"{place}: {', '.join(sorted(missing))} missing; a compact file holds them for "
                "every model"
            )
        if not len(table["preference"]) == len(table["len_1"]) == len(table["len_2"]) > 0:
            raise DataError(
                f"{place}: preference, len_1 and len_2 must be lists of one length, and not empty"
            )
        found.append(_annotations(table, table.get("judge", "unknown"), place))
    return found


def _one_model(records: list[dict[str, Any]], path: str | Path) -> Annotations:
    for number, record in enumerate(records):
        for key in ("generator_1", "generator_2", "output_1", "output_2", "preference"):
            if key not in record:
                raise DataError(
                    f"{path}, item {number}: {key!r} is missing; the record has {', '.join(record)}"
                )
    pairs = {
        (record["generator_1"], record["generator_2"], record.get("annotator", "unknown"))
        for record in records
    }
    if len(pairs) > 1:
        raise DataError(
            f"{path}: holds several models, references or judges, {sorted(pairs)}; give each a "
            "file of its own"
        )
    generator_1, generator_2, judge = pairs.pop()
    table = {
        "generator_1": generator_1,
        "generator_2": generator_2,
        "preference": [record["preference"] for record in records],
        "len_1": [len(record["output_1"]) for record in records],
        "len_2": [len(record["output_2"]) for record in records],
    }
    return _annotations(table, judge, str(path))


def _annotations(table: dict[str, Any], judge: str, place: str) -> Annotations:
    preference = np.empty(len(table["preference"]))
    for item, value in enumerate(table["preference"]):
        try:
            # the official files hold numbers as text
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            number = math.inf
        if not (math.isnan(number) or number == 0 or 1 <= number <= 2):
            raise DataError(
                f"{place}, item {item}: preference is {value!r}; it must be 0, null, or from 1 "
                "(reference) to 2 (model)"
            )
        preference[item] = 0.5 if number == 0 else number - 1
    len_1, len_2 = (np.asarray(table[key], dtype=np.float64) for key in ("len_1", "len_2"))
    return Annotations(table["generator_2"], table["generator_1"], judge, preference, len_1 - len_2)


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Mean of [n] probabilities and its standard error, in percent."""
    if len(values) < 2:
        return 100 * float(values.mean()) if len(values) else math.nan, math.nan
    return 100 * float(values.mean()), 100 * float(values.std(ddof=1)) / math.sqrt(len(values))
