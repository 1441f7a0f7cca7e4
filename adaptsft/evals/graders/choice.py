r"""Grades multiple-choice answers in free text, and abstains where no option was committed to.

Four rules; the first that says something decides (docs/graders.md has examples of each):

1. box: the last readable \boxed{}, \fbox{} or <answer>.
2. stated: "the answer is C", "I choose C", "therefore C", "C is correct", and what says so in other
   languages; an option may be named by its letter or its text. The last such statement; one that
   is denied ("not C", "C is wrong") is none, and takes an earlier one back.
3. lone letter: lines that are one letter, or a first line that begins with one.
4. option text: the only option that is named, in the first or the last sentence.

What names two options, or one that there is not, is no commitment, and ends the search. Thoughts
(<think>) are no part of an answer. A letter is a Latin one that is no article, pronoun, initial or
part of a term ("vitamin K", "E. coli").
"""

import re
from collections.abc import Callable

from adaptsft.errors import DataError
from adaptsft.evals.graders import choice_patterns as patterns
from adaptsft.evals.graders.choice_statements import ABSTAIN, Answer, stated
from adaptsft.evals.graders.choice_text import (
    ECHO,
    boxes,
    is_weak,
    options_of,
    plain,
    without_thoughts,
)
from adaptsft.evals.graders.choice_words import SEVEN
from adaptsft.evals.graders.options import check_options


def _boxed(response: str, mark: Callable[[str], str], letters: str) -> str | None:
    """Rule 1. Of boxes side by side ("A and B") each counts."""
    found: str | None = None
    last = 0
    for start, end, content in boxes(response):
        inside = _whole(Answer(mark(plain(content)), letters))
        if inside is None:
            continue
        between = plain(response[last:start]).strip(" ,;&/").lower()
        beside = found is not None and between in ("", "and", "or")
        found = ABSTAIN if beside and inside != found else inside
        last = end
    return found


def _whole(answer: Answer) -> str | None:
    """The option that a box names and nothing else, or with more behind its letter."""
    statement, _ = stated(answer)
    if statement is not None:
        return statement
    named = answer.named(0, lower=True)
    if named and patterns.ONLY.match(answer.low, named.end):
        return named.one
    if named and answer.text[named.end : named.end + 1] in ").:,":
        return named.one
    return _only_one(answer, set())


def _lone(answer: Answer, denied: set[str]) -> str | None:
    """Rule 3. Lines of a list ("C. …" below "B. …") are not its author's choice."""
    found, beginning = [], []
    lines = answer.text.split("\n")
    above = ""  # the letter that the line above begins with
    for line in lines:
        one = Answer(line, answer.letters)
        bullet = patterns.BULLET.match(line)
        named = one.named(bullet.end() if bullet else 0, lower=len(lines) == 1)
        first = patterns.FIRST.match(line, bullet.end() if bullet else 0)
        listed = bool(first and above and ord(above) + 1 == ord(first[1]))
        above = first[1] if first else ""
        if named and patterns.ONLY.match(one.low, named.end):
            if not listed:
                found.append(named.one)
        elif first and _begins(line, first, answer.letters):
            beginning.append((line, first[1]))
    if found:
        return found[0] if len(set(found)) == 1 else ABSTAIN
    if len({letter for _, letter in beginning}) > 1:
        return None
    if beginning and beginning[0][0] is lines[0] and beginning[0][1] not in denied:
        return beginning[0][1]
    last = patterns.LAST.search(lines[-1], max(0, len(lines[-1]) - 40))
    letter = (last[1] or last[2]) if last else ""
    if not letter or letter not in answer.letters or letter in denied:
        return None
    others = {found[0] for found in patterns.MENTION.finditer(answer.text) if found[0].isascii()}
    return letter if others - denied <= {letter, "A", "I"} else None


def _begins(line: str, first: re.Match[str], letters: str) -> bool:
    """Whether a line that begins with a letter is about that option alone."""
    return (
        first[1] in letters.replace("I", "")
        and not patterns.INITIAL.match(line, first.end(1))
        and not patterns.BRACKETED.search(line, first.end())
    )


def _only_one(answer: Answer, denied: set[str]) -> str | None:
    """Rule 4."""
    if patterns.UNSURE.search(answer.low):
        return None
    sentences = [found.span() for found in patterns.SENTENCE.finditer(answer.text)]
    where: dict[str, set[int]] = {}
    for number, span in enumerate(sentences):
        for letter in _asserted(answer, span) - denied:
            where.setdefault(letter, set()).add(number)
    if len(where) == 1:
        ((letter, numbers),) = where.items()
        return letter if numbers & {0, len(sentences) - 1} else None
    # of several, the one that a last sentence names behind "therefore"
    if where and (so := patterns.SO.search(answer.low, *sentences[-1])):
        concluded = _asserted(answer, (so.end(), sentences[-1][1]))
        return concluded.pop() if len(concluded) == 1 and not concluded & denied else None
    return None


def _asserted(answer: Answer, sentence: tuple[int, int]) -> set[str]:
    """The options whose texts a sentence names, and neither asks for nor denies."""
    start, stop = sentence
    if answer.text[stop - 1 : stop] == "?":
        return set()
    found, end = set(), 0
    for mention in patterns.MENTION.finditer(answer.text, start, stop):
        at = mention.start()
        if mention[0].isascii() or at < end or not (named := answer.named(at)):
            continue
        end = named.end
        if answer.before(patterns.TEXT_DENIED, at) or patterns.WRONG.match(answer.low, end):
            continue
        if is_weak(mention[0]):
            own = answer.before(patterns.OWN_CLAUSE, at) or answer.before(patterns.IS, at)
            if not (own and patterns.CLAUSE_ENDS.match(answer.low, end)):
                continue
        found |= {letter for letter in named.letters if letter}
    return found


def grade(record: dict) -> dict:
    """`response`, `gold`, and `options` {letter: text} or `lang`, whose letters are A to J."""
    options = _checked(record)
    letters = "".join(options)
    mark = options_of(tuple(options.items())).mark
    response = without_thoughts(record["response"])
    letter = _boxed(response, mark, letters)
    if letter is None:
        marked = mark(plain(response)).strip()
        letter, denied = stated(Answer(marked, letters))
        # above a repetition of the options stands one of the question
        answer = Answer(marked.rpartition(ECHO)[2].strip(), letters)
        if letter is None:
            letter = _lone(answer, denied)
        if letter is None:
            letter = _only_one(answer, denied)
    return {
        "correct": letter == record["gold"],
        "extracted": letter or None,
        "unparsed": not letter,
    }


def _checked(record: dict) -> dict[str, str]:
    options: dict[str, str] | None = record.get("options")
    if options is None:
        if record["lang"] not in SEVEN:
            raise DataError(f"lang is {record['lang']!r}; the known ones are {', '.join(SEVEN)}")
        options = dict.fromkeys("ABCDEFGHIJ", "")
    check_options(options, record["gold"])
    return options
