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

from collections.abc import Iterator
from typing import NamedTuple

from adaptsft.errors import DataError
from adaptsft.evals.graders import choice_patterns as patterns
from adaptsft.evals.graders.choice_text import (
    MARK,
    boxes,
    is_weak,
    letter_of,
    options_of,
    plain,
    without_thoughts,
)
from adaptsft.evals.graders.choice_words import SEVEN

# What a rule says where two options are named, or one that there is not. None: it says nothing.
ABSTAIN = ""


class _Named(NamedTuple):
    """Options named one after the other: "A", "C. Clopidogrel", "A, B and D"."""

    letters: tuple[str, ...]  # ABSTAIN stands for one that there is not
    end: int
    lower: bool  # by a lower-case letter
    mark: str  # the last one's text, as a mark, where it was named by that alone

    @property
    def one(self) -> str:
        """The option, where it is one."""
        return self.letters[0] if len(set(self.letters)) == 1 else ABSTAIN


class _Event(NamedTuple):
    at: int
    letter: str  # or ABSTAIN: two at once
    denied: bool = False
    called: bool = False  # "C is correct"; twice of two options is no commitment


class _Answer:
    """An answer in plain text, options' texts as marks, and what stands where in it."""

    def __init__(self, text: str, letters: str) -> None:
        self.text, self.low, self.letters = text, text.lower(), letters

    def named(self, start: int, lower: bool = False) -> _Named | None:
        """The options that are named from `start` on."""
        parts: list[_Named] = []
        while len(parts) <= len(self.letters):
            item = patterns.ITEM.match(self.text, start)
            if not item or not (read := self._read(item, lower)):
                break
            letters = (*parts[-1].letters, *read.letters) if parts else read.letters
            parts.append(read._replace(letters=letters))
            lower = lower and read.lower
            join = patterns.JOIN.match(self.low, read.end)
            if not join:
                break
            # "C, a drug", "C and I": the second one is no option
            tail = patterns.ITEM.match(self.text, join.end())
            doubtful = not join["word"] and not join["too"]
            if tail and (doubtful or tail["letter"] in ("A", "I", "a", "i")):
                ends = patterns.JOIN.match(self.low, tail.end()) or patterns.CLAUSE_ENDS.match(
                    self.low, tail.end()
                )
                if not ends:
                    break
            start = join.end()
        return parts[-1] if parts else None

    def _read(self, item, lower: bool) -> _Named | None:
        end, mark = item.end(), item["mark"] or ""
        if mark:
            letter, other = letter_of(mark), patterns.LETTER_TOO.match(self.text, end)
            if not other:
                return _Named((letter,), end, False, mark)
            second = other[1] if other[1] in self.letters else ABSTAIN
            return _Named(tuple({letter, second}), other.end(), False, "")
        letter = item["letter"]
        small = letter.islower()
        if small and not (lower and letter.upper() in self.letters):
            return None
        letter = letter.upper() if letter.upper() in self.letters else ABSTAIN
        if text := patterns.TEXT_TOO.match(self.text, end):
            second = letter_of(text[1])
            if second == letter:
                return _Named((letter,), text.end(), False, "")
            if patterns.CLAUSE_ENDS.match(self.low, text.end()):  # "C. Heparin", of another option
                return _Named((letter, second), text.end(), False, "")
        return _Named((letter,), end, small, "")

    def stands(self, named: _Named, strictly: bool) -> bool:
        """Whether what follows lets the options be the answer: they are no part of a longer phrase,
        and of no question."""
        if patterns.ASKING.match(self.low, named.end):
            return False
        if not named.mark and patterns.INITIAL.match(self.text, named.end):
            return False
        if named.mark and not strictly and not is_weak(named.mark):
            return True
        strictly = strictly or named.lower
        follows = patterns.CLAUSE_ENDS if strictly else patterns.FOLLOWS
        return follows.match(self.low, named.end) is not None

    def wrong(self, named: _Named) -> bool:
        """Whether it goes on with "is wrong". In "B not A" that is said of the second one."""
        wrong = patterns.WRONG.match(self.low, named.end)
        if not wrong:
            return False
        latin = wrong[0][-1:].isascii()
        return not (latin and patterns.ITEM.match(self.text, wrong.end()))

    def before(self, pattern, at: int, reach: int = 60) -> bool:
        return pattern.search(self.low, max(0, at - reach), at) is not None


