"""The regular expressions of mcq-robust, made from the table of words.

Those of words are for text in lower case; every repetition is bounded, so that a search takes time
linear in the text.
"""

import re
from collections.abc import Iterable

from adaptsft.evals.graders.choice_text import MARK, plain
from adaptsft.evals.graders.choice_words import LANGUAGES

_LATIN = r"A-Za-z\u00c0-\u024f\u0300-\u036f\u1e00-\u1eff"
_WORDS = rf"{_LATIN}\u0370-\u06ff"  # of scripts that put spaces between words and nothing behind
_OTHER_SCRIPT = rf"(?!{MARK})[^\x00-\u052f\u1e00-\u1eff\u2000-\u2bff]"
_OPEN = r"[ \"'(\[<]{0,4}"
_CLOSE = r"[ )\]>\"']{0,4}"
_GAP = r"[ \n:=>|\"'()\[\]_-]{0,6}"


def _any(*fields: str, but: str = "") -> str:
    """An alternation of words of all languages."""
    listed = (word for of in LANGUAGES.values() for field in fields for word in of[field])
    return _words({plain(word) for word in listed} - set(but.split("|")))


def _words(words: Iterable[str]) -> str:
    """An alternation of whole words, the longest first.

    Those of a script with spaces stand behind one boundary, not behind one each: `re` then tries
    only the words with the right first letter.
    """
    groups: dict[tuple[bool, bool], list[str]] = {}
    for word in sorted(words, key=lambda word: (-len(word), word)):
        ends = re.match(f"[{_WORDS}]", word), re.match(f"[{_WORDS}]", word[-1])
        groups.setdefault((bool(ends[0]), bool(ends[1])), []).append(re.escape(word))
    return "|".join(
        (f"(?<![{_WORDS}])" if before else "")
        + f"(?:{'|'.join(group)})"
        + (f"(?![{_WORDS}])" if after else "")
        for (before, after), group in sorted(groups.items(), key=lambda of: of[0][1])
    )


# a letter on its own: not of a word, B12, C-reactive, I'm
_LETTER_ENDS = (
    rf"(?![{_LATIN}\d_\u0370-\u052f+#]|-[{_LATIN}\d]|\.[{_LATIN}\d]|'(?:s|m|d|ve|ll|re)\b)"
)
_MAYBE = ("could", "might", "may", "can", "perhaps", "possibly", "maybe")
_CONCLUDING = (
    "it is|it's|must be|it must be|it should be|it has to be|it would be|this is|this must be"
    "|that is|leaves|leaving|left with|no wait|wait|actually|i mean|correction"
    "|i think|i believe|consistent with|equals|equal to|we get|we obtain|yields"
    "|definitely|clearly|probably|most likely"
    "|corresponds to|matches|points to|leads to|indicates|suggests"
    "|correspond to|match|point to|lead to|indicate|suggest"
)
_CHOOSING = (
    "choose|chose|pick|picked|select|selected|say|guess|go with|going with|opt for|settle on"
    "|go for|going for|lean towards|leaning towards|settled on"
)
OPTION = rf"(?:(?:{_any('option')})[ :]{{0,2}})?"
# an option, by its letter or its text; then the other one beside it
ITEM = re.compile(
    rf"{_OPEN}(?i:{OPTION}){_OPEN}"
    rf"(?:(?:(?:an?|the) )?(?P<mark>{MARK})|(?P<letter>[A-Za-z]){_LETTER_ENDS})"
)
TEXT_TOO = re.compile(rf"[ .:)(\]>\"'-]{{1,5}}(?:(?:[Aa]n?|[Tt]he) )?({MARK})")
LETTER_TOO = re.compile(rf" ?[(\[](?i:{OPTION})([A-Z])[)\]]")
JOIN = re.compile(
    rf"{_CLOSE}(?: ?(?:[,/&+]|;(?= ?[a-z(])|\.(?= also )|\((?=or |and )|[)\]](?= ?[(\[])) ?"
    rf"(?P<too>(?:{_any('joins')}) ?)?"
    rf"| ?(?P<word>{_any('joins')}) ?)"
)

# what may come behind an option that is the answer
_END = r"(?:[)\]>\"' ]{0,4}(?:$|[\n.,;:!|}]|- )|[)\]\"'>]| - | [(\[])"
PHRASE_ENDS = re.compile(r"[)\]>\"' ]{0,4}(?:$|[\n.,;!])")
CLAUSE_ENDS = re.compile(rf"{_END}| (?:because|since)(?![a-z])")
FOLLOWS = re.compile(rf"{_END}|{_CLOSE} ?(?:{_any('because')})|{_CLOSE}{_OTHER_SCRIPT}")
ARTICLE = re.compile(r" (?:car|in|by|from|with|the|this|it|that)(?![a-z])")  # "A car"
INITIAL = re.compile(rf"\. (?!{_any('because')}|(?:i|the|a)(?![a-z]))[a-z]{{2}}")  # C. difficile
ASKING = re.compile(r"[)\]>\"' ]{0,4}\?")

