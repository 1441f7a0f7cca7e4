"""Taking LaTeX apart: brackets, top-level separators, and what never matters."""

import re
from collections.abc import Callable

Equal = Callable[[str, str], bool]  # of a gold and an answer in LaTeX

_PAIRS = {"(": ")", "{": "}", "[": "]"}


def squeeze(text: str) -> str:
    """Text without spaces, dollars and a full stop."""
    return re.sub(r"(?<!\.)\.$", "", re.sub(r"[\s$]+", "", text))


def brackets(text: str, start: int) -> tuple[str, int]:
    """What the brackets that open at `start` hold, and the position behind them.

    ("", start) where none open there, or none close.
    """
    if start >= len(text) or text[start] not in _PAIRS:
        return "", start
    opening, closing, depth = text[start], _PAIRS[text[start]], 0
    for end in range(start, len(text)):
        depth += (text[end] == opening) - (text[end] == closing)
        if depth == 0:
            return text[start + 1 : end], end + 1
    return "", start


def without_outer_brackets(text: str) -> str:
    """((5)) is 5; (1,2) and (1,2)(3,4) stay. One pass: thousands of brackets must not hang."""
    partner, opened = {}, []
    for i, character in enumerate(text):
        if character in "({":
            opened.append(i)
        elif character in ")}" and opened:
            partner[opened.pop()] = i
    first, last = 0, len(text) - 1
    while first < last and partner.get(first) == last:
        nested = partner.get(first + 1) == last - 1
        held = text[first + 1 : last]
        if not nested and (not held.strip() or (text[first] == "(" and re.search("[,;]", held))):
            break
        first, last = first + 1, last - 1
    return text[first : last + 1]


def top_level(text: str, separators: str) -> list[str]:
    """`text`, split at separators that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif depth == 0 and character in separators:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def items(text: str) -> list[str]:
    r"""The elements of `1, 2 \text{ and } 3`."""
    return top_level(re.sub(r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}", ",", text), ",;")
