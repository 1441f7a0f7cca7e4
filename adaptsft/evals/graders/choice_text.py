r"""From an answer as a model wrote it to plain text in which options are marks; read by mcq-robust.

Everything here takes time linear in the answer, whatever it holds.
"""

import re
import unicodedata
from functools import lru_cache

# A thought that is never closed ends with the answer; one that was opened by the prompt begins it.
_TAGS = "think|thinking|thought|thoughts|reasoning|scratchpad"
_THOUGHT = re.compile(
    rf"(?P<open><(?:{_TAGS})>|<\|begin_of_thought\|>|<\|channel\|>analysis|◁think▷"
    r"|(?:^|\n)#+ *Thinking *(?=\n))"
    rf"|</(?:{_TAGS})>|<\|end_of_thought\|>|<\|channel\|>final|assistantfinal|◁/think▷"
    r"|(?:^|\n)#+ *Final Response *(?=\n)",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox) ?\{|<answer>", re.IGNORECASE)
_TAG = re.compile("</answer>", re.IGNORECASE)
_BRACE = re.compile(r"[{}]")
_LONGEST_BOX = 2000  # characters

_MARKS = "\u0300-\u036f"  # of Latin letters, once they are decomposed
_LATIN = f"A-Za-z\u00c0-\u024f\u1e00-\u1eff{_MARKS}"
# what continues a word: \w lacks the vowel signs of India's scripts
INSIDE = rf"\w{_MARKS}\u0900-\u0dff"
# full-width, bold, circled and bracketed letters and digits
_DRESSED = re.compile("[\uff01-\uff5e\u2460-\u24e9\U0001d400-\U0001d7ff\U0001f110-\U0001f169]+")
_MARKS_IN_WORDS = re.compile(
    rf"(?<=[A-Za-z{_MARKS}][A-Za-z])[{_MARKS}]+|(?<=[A-Za-z])[{_MARKS}]+(?=[A-Za-z])"
)
_DIGIT = re.compile(r"(?![0-9])\d")
_SAME = str.maketrans(
    {
        **dict.fromkeys("।॥。｡።۔", "."),
        **dict.fromkeys("،、﹐", ","),
        **dict.fromkeys("“”„«»「」『』‟", '"'),
        **dict.fromkeys("‘’‚ʼ", "'"),
        **dict.fromkeys("–‐‑−", "-"),
        **dict.fromkeys("【〔〈《", "("),
        **dict.fromkeys("】〕〉》", ")"),
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\ufeff\u00ad\u2060", ""),
        **dict.fromkeys(map(chr, range(0xE000, 0xE200)), ""),  # the marks of options
        "—": " - ",
        "→": ":",
        "؟": "?",
        "İ": "I",  # its lower case has two characters
    }
)
_DROPPED = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"~~[^~\n]*~~", ""),  # struck out
        ("[\u2705\u2611\u2713\u2714]", " correct "),  # ticks and crosses
        ("[\u274c\u274e\u2716-\u2718]", " wrong "),
        ("[\u2600-\u27bf\ufe0f\U0001f300-\U0001faff]", ""),
        (r"\\[dt]?frac *\{([^{}]{1,20})\} *\{([^{}]{1,20})\}", r"\1/\2"),
        (r"\\(?:text|math)[a-z]*(?![a-zA-Z])", ""),
        (r"\\(?:f?box|boxed|framebox|underline|emph|bm|boldsymbol|mbox|bf|rm|it)(?![a-zA-Z])", ""),
        (r"\\(?:left|right|large|Large)(?![a-zA-Z])", ""),
        (r"\\(?:q?quad(?![a-zA-Z])|[ ,;:!])", " "),
        (r"\\\\|<br ?/?>", "\n"),
        (r"\\[()\[\]]|\\?\$|\\(?=[%&#_{}])", ""),
        (r"</?(?:[biups]|[a-z_]{2,20}\d?)>|<\|[a-z_]{1,40}\|>", ""),
        (r"(?<!\d)\*+|\*+(?!\d)|`+|[{}]", ""),
        (rf"(?<![{INSIDE}])_+|_+(?![{INSIDE}_])", ""),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"[^\S\n]+", " "),
        (r" ?\n\s*(?:[#>]+ )?", "\n"),
        (r"^\s*#+ ", ""),
    )
)  # fmt: skip