def _announced(answer: _Answer) -> Iterator[_Event]:
    """ "The answer is C", "I choose C", "so C"."""
    for cue in patterns.CUE.finditer(answer.low):
        yield from _statement(answer, cue.start(), cue.end(), strictly=False)
    for cue in patterns.VERB.finditer(answer.low):
        if answer.before(patterns.SUBJECT, cue.start(), 20):
            yield from _statement(answer, cue.start(), cue.end(), strictly=False)
    for cue in patterns.WEAK_CUE.finditer(answer.low):
        if cue["so"] and patterns.COPULA.match(answer.low, cue.end()):
            continue  # "B is wrong; so is D"
        if cue["instead"] and not answer.before(patterns.ANY_DENIAL, cue.start()):
            continue
        yield from _statement(
            answer, cue.start(), cue.end(), strictly=True, instead=bool(cue["instead"])
        )


def _statement(
    answer: _Answer, start: int, end: int, strictly: bool, instead: bool = False
) -> Iterator[_Event]:
    """The event, if it is one, of an option behind the words text[start:end]."""
    steps, denied, maybe = [(end, False, False)], False, False
    while len(steps) <= 8 and (step := patterns.STEP.match(answer.low, steps[-1][0])):
        denied, maybe = denied or bool(step["not"]), maybe or bool(step["maybe"])
        steps.append((step.end(), denied, maybe))
    for end, denied, maybe in reversed(steps):
        gap = (patterns.PAUSE if strictly else patterns.GAP).match(answer.low, end)
        named = answer.named(gap.end() if gap else end, lower=not strictly)
        if named:
            break
    else:
        return
    if maybe or answer.before(patterns.SUPPOSED, start) or _is_a_list(answer, start, named):
        return
    denied = denied or (not instead and answer.before(patterns.DENIED, start))
    if denied or answer.wrong(named):
        yield from (_Event(start, letter, denied=True) for letter in named.letters)
    elif answer.stands(named, strictly):
        yield _Event(start, named.one)


def _is_a_list(answer: _Answer, start: int, named: _Named) -> bool:
    """Whether this is the first line of a list of options: the next one begins with the next."""
    line = answer.text.find("\n", named.end, named.end + 400)
    if "\n" not in answer.text[start : named.end] or line < 0 or not named.one:
        return False
    following = chr(ord(named.one) + 1)
    return (
        answer.text[line + 1 : line + 4]
        .lstrip("(")
        .startswith((f"{following}.", f"{following})", f"{following}:"))
    )


def _called(answer: _Answer) -> Iterator[_Event]:
    """ "C is correct", "heparin is wrong"."""
    end = 0
    for mention in patterns.MENTION.finditer(answer.text):
        start = mention.start()
        if start < end or not (named := answer.named(start)):
            continue
        end = named.end
        if mention[0].isascii() and not answer.before(patterns.NO_TERM, start, 20):
            continue
        if patterns.ASKING.match(answer.low, end) or answer.before(patterns.SUPPOSED, start):
            continue
        if answer.wrong(named):
            yield from (_Event(start, letter, denied=True) for letter in named.letters)
        elif patterns.RIGHT.match(answer.low, end):
            denied = answer.before(patterns.DENIED, start)
            yield _Event(start, named.one, denied, called=True)


def _stated(answer: _Answer) -> tuple[str | None, set[str]]:
    """What the statements come to, and the options that they deny."""
    current: str | None = None
    by_call, denied = "", set()
    questions = [found.start() for found in patterns.QUESTION.finditer(answer.low)]
    since = 0
    for event in sorted([*_announced(answer), *_called(answer)]):
        if current and any(since < question < event.at for question in questions):
            break  # the model goes on with a question of its own
        if event.denied:
            denied.add(event.letter)
            if current == event.letter:
                current = ABSTAIN
            continue
        denied.discard(event.letter)
        if event.called and by_call and by_call != event.letter:
            current = ABSTAIN
        else:
            current, since = event.letter, event.at
        by_call = event.letter if event.called else ""
    return current, denied


def _boxed(response: str, mark, letters: str) -> str | None:
    """Rule 1. Of boxes side by side ("A and B") each counts."""
    found: str | None = None
    last = 0
    for start, end, content in boxes(response):
        inside = _whole(_Answer(mark(plain(content)), letters))
        if inside is None:
            continue
        between = plain(response[last:start]).strip(" ,;&/").lower()
        beside = found is not None and between in ("", "and", "or")
        found = ABSTAIN if beside and inside != found else inside
        last = end
    return found


