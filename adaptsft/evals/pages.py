"""One document for two readers: a terminal, and Markdown as GitHub shows it.

What models wrote may hold anything: escape sequences, lone surrogates, backticks, pipes. Here it
becomes text that neither reader can misread.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

# Unicode categories: control, format (bidi and zero-width), surrogates, …
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
KEPT = {*"\n\t\u200c\u200d"}  # of these: line breaks, tabs, and joiners, which scripts need


def visible(text: str) -> str:
    """Text whose invisible characters are shown as ⟨U+202E⟩; line breaks and tabs stay."""
    unseen = {c for c in set(text) if unicodedata.category(c) in INVISIBLE} - KEPT
    return text.translate({ord(c): f"⟨U+{ord(c):04X}⟩" for c in unseen}) if unseen else text


class Page(Protocol):
    """What a document is made of. Text in it that is not our own goes through `code`, or is
    `verbatim`; `str` is the document."""

    def heading(self, text: str, level: int) -> None: ...
    def paragraph(self, text: str) -> None: ...
    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], names: int | None = None
    ) -> None:
        """The columns after the first `names` are figures, aligned on the right; None: none is."""
        ...

    def verbatim(self, label: str, text: str) -> None: ...
    def code(self, text: str) -> str: ...


class Terminal:
    """Plain text, no wider than `width` columns where it can be broken."""

    def __init__(self, width: int) -> None:
        self.width, self.lines = width, list[str]()

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines) + "\n"

    def heading(self, text: str, level: int) -> None:
        start, line = f"{'═─'[level > 2] * 2} {text} ", "═─"[level > 2]
        self.lines += ["", start + line * (self.width - _columns(start))]

    def paragraph(self, text: str) -> None:
        self.lines += [part for line in text.split("\n") for part in _wrapped(line, self.width)]

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], names: int | None = None
    ) -> None:
        """Where it is too wide, the first column gets lines of its own."""
        widths = [max(map(_columns, column)) for column in zip(header, *rows, strict=True)]
        apart, last = sum(widths) + 2 * len(widths) - 2 > self.width, ""
        self.lines.append("")
        for row in (header, *rows):
            if apart and row[0] != last:
                self.lines.append(row[0])
            last = row[0]
            cells = []
            for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
                space = " " * (width - _columns(cell))
                cells.append(cell + space if names is None or i < names else space + cell)
            self.lines.append("  ".join(["", *cells[1:]] if apart else cells))
        self.lines.append("")

    def verbatim(self, label: str, text: str) -> None:
        self.paragraph(label)
        for line in visible(text).expandtabs(4).split("\n"):
            self.lines += [f"  │ {part}" for part in _wrapped(line, max(self.width - 4, 16))]

    def code(self, text: str) -> str:
        return re.sub(r"\s+", " ", visible(text)).strip()


class Markdown:
    def __init__(self) -> None:
        self.parts: list[str] = []

    def __str__(self) -> str:
        return "\n\n".join(self.parts) + "\n"

    def heading(self, text: str, level: int) -> None:
        self.parts.append(f"{'#' * level} {text}")

    def paragraph(self, text: str) -> None:
        self.parts += [text.replace("\n", "  \n")] if text else []

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], names: int | None = None
    ) -> None:
        lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
        right = len(header) - names if names is not None else 0
        lines.insert(1, ["---"] * (len(header) - right) + ["---:"] * right)
        self.parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def verbatim(self, label: str, text: str) -> None:
        fence = _longer_than_within(text, 3)
        self.parts += [label, f"{fence}text\n{visible(text)}\n{fence}"]

    def code(self, text: str) -> str:
        """On one line. A space on each side is not shown, and parts backticks from the fence."""
        text = re.sub(r"\s+", " ", visible(text)).strip()
        fence = _longer_than_within(text, 1)
        return f"{fence} {text} {fence}" if "`" in text else f"`{text}`" if text else ""


def _longer_than_within(text: str, least: int) -> str:
    """A run of backticks that no run in the text is as long as."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _column(character: str) -> int:
    """Columns that a terminal gives it: two for Chinese, none for a combining accent."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _columns(text: str) -> int:
    return sum(map(_column, text))


def _wrapped(line: str, width: int) -> Iterator[str]:
    """The line in parts of at most `width` columns, parted at spaces where there are any."""
    start = 0
    while True:
        ahead = line[start : start + 4 * width]
        fits = max(1, bisect_right(list(accumulate(map(_column, ahead))), width))
        if start + fits >= len(line):
            yield line[start:]
            return
        space = ahead.rfind(" ", 1, fits + 1)
        yield ahead[: space if space > 0 else fits]
        start += space + 1 if space > 0 else fits
