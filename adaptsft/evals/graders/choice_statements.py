"""What an answer states: options behind "the answer is", or called right. Rule 2 of mcq-robust."""

import re
from bisect import bisect
from collections.abc import Iterator
from typing import NamedTuple

from adaptsft.evals.graders import choice_patterns as patterns
from adaptsft.evals.graders.choice_text import is_weak, letter_of

# What a rule says where two options are named, or one that there is not. None: it says nothing.
ABSTAIN = ""


class Named(NamedTuple):
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


class Answer:
    """An answer in plain text, options' texts as marks, and what stands where in it."""

    def __init__(self, text: str, letters: str) -> None:
        self.text, self.low, self.letters = text, text.lower(), letters

    def named(self, start: int, lower: bool = False) -> Named | None:
        """The options that are named from `start` on."""
        parts: list[Named] = []
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

    def _read(self, item: re.Match[str], lower: bool) -> Named | None:
        end, mark = item.end(), item["mark"] or ""
        if mark:
            letter, other = letter_of(mark), patterns.LETTER_TOO.match(self.text, end)
            if not other:
                return Named((letter,), end, False, mark)
            second = other[1] if other[1] in self.letters else ABSTAIN
            return Named(tuple({letter, second}), other.end(), False, "")
        letter = item["letter"]
        small = letter.islower()
        if small and not (lower and letter.upper() in self.letters):
            return None
        letter = letter.upper() if letter.upper() in self.letters else ABSTAIN
        if text := patterns.TEXT_TOO.match(self.text, end):
            second = letter_of(text[1])
            if second == letter:
                return Named((letter,), text.end(), False, "")
            if patterns.PHRASE_ENDS.match(self.low, text.end()):  # "C. Heparin", of another option
                return Named((letter, second), text.end(), False, "")
        return Named((letter,), end, small, "")

    def stands(self, named: Named, strictly: bool) -> bool:
        """Whether what follows lets the options be the answer: they are no part of a longer phrase,
        and of no question."""
        if patterns.ASKING.match(self.low, named.end):
            return False
        if not named.mark and patterns.INITIAL.match(self.text, named.end):
            return False
        if named.one in ("A", "I") and patterns.ARTICLE.match(self.low, named.end):
            return False
        if named.mark and not strictly and not is_weak(named.mark):
            return True
        strictly = strictly or named.lower
        follows = patterns.CLAUSE_ENDS if strictly else patterns.FOLLOWS
        return follows.match(self.low, named.end) is not None

    def wrong(self, named: Named) -> bool:
        """Whether it goes on with "is wrong". In "B not A" that is said of the second one."""
        wrong = patterns.WRONG.match(self.low, named.end)
        if not wrong:
            return False
        latin = wrong[0][-1:].isascii()
        return not (latin and patterns.ITEM.match(self.text, wrong.end()))

    def before(self, pattern: re.Pattern[str], at: int, reach: int = 60) -> bool:
        return pattern.search(self.low, max(0, at - reach), at) is not None


def _announced(answer: Answer) -> Iterator[_Event]:
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
    answer: Answer, start: int, end: int, strictly: bool, instead: bool = False
) -> Iterator[_Event]:
    """The event, if it is one, of an option behind the words text[start:end]."""
    denied = maybe = False
    steps = [(end, denied, maybe)]
    while len(steps) <= 8 and (step := patterns.STEP.match(answer.low, steps[-1][0])):
        denied, maybe = denied or bool(step["not"]), maybe or bool(step["maybe"])
        steps.append((step.end(), denied, maybe))
    named = None
    while steps and not named:  # behind as many of the words as there are
        end, denied, maybe = steps.pop()
        gap = (patterns.PAUSE if strictly else patterns.GAP).match(answer.low, end)
        named = answer.named(gap.end() if gap else end, lower=not strictly)
    if not named:
        return
    if maybe or answer.before(patterns.SUPPOSED, start) or _is_a_list(answer, start, named):
        return
    denied = denied or (not instead and answer.before(patterns.DENIED, start))
    if denied or answer.wrong(named):
        yield from (_Event(start, letter, denied=True) for letter in named.letters)
    elif answer.stands(named, strictly):
        yield _Event(start, named.one)


def _is_a_list(answer: Answer, start: int, named: Named) -> bool:
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


def _called(answer: Answer) -> Iterator[_Event]:
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
        elif right := patterns.RIGHT.match(answer.low, end):
            denied = answer.before(patterns.DENIED, start)
            second = right["also"] or right["too"]  # "B is also correct"
            yield _Event(start, ABSTAIN if second else named.one, denied, called=True)


def stated(answer: Answer) -> tuple[str | None, set[str]]:
    """What the statements come to, and the options that they deny."""
    current: str | None = None
    by_call, denied = "", set()
    questions = [found.start() for found in patterns.QUESTION.finditer(answer.low)]
    since = 0
    for event in sorted([*_announced(answer), *_called(answer)]):
        if current and bisect(questions, since) < bisect(questions, event.at):
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
