"""The longest run of lines of a text that is valid Python: evalplus 0.3.1's code_extract.

evalplus parses every run: of n lines some n^2 / 2, each of up to n lines. Here the longest run that
begins at each line is found from the last line to the first, by what holds for CPython's parser,
which reads from left to right:

- a text that fails before its end fails with whatever follows it;
- a blank line or a comment in front of a text changes nothing;
- behind a complete text, a line that begins a statement at the left edge goes on exactly as it does
  alone. So the longest run of a line ends where that of the next statement does.
"""

import ast
import codeop
import re
import time
import warnings
from bisect import bisect_right
from enum import Enum

SECONDS = 10.0  # of CPU for one answer
_FLAGS = ast.PyCF_ONLY_AST | codeop.PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]
_CLAUSE = re.compile(r"(else|elif|except|finally)\b")  # of the statement before
# Lines that do not begin a statement wherever they stand: indented ones, comments, and those that
# mean something else at the beginning of a text
_NO_START = re.compile(rf"{_CLAUSE.pattern}|[\s#\\\ufeff]|$")
_INDENTED = re.compile(r"[ \t]+[^ \t\r\f#\\]")
_NO_COMMENT = re.compile("[\r\0\ud800-\udfff]")  # ends it, or cannot be read in it
# No run that ends between the line that such an error names and the end of the text is valid
_OPEN = re.compile("unterminated triple-quoted|.* was never closed")


class Run(Enum):
    VALID = 1
    INCOMPLETE = 2  # more lines may make it valid
    WRONG = 3  # no more lines can


class OutOfTime(Exception):
    """A text took more than its share of CPU time."""


def code_extract(text: str, seconds: float = SECONDS) -> str:
    """The run of two or more lines with most non-blank ones that parses, the first of equals.

    The first line where no run parses. Raises OutOfTime after `seconds` of CPU.
    """
    lines = text.split("\n")
    runs = _Runs(lines, time.thread_time() + seconds)
    most, chosen = 0, lines[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange escapes in the text
        for first, end in enumerate(runs.ends()):
            if end is not None and (size := runs.size(first, end)) > most:
                if end == first:  # of one line: the next one must be blank
                    end += 1
                    if runs.size(first, end) != size or runs.read(first, end) != Run.VALID:
                        continue
                most, chosen = size, lines[first : end + 1]
    return "\n".join(chosen)


class _Runs:
    """The runs of some lines, by the numbers of their first and their last one."""

    def __init__(self, lines: list[str], deadline: float) -> None:
        self.lines, self.deadline = lines, deadline
        self.filled = [0]
        for line in lines:
            self.filled.append(self.filled[-1] + bool(line.strip()))
        self.starts = [i for i, line in enumerate(lines) if not _NO_START.match(line)]

    def size(self, first: int, last: int) -> int:
        """Non-blank lines; 0 for a run that is longer than the text."""
        return self.filled[last + 1] - self.filled[first] if last < len(self.lines) else 0

    def read(self, first: int, last: int) -> Run:
        if time.thread_time() > self.deadline:
            raise OutOfTime
        return _compiled("\n".join(self.lines[first : last + 1]))[0]

    def ends(self) -> list[int | None]:
        """For each line the end of its run with most non-blank lines, the first of equals."""
        found: list[int | None] = [None] * len(self.lines)
        for first in range(len(self.lines) - 1, -1, -1):
            line = self.lines[first]
            if _INDENTED.match(line) or _CLAUSE.match(line):
                continue
            if _is_empty(line):
                after = found[first + 1] if first + 1 < len(self.lines) else None
                more = after is not None and self.size(first + 1, after) > 0
                found[first] = after if more else first
            else:
                found[first] = self._end(first, found)
        return found

    def _end(self, first: int, found: list[int | None]) -> int | None:
        """As in `ends`, where those of all later lines are known."""
        viable, tried, index = first - 1, 0, bisect_right(self.starts, first)
        while True:
            after = self.starts[index] if index < len(self.starts) else len(self.lines)
            run = self.read(first, after - 1)
            if run is Run.VALID:
                if after < len(self.lines) and (end := found[after]) is not None:
                    return end
                return self._trimmed(first, after - 1)
            if run is Run.WRONG:
                return self._longest(first, viable, after - 1)
            if after == len(self.lines):
                return self._longest(first, after - 1, after)
            viable, tried = after - 1, tried + 1
            index += 1 + tried // 8  # a text of many lines between quotes: not one after another

    def _longest(self, first: int, viable: int, wrong: int) -> int | None:
        """The end of the longest valid run, which is before `wrong`.

        The run to `viable` is not wrong, that to `wrong` is (or is longer than the text).
        """
        while wrong - viable > 1:
            middle = (viable + wrong) // 2
            if self.read(first, middle) is Run.WRONG:
                wrong = middle
            else:
                viable = middle
        last = viable
        while last >= first:
            if time.thread_time() > self.deadline:
                raise OutOfTime
            opened = _opened("\n".join(self.lines[first : last + 1]))
            if opened is None:
                return self._trimmed(first, last)
            last = min(last, first + opened) - 1
        return None

    def _trimmed(self, first: int, last: int) -> int:
        """The first valid end with as many non-blank lines as `last`, which is one."""
        end = last
        while end > first and not self.lines[end].strip():
            end -= 1
        while end < last and self.read(first, end) is not Run.VALID:
            end += 1
        return end


def _is_empty(line: str) -> bool:
    """Whether the tokenizer finds nothing in it: str.strip takes more kinds of space."""
    text = line.strip(" \t\f\r")
    return not text or (text[0] == "#" and not _NO_COMMENT.search(text))


def _compiled(code: str) -> tuple[Run, SyntaxError | None]:
    try:
        compile(code, "answer", "exec", _FLAGS)
    except SyntaxError as error:
        return (Run.INCOMPLETE if "incomplete input" in str(error) else Run.WRONG), error
    except (ValueError, MemoryError, RecursionError):
        return Run.WRONG, None
    return Run.VALID, None


def _opened(code: str) -> int | None:
    """None for valid code, else a line, from 0: code that ends in it or later is not valid."""
    try:
        compile(code, "answer", "exec", ast.PyCF_ONLY_AST)
    except SyntaxError as error:
        if _OPEN.match(error.msg or "") and error.lineno:
            return error.lineno - 1
    except (ValueError, MemoryError, RecursionError):
        pass
    else:
        return None
    return code.count("\n")