# what announces an answer, and the words between that and the option
CUE = re.compile(
    _any("answer") + rf"|(?<![{_WORDS}])(?:choice|option|final|selection|selected|letter)(?= ?[:=])"
)
VERB = re.compile(_words(_CHOOSING.split("|")))
SUBJECT = re.compile(
    r"(?:^|[.,:;\n(] ?|\b(?:i|we|you|i'd|i'll|we'd|let's|would|will|should|must|to|so|therefore"
    r"|thus|hence|and|not|can|can't|cannot|don't|won't|never|have|finally|i'm|we're) )\Z"
)
WEAK_CUE = re.compile(
    _words(_CONCLUDING.split("|")) + f"|(?P<so>{_any('so')})|(?P<instead>{_any('instead')})"
)
COPULA = re.compile(r" (?:is|are|was|were|does|do|did)\b")
STEP = re.compile(
    rf"{_GAP},? ?(?:(?P<not>{_any('nots')})"
    rf"|{_any('links')}|(?P<maybe>{_words(_MAYBE)}))"
)
GAP, PAUSE = re.compile(_GAP), re.compile(f",?{_GAP}")

# before it, in the same clause: denied, or only spoken of
_CLAUSE = r"[^.,:;!?\n]"
_SAME_CLAUSE = (
    rf"(?:(?! (?:so|but|and|therefore|thus|hence|then|because|since) ){_CLAUSE}){{0,30}}\Z"
)
DENIED = re.compile(
    rf"(?:\b(?:not|never|cannot|don't|doesn't|didn't|won't|can't|isn't|unable|nicht|kein|pas|non)\b"
    rf"|n't |不){_SAME_CLAUSE}"
)
SUPPOSED = re.compile(
    r"\b(?:wrong|incorrect|other|another|alternative|false|previous|tempting)"
    r" (?:(?!so|but|and|then|thus|hence|therefore)[a-z]+ )?\Z"
    r"|\b(?:if|whether|suppose|assuming|assume|unless|why|maybe|perhaps|possibly|could|might)\b"
    rf"(?:(?! (?:so|but|therefore) ){_CLAUSE}){{0,30}}\Z"
)
TEXT_DENIED = re.compile(
    rf"{DENIED.pattern}|{SUPPOSED.pattern}"
    r"|\b(?:no|over|without|than|superior to|compared to|compared with|instead of|unlike|except"
    r"|excludes?|excluded|avoid|against|stop|stopped|may|kein|keine|sin|sans|ohne)\b" + _SAME_CLAUSE
)
ANY_DENIAL = re.compile(rf"(?:{_any('nots', 'wrong')})[^.;:!?\n]{{0,40}}\Z")

# behind an option: it is called right or wrong
_LINKS = rf"(?:[ :,-]{{0,3}}(?:{_any('links', but='here|correct|right|best')})){{0,4}}[ :-]{{0,3}}"
RIGHT = re.compile(
    rf"{_CLOSE}{_LINKS}(?P<also>also )?(?:{_any('right')})"
    r"(?: (?:answer|option|choice|one|response|statement))?(?P<too> too| as well)?"
    rf"(?:{_END}| ?{_OTHER_SCRIPT}| (?:{_any('because')}))"
    rf"|{_CLOSE} ?(?:is|are|was|seems|would be)(?: the| clearly| probably){{0,2}}"
    rf" (?:best|most [a-z]+)(?: [a-z]+){{0,3}}{_END}"
)
WRONG = re.compile(rf"{_CLOSE}{_LINKS}(?:correct |right |the best )?(?:{_any('wrong')})")
MENTION = re.compile(rf"(?<![{_WORDS}\d_'-])[A-Z]{_LETTER_ENDS}|{MARK}")
# a letter that is called something is no part of a term: "hepatitis B is"
NO_TERM = re.compile(
    rf"(?:^|[\n.,;:!?\"'(\[|] ?| - |\n[-*•] |^- |{_OTHER_SCRIPT} ?|"
    rf"(?:{_any('option', 'so', 'joins', 'instead')}) ?"
    r"|\b(?:that|only|because|since|then|clearly|think|believe|say|is|as|both|neither|either) )\Z"
)

QUESTION = re.compile(rf"(?:^|\n)(?:{_any('question')}) ?\d{{0,3}} ?:")
UNSURE = re.compile(
    r"i (?:don't|do not) know|(?:not|un)sure|(?:can't|cannot|can not|unable to) (?:determine|answer"
    r"|help|say|provide|recommend)|sorry"
)
SO = re.compile(_any("so"))
# a line that is an option, with anything around it; or that begins with a letter
BULLET = re.compile(r"[^\w?\ue000-\ue1ff(\[\"']{0,6}(?:\d{1,3}[.)] )?")
ONLY = re.compile(r"[)\]}\"'.:,;!|> ]{0,6}$")
# but "A: …" answers a "Q: …"
FIRST = re.compile(r"\(?([A-Z])(?:(?:\)[.:]?|[.,]|(?<!A):| -)(?= |$)| (?=because |since ))")
BRACKETED = re.compile(r"[(\[][A-Z][)\]]")
LAST = re.compile(
    rf"(?:[(\[](?i:{OPTION})([A-Z])[)\]]|[a-z\ue000-\ue1ff)]{{3}}[.!?:] ([A-Z]))[.!]?$"
)
OWN_CLAUSE = re.compile(r"(?:^|[.,;:!?\n=] ?)(?:but |so |and )?[(\"']?\Z")
IS = re.compile(rf"(?:(?<![{_WORDS}])(?:is|are|was|be)|=|:) \Z|= ?\Z")
SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?![\s\"')])[^.!?\n]*)*")