def without_thoughts(text: str) -> str:
    depth, start, kept = 0, 0, []
    for mark in _THOUGHT.finditer(text):
        if mark["open"]:
            if depth == 0:
                kept.append(text[start : mark.start()])
            depth = 1
        else:
            if depth == 0:
                kept = []  # the thought was opened by the prompt
            depth, start = 0, mark.end()
    return "\n".join(kept if depth else [*kept, text[start:]])


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of every \boxed{…}, \fbox{…} and <answer>…</answer>.

    The content of one that is never closed is the rest of its line.
    """
    found, end = [], 0
    for box in _BOX.finditer(text):
        if box.start() < end:
            continue
        first, depth = box.end(), 1
        line = text.find("\n", first, first + _LONGEST_BOX)
        stop = end = line if line >= 0 else min(len(text), first + _LONGEST_BOX)
        if box[0].endswith(">"):
            if closed := _TAG.search(text, first, first + _LONGEST_BOX):
                stop, end = closed.span()
        else:
            for brace in _BRACE.finditer(text, first, first + _LONGEST_BOX):
                depth += 1 if brace[0] == "{" else -1
                if depth == 0:
                    stop, end = brace.start(), brace.end()
                    break
        found.append((box.start(), end, text[first:stop]))
    return found


def _normalised(word: re.Match[str]) -> str:
    decomposed = unicodedata.normalize("NFD", word[0])
    return unicodedata.normalize("NFC", _MARKS_IN_WORDS.sub("", decomposed))


def plain(text: str) -> str:
    """Without markup, in one Unicode form, with ASCII digits, brackets, quotes and full stops.

    Marks of Latin letters are dropped within words, where people leave them out, and kept on a
    letter alone: É is not E. Cyrillic and Greek letters stay what they are.
    """
    text = _DRESSED.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    # in pieces: sorting the marks of a letter takes time quadratic in their number
    text = re.sub(r"\S{1,500}", _normalised, text).translate(_SAME)
    text = _DIGIT.sub(lambda found: str(unicodedata.digit(found[0])), text)
    for pattern, to in _DROPPED:
        text = pattern.sub(to, text)
    return text.strip()


# An option's text, where the answer names it, becomes one character: the option's number in one of
# these ranges. A weak one (a number, "no") says little in a sentence about something else.
STRONG, WEAK = 0xE000, 0xE100
ECHO = "\ue1f0"  # stands for a repetition of the whole list
MARK = f"[{chr(STRONG)}-{chr(WEAK + 25)}]"
_COMMON = {"yes", "no", "maybe", "true", "false", "none", "all", "both", "neither", "either"}
_ARTICLE = re.compile(r"(?:an?|the) (?=\w)", re.IGNORECASE)
_ARTICLES = "(?:(?:[Aa]n?|[Tt]he) )?"
_UNBOUNDED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\w]")


class Options:
    """The texts of options, to be found in answers. Two with one text are told apart by letter."""

    def __init__(self, texts: tuple[tuple[str, str], ...]) -> None:
        self.letters = "".join(letter for letter, _ in texts)
        cores = {letter: _core(text) for letter, text in texts}
        told = [core.lower() for core in cores.values()]
        named = {
            letter: core
            for letter, core in cores.items()
            if told.count(core.lower()) == 1 and not re.fullmatch("[A-Za-z]?", core)
        }
        longest = sorted(named, key=lambda letter: -len(named[letter]))
        self._marks = [_mark(letter, named[letter]) for letter in longest]
        parts = (f"({_pattern(named[letter])})" for letter in longest)
        self._texts = re.compile("|".join(parts), re.IGNORECASE) if named else None
        self._echo = re.compile(
            "".join(
                rf"\W{{0,3}}{letter}[ .):(\]-]{{1,4}}"
                + (f"{_ARTICLES}{_mark(letter, core)}" if letter in named else re.escape(core))
                + r"[ .;,\n]{0,3}"
                for letter, core in cores.items()
            )
        )

    def mark(self, text: str) -> str:
        """`text` with options' texts as marks, and repetitions of the whole list as another one."""
        if self._texts is None:
            return text
        marked = self._texts.sub(lambda found: self._marks[(found.lastindex or 1) - 1], text)
        return self._echo.sub(f"\n{ECHO}\n", marked) if len(self.letters) > 1 else marked


@lru_cache(maxsize=512)
def options_of(texts: tuple[tuple[str, str], ...]) -> Options:
    return Options(texts)


def letter_of(mark: str) -> str:
    return chr(ord("A") + (ord(mark) & 0xFF))


def is_weak(mark: str) -> bool:
    return ord(mark) >= WEAK


def _core(text: str) -> str:
    text = plain(text).rstrip(" .")
    return text[article.end() :] if (article := _ARTICLE.match(text)) else text


def _mark(letter: str, core: str) -> str:
    short = len(core) <= 3 and not (core.isupper() and core.isalpha()) and core.isascii()
    weak = core[:1].isdigit() or core[:1] in ".-" or core.lower() in _COMMON or short
    return chr((WEAK if weak else STRONG) + ord(letter) - ord("A"))


def _pattern(core: str) -> str:
    """Of a text as whole words, and of a number as a whole number without unit or sign."""
    escaped = re.sub(r"(?:\\?[ \n])+", "[ \n]", re.escape(core))
    if core.isupper() and core.isalpha() and core.isascii():
        escaped = f"(?-i:{escaped})"  # ALS, not "als"
    before = after = ""
    if core[0].isdigit() or core[0] in ".-":
        before = r"(?<![\w.,/^-])(?<!\^)"
    elif not _UNBOUNDED.match(core[0]):
        before = rf"(?<![{INSIDE}-])"
    if core[-1].isdigit():
        after = rf"(?![{INSIDE}%/^]|[.,-]\d| ?[%×*+/^=<>])"
    elif not _UNBOUNDED.match(core[-1]):
        after = rf"(?![{INSIDE}-])"
    return before + escaped + after
