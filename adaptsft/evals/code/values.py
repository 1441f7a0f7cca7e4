"""Python values as JSON, both ways between the grader and the sandbox. Nothing is ever unpickled.

None, bool, str, float and small int are themselves, a list is a list; everything else is an object
{"t": type, "v": content}: int (hex), complex, bytes, tuple, set, frozenset, dict (pairs), fraction,
decimal, scalar and ndarray (numpy, with its dtype), iterable (a generator, a range, a view: its
items; equal to nothing), other (the type's name; equal to nothing). Subclasses (Counter, a
namedtuple, an enum) are sent as the plain value they hold, so an `__eq__` of their own is left
behind.

This file runs in the sandbox too: the standard library only; numpy is used where the value already
has it.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from types import GeneratorType
from typing import Any

NUMPY_KINDS = "biufc"  # bool, signed, unsigned, float, complex: dtypes without Python objects
_ITERABLES = (
    range,
    map,
    filter,
    zip,
    reversed,
    enumerate,
    deque,
    GeneratorType,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


class Opaque:
    """A value of which only the type's name, and of an iterable the items, came out.

    Equal to nothing, itself included.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str, items: list[Any] | None = None) -> None:
        self.name, self.items = name, items

    def __eq__(self, other: object) -> bool:
        return False

    def __iter__(self) -> Any:
        if self.items is None:
            raise TypeError(f"{self.name} cannot be iterated over")
        return iter(self.items)


class TooLarge(Exception):
    """A value of more items than wanted."""


def encode(value: Any, most: int = 2**62) -> Any:
    """What json.dumps takes, for any value.

    Raises TooLarge beyond `most` items, RecursionError for one nested too deep or in itself.
    """
    return _encode(value, [most])


def _encode(value: Any, left: list[int]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else _tagged("int", hex(value))
    if isinstance(value, list):
        return _each(value, left)
    for base in (tuple, set, frozenset):
        if isinstance(value, base):
            return _tagged(base.__name__, _each(value, left))
    if isinstance(value, dict):
        return _tagged(
            "dict",
            [
                [_encode(key, left), _encode(item, left)]
                for key, item in _counted(dict.items(value), left)
            ],
        )
    numpy = sys.modules.get("numpy")
    if (
        numpy is not None
        and isinstance(value, (numpy.generic, numpy.ndarray))
        and value.dtype.kind in NUMPY_KINDS
    ):
        name = "ndarray" if isinstance(value, numpy.ndarray) else "scalar"
        return _tagged(name, [value.dtype.str, _encode(value.tolist(), left)])
    if isinstance(value, int):
        return _encode(int.__int__(value), left)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return _tagged("complex", [value.real, value.imag])
    if isinstance(value, (bytes, bytearray)):
        return _tagged("bytes", value.hex())
    if isinstance(value, Fraction):
        return _tagged(
            "fraction", [_encode(value.numerator, left), _encode(value.denominator, left)]
        )
    if isinstance(value, Decimal):
        return _tagged("decimal", str(value))
    if isinstance(value, _ITERABLES):
        return _tagged("iterable", [kind.__name__, _each(value, left)])
    return _tagged("other", str(kind.__name__))


def _each(items: Iterable[Any], left: list[int]) -> list[Any]:
    return [_encode(item, left) for item in _counted(items, left)]


def _counted(items: Iterable[Any], left: list[int]) -> Iterator[Any]:
    for item in items:
        left[0] -= 1
        if left[0] < 0:
            raise TooLarge
        yield item


def decode(value: Any) -> Any:
    """The value that `encode` was given.

    Raises ValueError, TypeError or RecursionError for anything that `encode` does not write.
    """
    if value is None or type(value) in (bool, str, float, int):
        return value
    if type(value) is list:
        return [decode(item) for item in value]
    if type(value) is not dict or value.keys() != {"t", "v"}:
        raise ValueError("not a tagged value")
    reader = _READERS.get(value["t"])
    if reader is None:
        raise ValueError(f"unknown tag {value['t']!r}")
    return reader(value["v"])


def _tagged(tag: str, content: Any) -> dict[str, Any]:
    return {"t": tag, "v": content}


def _items(content: Any) -> list[Any]:
    if type(content) is not list:
        raise ValueError("a container's content is a list")
    return [decode(item) for item in content]


def _numpy(content: Any) -> Any:
    import numpy  # only the grader comes here: inputs hold no numpy values

    name, items = content
    dtype = numpy.dtype(name)
    if dtype.kind not in NUMPY_KINDS:
        raise ValueError(f"dtype {name!r}")
    return numpy.array(decode(items), dtype=dtype)


_READERS: dict[Any, Any] = {
    "int": lambda content: int(content, 16),
    "complex": lambda content: complex(float(content[0]), float(content[1])),
    "bytes": bytes.fromhex,
    "tuple": lambda content: tuple(_items(content)),
    "set": lambda content: set(_items(content)),
    "frozenset": lambda content: frozenset(_items(content)),
    "dict": lambda content: {decode(key): decode(item) for key, item in content},
    "fraction": lambda content: Fraction(decode(content[0]), decode(content[1])),
    "decimal": lambda content: Decimal(str(content)),
    "ndarray": _numpy,
    "scalar": lambda content: _numpy(content)[()],
    "iterable": lambda content: Opaque(str(content[0]), _items(content[1])),
    "other": lambda content: Opaque(str(content)),
}
