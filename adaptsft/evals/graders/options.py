"""What the options of a multiple-choice question must be, for every grader that reads them."""

from adaptsft.errors import DataError


def check_options(options: dict[str, str], gold: str) -> None:
    """Raises DataError unless these are capital letters with their texts, and gold one of them."""
    if not options or not all(isinstance(text, str) for text in options.values()):
        raise DataError(f"options are {options!r}; they must be an object from letters to texts")
    if not all(len(letter) == 1 and "A" <= letter <= "Z" for letter in options):
        raise DataError(f"options are called {', '.join(options)}; they must be capital letters")
    if gold not in options:
        raise DataError(f"gold is {gold!r}; it must be a letter of options ({', '.join(options)})")
