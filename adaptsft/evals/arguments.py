"""Types of arguments that several command lines have; what they refuse, argparse says with the
option's name.
"""

from argparse import ArgumentTypeError


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)
