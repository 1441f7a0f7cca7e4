"""Letters: rewrite a word of six letters."""

import random
import string

from benchmarks.lab.tasks import Family, Task

LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by frequency in English
SYMBOLS = "#$%&*+-/:;?@^~!.,()[]{}1_0"  # written by no task but the cipher
CIPHER = str.maketrans(LETTERS, SYMBOLS)
NEXT = str.maketrans(string.ascii_lowercase, string.ascii_lowercase[1:] + "a")
# frequent letters become rare ones, and the other way round
SWAPPED = str.maketrans(LETTERS, LETTERS[13:] + LETTERS[:13])
LENGTH = 6


def word(generator: random.Random, zipf: bool) -> str:
    """Letters as skewed as in a language (the k-th has a weight of 1/k), or uniform."""
    return "".join(
        generator.choices(LETTERS, [1 / rank for rank in range(1, 27)] if zipf else None, k=LENGTH)
    )


UPPER = Task("<upper>", str.upper, string.ascii_uppercase)
COPY = Task("<copy>", str, string.ascii_lowercase)
NEXT_LETTER = Task("<next>", lambda word: word.translate(NEXT), string.ascii_lowercase)
REVERSE = Task("<reverse>", lambda word: word[::-1], string.ascii_lowercase)
CIPHERED = Task("<cipher>", lambda word: word.translate(CIPHER), SYMBOLS)

FAMILY = Family(
    name="letters",
    question=word,
    pretrained=(UPPER, COPY, NEXT_LETTER, REVERSE),
    strong=UPPER,
    middle=Task("<upper><reverse>", lambda word: word.upper()[::-1], string.ascii_uppercase),
    weak=CIPHERED,
    redefined=Task("<next>", lambda word: word.translate(SWAPPED), string.ascii_lowercase),
    open=Task("<either>", lambda word: [c + c.upper() for c in word], string.ascii_letters),
)
