r"""Where the answer stands in what a model wrote: behind thoughts, in the last box, or stated."""

import re

_BETWEEN = re.compile(
    r"[\s$,;.&*]*(?:\\?(?:and|or|text\{\s*,?\s*(?:and|or)\s*\}))?(?:[\s$,;.&*\\()\[\]]|\\quad)*(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# What announces an answer, in some languages. The last one counts.
_CUES = re.compile(
    r"(?:(?<!wrong )(?<!incorrect )answer\s*(?:is|=|:)|####"
    r"|答案\s*(?:是|为|為|:)|答\s*:|정답\s*(?:은|는|:)|답\s*:|答え\s*(?:は|:)|ответ\s*:|antwort\s*(?:ist|:)"
    r"|réponse\s*(?:est|:)|respuesta\s*(?:es|:)|resposta\s*(?:é|:)|risposta\s*(?:è|:)"
    r"|jibu\s*(?:ni|:)|उत्तर\s*:?|الجواب\s*(?:هو|:))\s*:?\s*",
    re.IGNORECASE,
)
_END = re.compile(r"\n|\.(?=\s|$)|。|(?<=\S)\s+(?:\((?=[a-z]{3})|(?:because|since|as|so|which)\b)")


# a base model that runs on asks itself the next question
_NEXT_QUESTION = re.compile(r"\n[\s*#]*(?:Human|User|Question|Problem|Instruction|Q)\s*\d*\**\s*:")


def of_this_question(text: str) -> str:
    """The text behind the thoughts (none where they were cut off), up to a question of its own."""
    _, closed, rest = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return ""
    rest = rest if closed else text
    asked = _NEXT_QUESTION.search(rest)
    before = rest[: asked.start()] if asked else rest
    last = before.rstrip().rpartition("\n")[2]
    answered = (
        _BOX.search(before) or _CUES.search(before) or re.search(r"^.{0,60}\d\D{0,20}$", last)
    )
    return before if answered else rest


def boxed(text: str) -> str | None:
    r"""What the last box holds, with the boxes right before it: `$\boxed 2$ and $\boxed 3$`.

    "" where that box was cut off, None where there is none.
    """
    found: list[tuple[int, int, str]] = []  # start, end, content
    position = 0
    while box := _BOX.search(text, position):
        depth, position = 0, box.end() - 1
        for end in range(box.end() - 1, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                break
        else:
            return ""
        found.append((box.start(), end + 1, text[box.end() : end]))
        position = end + 1
    if not found:
        return None
    kept = [found[-1]]
    for box in reversed(found[:-1]):
        if not _BETWEEN.fullmatch(text, box[1], kept[0][0]):
            break
        if box[2] != kept[0][2]:
            kept.insert(0, box)
    return ", ".join(content for _, _, content in kept)


_BOLD = re.compile(r"(?<!not )\*\*([^*\n]+)\*\*")


def stated(text: str) -> str | None:
    """What follows the last "the answer is", up to the end of its sentence.

    Without one, what is bold in the last line.
    """
    cues = list(_CUES.finditer(text))
    if not cues:
        bold = _BOLD.findall(text.rstrip().rpartition("\n")[2])
        # **Total: 80 + 20 = 100 sheep**
        return re.split(r"[:=]", bold[0].rstrip(" .:"))[-1].strip() if len(bold) == 1 else None
    rest = text[cues[-1].end() :].lstrip("} ").rstrip()  # \text{The answer is }5
    return (_END.split(rest, maxsplit=1)[0] if rest else "").strip(" *:$").rstrip(".") or None
