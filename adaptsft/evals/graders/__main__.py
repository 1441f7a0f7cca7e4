"""`python -m adaptsft.evals.graders` prints the rules of math-robust with their cases."""

from importlib.metadata import version

from math_verify import parse, verify

from adaptsft.evals.graders.mathematics.forms import FORMS
from adaptsft.evals.graders.mathematics.robust import grade
from adaptsft.evals.graders.mathematics.rules import RULES


def describe_math_rules() -> str:
    """In Markdown: each rule, an answer that is right because of it, one that stays wrong, and
    what math-verify says of the two."""
    lines = [
        f"| rule | gold | right | wrong | math-verify {version('math-verify')} |",
        "|---|---|---|---|---|",
    ]
    for rule in (*RULES, *FORMS):
        (gold, right), (other_gold, wrong) = rule.right, rule.wrong
        assert grade({"gold": gold, "prediction": right})["correct"], rule
        assert not grade({"gold": other_gold, "prediction": wrong})["correct"], rule
        said = ["right" if _math_verify(*pair) else "wrong" for pair in ((gold, right), rule.wrong)]
        golds = _code(gold) if gold == other_gold else f"{_code(gold)}; {_code(other_gold)}"
        lines.append(
            f"| {rule.name} | {golds} | {_code(right)} | {_code(wrong)} | {'; '.join(said)} |"
        )
    return "\n".join(lines)


def _math_verify(gold: str, answer: str) -> bool:
    expected, given = (parse(text) for text in (f"${gold}$", f"$\\boxed{{{answer}}}$"))
    return verify(expected, given)


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


if __name__ == "__main__":
    print(describe_math_rules())
