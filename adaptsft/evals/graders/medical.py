"""Grades multiple-choice answers in free text, by the two protocols in use for the medical sets.

`paper`: HuatuoGPT-o1's `match_choice` on the whole response, the last match winning
(FreedomIntelligence/HuatuoGPT-o1 evaluation, as used by GaotangLi/Beyond-Log-Likelihood,
evaluations/medical/utils/extract_answer.py). `m1`: the box first, then the same (UCSC-VLAA/m1,
src/eval/{extract_format,score}.py). Neither ever abstains: garbage is matched to the option that
looks most like it. Such guesses are marked `unparsed`, so that their rate can be reported beside
the score.
"""

import difflib
import re

from adaptsft.evals.graders.options import check_options

LETTERS = "ABCDEFGHIJKLMN"


def match_choice(text: str, options: dict[str, str]) -> tuple[str, bool]:
    """The option letter that `text` chooses, and whether it was only guessed by similarity."""
    text = text.split("## Final Response\n\n")[-1]
    if stated := re.findall(rf"answer is\s*?([{LETTERS[0]}-{LETTERS[-1]}])", text):
        return stated[-1], False
    # A letter on its own: after a non-word character, "is ", a Chinese character or word for "is",
    # "item", "be"; never the article "A".
    before = r"[\u4e00-\u9fff]|is |是|项|\*|\W|\ |\(|为|^|'|\"|#"
    alone = re.findall(
        rf"(?:{before})(?![aA] )([{LETTERS[: len(options)]}])(?:\W|[\u4e00-\u9fff]|$)", text
    )
    if alone:
        return alone[-1], False
    text = text.lower()
    quoted = {letter: text.rfind(option.lower()) for letter, option in options.items()}
    if max(quoted.values()) >= 0:
        return max(quoted, key=lambda letter: quoted[letter]), False
    similarity = {
        letter: difflib.SequenceMatcher(None, option.lower(), text).ratio()
        for letter, option in options.items()
    }
    return max(
        reversed(similarity), key=lambda letter: similarity[letter]
    ), True  # of equals, the last


def extract_box(text: str) -> str:
    r"""What the last \boxed{} holds, without its \text{}, and of an equation the right side.

    All of the text where there is no box.
    """
    start = text.rfind("\\boxed")
    if start < 0:
        start = text.rfind("\\fbox")
    if start >= 0:
        depth = 0
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if text[end] == "}" and depth == 0:
                text = text[start : end + 1]
                break
    for command in ("\\boxed{", "\\text{"):
        if text.startswith(command) and text.endswith("}"):
            text = text[len(command) : -1]
            if "=" in text:
                text = text.split("=")[-1].lstrip(" ")
    return text


def grade_paper(record: dict) -> dict:
    check_options(record["options"], record["gold"])
    extracted, guessed = match_choice(record["response"], record["options"])
    return {"correct": extracted == record["gold"], "extracted": extracted, "unparsed": guessed}


def grade_m1(record: dict) -> dict:
    check_options(record["options"], record["gold"])
    options, gold = record["options"], record["gold"]
    extracted, guessed = extract_box(record["response"]), False
    answer = extracted.lower()
    correct = answer in (options[gold].lower(), f"{gold}. {options[gold]}".lower(), gold.lower())
    if not correct:
        letter, guessed = match_choice(extracted, options)
        correct = letter == gold
    return {"correct": correct, "extracted": extracted, "unparsed": guessed}