def _whole(answer: _Answer) -> str | None:
    """The option that a box names and nothing else, or with more behind its letter."""
    statement, _ = _stated(answer)
    if statement is not None:
        return statement
    named = answer.named(0, lower=True)
    if named and patterns.ONLY.match(answer.low, named.end):
        return named.one
    if named and answer.text[named.end : named.end + 1] in ").:,":
        return named.one
    return _only_one(answer, set())


def _lone(answer: _Answer) -> str | None:
    """Rule 3."""
    lines = answer.text.split("\n")
    found, beginning = [], []
    for line in lines:
        one = _Answer(line, answer.letters)
        bullet = patterns.BULLET.match(line)
        start = bullet.end() if bullet else 0
        named = one.named(start, lower=len(lines) == 1)
        if named and patterns.ONLY.match(one.low, named.end):
            found.append(named.one)
        elif (first := patterns.FIRST.match(line, start)) and first[1] in answer.letters.replace(
            "I", ""
        ):
            if not patterns.INITIAL.match(line, first.end(1)):
                beginning.append((line, first[1]))
    if found:
        return found[0] if len(set(found)) == 1 else ABSTAIN
    if len({letter for _, letter in beginning}) > 1:
        return None
    if beginning and beginning[0][0] is lines[0]:
        return beginning[0][1]
    last = patterns.LAST.search(lines[-1], max(0, len(lines[-1]) - 40))
    return last[1] if last and last[1] in answer.letters else None


def _only_one(answer: _Answer, denied: set[str]) -> str | None:
    """Rule 4."""
    if patterns.UNSURE.search(answer.low):
        return None
    sentences = [found.span() for found in patterns.SENTENCE.finditer(answer.text)]
    named = {}
    for number, (start, end) in enumerate(sentences):
        asked = answer.text[end - 1 : end] == "?"
        for mention in patterns.MENTION.finditer(answer.text, start, end):
            if mention[0].isascii() or asked or not _asserted(answer, mention):
                continue
            letter = letter_of(mention[0])
            if letter not in denied:
                named.setdefault(letter, set()).add(number)
    if len(named) == 1:
        ((letter, where),) = named.items()
        return letter if where & {0, len(sentences) - 1} else None
    return _concluded(answer, sentences[-1], denied) if named else None


def _asserted(answer: _Answer, mention) -> bool:
    """Whether a mention of an option's text stands for the option."""
    start, end = mention.span()
    if answer.before(patterns.TEXT_DENIED, start) or patterns.WRONG.match(answer.low, end):
        return False
    if not is_weak(mention[0]):
        return True
    own = answer.before(patterns.OWN_CLAUSE, start) or answer.before(patterns.IS, start)
    return own and patterns.CLAUSE_ENDS.match(answer.low, end) is not None


def _concluded(answer: _Answer, sentence: tuple[int, int], denied: set[str]) -> str | None:
    """The only option that a last sentence names behind "therefore"."""
    so = patterns.SO.search(answer.low, *sentence)
    if not so:
        return None
    mentions = patterns.MENTION.finditer(answer.text, so.end(), sentence[1])
    named = {letter_of(m[0]) for m in mentions if not m[0].isascii() and _asserted(answer, m)}
    return named.pop() if len(named) == 1 and not named & denied else None


def grade(record: dict) -> dict:
    """`response`, `gold`, and `options` {letter: text} or `lang`, whose letters are A to J."""
    options = _checked(record)
    letters = "".join(options)
    mark = options_of(tuple(options.items())).mark
    response = without_thoughts(record["response"])
    letter = _boxed(response, mark, letters)
    if letter is None:
        answer = _Answer(mark(plain(response)), letters)
        letter, denied = _stated(answer)
        if letter is None:
            letter = _lone(answer)
        if letter is None:
            letter = _only_one(answer, denied)
    return {
        "correct": letter == record["gold"],
        "extracted": letter or None,
        "unparsed": not letter,
    }


def _checked(record: dict) -> dict[str, str]:
    options, gold = record.get("options"), record["gold"]
    if options is None:
        if record["lang"] not in SEVEN:
            raise DataError(f"lang is {record['lang']!r}; the known ones are {', '.join(SEVEN)}")
        options = dict.fromkeys("ABCDEFGHIJ", "")
    if not options or not all(isinstance(text, str) for text in options.values()):
        raise DataError(f"options are {options!r}; they must be an object from letters to texts")
    if not all(len(letter) == 1 and "A" <= letter <= "Z" for letter in options):
        raise DataError(f"options are called {', '.join(options)}; they must be capital letters")
    if gold not in options:
        raise DataError(f"gold is {gold!r}; it must be a letter of options ({', '.join(options)})")
    return options
