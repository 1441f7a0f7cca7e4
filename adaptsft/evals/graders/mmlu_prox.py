"""Grades MMLU-ProX answers.

Each language has the sentence that its prompt asks for; the first letter in such a sentence is the
answer. The patterns are those of EleutherAI/lm-evaluation-harness@4e7e0d47, lm_eval/tasks/mmlu_prox
(MIT), for the languages of the paper.
"""

import re
import string

from adaptsft.errors import DataError

# The sentence that ends an answer, `{}` being the letter.
ANSWERS = {
    "mr": "उत्तर आहे {}",
    "ne": "उत्तर {} हो।",
    "sw": "Jibu ni {}",
    "te": "సమాధానం {}",
    "wo": "Tontu bi mooy {}",
    "yo": "Ìdáhùn náà ni {}",
    "zu": "Impendulo ithi {}",
}
INVALID = "[invalid]"  # what the harness writes where no answer is found

_PATTERNS = {
    language: re.compile(sentence.format(r"\(?([ABCDEFGHIJ])\)?"))
    for language, sentence in ANSWERS.items()
}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _fold(text: str) -> str:
    """exact_match of the harness runs with ignore_case and ignore_punctuation."""
    return text.translate(_PUNCTUATION).lower()


def grade(record: dict) -> dict:
    language = record["lang"]
    if language not in _PATTERNS:
        raise DataError(f"lang is {language!r}; the known ones are {', '.join(_PATTERNS)}")
    found = _PATTERNS[language].search(record["response"])
    extracted = found[1] if found else INVALID
    return {
        "correct": _fold(extracted) == _fold(record["gold"]),
        "extracted": extracted,
        "unparsed": found is None,
    }
