"""Values as JSON, between the grader and the sandbox."""

import collections
import decimal
import fractions
import json

import numpy as np
import pytest

from adaptsft.evals.code import values


def test_values_return_as_they_went() -> None:
    plain = [
        None,
        True,
        3,
        10**30,
        -(2**63),
        1.5,
        float("inf"),
        "é\ud800",
        [1, (2, [3])],
        {1, "a"},
        frozenset({2}),
        {(1, 2): {"t": "tuple"}},
    ]
    plain += [
        2 + 3j,
        b"\x00\xff",
        fractions.Fraction(1, 3),
        decimal.Decimal("1.10"),
        np.float64(0.1),
        np.bool_(True),
    ]
    for value in plain:
        found = values.decode(json.loads(json.dumps(values.encode(value))))
        assert found == value and type(found) is type(value)
    array = values.decode(json.loads(json.dumps(values.encode(np.arange(6.0).reshape(2, 3)))))
    assert array.dtype == float and (array == np.arange(6.0).reshape(2, 3)).all()
    point = collections.namedtuple("point", "x y")
    for value, plainly in ((collections.Counter("aab"), {"a": 2, "b": 1}), (point(1, 2), (1, 2))):
        assert values.decode(values.encode(value)) == plainly
    generator = values.decode(values.encode(x for x in (3, 1)))
    assert generator != [3, 1] and set(generator) == {1, 3}


@pytest.mark.parametrize(
    "forged",
    [
        '{"t": "pickle", "v": ""}',
        '{"t": ["x"], "v": 0}',
        '{"t": "ndarray", "v": ["O", [1]]}',
        '{"t": "set", "v": [[1]]}',
        '{"a": 1}',
    ],
)
def test_forged_values_are_refused(forged: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        values.decode(json.loads(forged))
