r"""Lists: the values of plus-minus, of several unknowns, and elements that stand there twice."""

import re

from adaptsft.evals.graders.mathematics.latex import Equal, brackets, items, squeeze, top_level

_PLUS_MINUS = re.compile(r"\\pm(?![a-z])")
_BRACES = re.compile(r"\\\{(.*)\\\}")
_MINUS_PLUS = re.compile(r"\\mp(?![a-z])")


def _expanded(text: str) -> list[str]:
    r"""The values of an expression with \pm: two of one, and with \mp the signs go together."""
    signs = len(_PLUS_MINUS.findall(text))
    if _MINUS_PLUS.search(text) or signs == 1:
        return [_MINUS_PLUS.sub(b, _PLUS_MINUS.sub(a, text)) for a, b in ("+-", "-+")]
    if not 0 < signs <= 4:
        return [text]
    first = [_PLUS_MINUS.sub(sign, text, count=1) for sign in "+-"]
    return [value for one in first for value in _expanded(one)]


def _values(text: str) -> list[str]:
    if braces := _BRACES.fullmatch(text.strip()):
        text = braces[1]
    head, equals, rest = text.rpartition("=")
    name = f"{head}=" if equals and re.fullmatch(r"\s*\w\s*", head) else ""
    elements = top_level(rest if name else text, ",")
    return [name + value for element in elements for value in _expanded(element)]


def plus_minus(gold: str, answer: str, equal: Equal) -> bool | None:
    r"""`\frac{1 \pm \sqrt 5}{2}` is the list of its two values, wherever the sign stands."""
    if not re.search(r"\\(?:pm|mp)(?![a-z])", gold + answer):
        return None
    one, other = (
        ",".join(_values(text)) if re.search(r"\\(?:pm|mp)(?![a-z])", text) else text
        for text in (gold, answer)
    )
    return equal(one, other)


def repeated(gold: str, answer: str, equal: Equal) -> bool | None:
    """Lists in which an element stands twice: as many of each, in any order. Sets forget that."""
    one, other = items(gold), items(answer)
    if len({*map(squeeze, one)}) == len(one) and len({*map(squeeze, other)}) == len(other):
        return None
    if len(one) != len(other):
        return False
    left = list(other)
    for element in one:
        found = next((i for i, value in enumerate(left) if equal(element, value)), None)
        if found is None:
            return False
        left.pop(found)
    return True


_UNKNOWN = re.compile(r"\s*([a-zA-Z](?:_\{?\w+\}?)?)\s*=([^=]*)")


def several_unknowns(gold: str, answer: str, equal: Equal) -> bool | None:
    """`x=1, y=2` against values without names: in the order of the names that are given."""
    pairs = [[_UNKNOWN.fullmatch(item) for item in items(text)] for text in (gold, answer)]
    for named, other, flip in ((pairs[0], answer, False), (pairs[1], gold, True)):
        names = {found[1] for found in named if found}
        if len(named) < 2 or len(names) < len(named) or "=" in other:
            continue
        values = items(without_outer(other))
        if len(values) != len(named):
            return False
        both = zip((found[2] for found in named if found), values, strict=True)
        return all(equal(b, a) if flip else equal(a, b) for a, b in both)
    return None


def without_outer(text: str) -> str:
    """What the brackets of a tuple hold."""
    held, end = brackets(text.strip(), 0)
    return held if held and end == len(text.strip()) else text
