r"""How an answer is rewritten before it is read: LaTeX in, LaTeX out.

RULES are applied in their order, each to what the earlier ones left. A rule says what it is for by
two pairs of a gold and an answer: one that is right because of it, and one that it must not make
right. The tests grade both, and docs/graders.md lists them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from adaptsft.evals.graders.mathematics.latex import brackets, without_outer_brackets
from adaptsft.evals.graders.mathematics.unicode import to_latex


@dataclass(frozen=True)
class Rule:
    name: str
    rewrite: Callable[[str], str]
    right: tuple[str, str]  # a gold, and an answer that equals it
    wrong: tuple[str, str]  # a gold, and an answer that does not


NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
# commands that change how their argument looks, not what it is
_LOOKS = re.compile(
    r"\\(underline|mathbf|mathit|boldsymbol|bm|pmb|mathsf|boxed|fbox|displaystyle|textstyle|"
    r"limits|hbox|ensuremath|mathtt)(?![a-zA-Z])\s*"
)
_TEXT = re.compile(
    r"\\(?:text|mathrm|textbf|textit|textrm|textnormal|textsf|texttt|mbox|operatorname|rm|bf|emph)"
    r"\*?\s*(?=\{)"
)
_TEXT_OF = re.compile(r"\\text\{([^{}]*)\}")
_NO_WORD = re.compile(r"[-+]?[\d.,/ ]*|[A-Za-z]|pi|i|e")
# not the second backslash of a matrix's `\\\\ `
_SPACE = re.compile(
    r"(?<!\\)\\(?:[,:;! ]|quad|qquad|thinspace|enspace|hspace\{[^{}]*\})(?![a-zA-Z])|~"
)


def _unwrap(text: str) -> str:
    """Bold, underlined and framed text as it is, and one command for all text in mathematics."""
    while look := _LOOKS.search(text):
        held, end = brackets(text, look.end())
        if text[look.end() : look.end() + 1] != "{":
            held, end = "", look.end()
        text = f"{text[: look.start()]}{held}{text[end:]}"
    text = _TEXT.sub(lambda _: r"\text", text)
    # \text{4210}_5, \mathrm{e} and \text{(C)} hold no words
    return _TEXT_OF.sub(
        lambda held: held[1] if _NO_WORD.fullmatch(held[1].strip()) else held[0], text
    )


def _spaces(text: str) -> str:
    text = re.sub(
        r"(\d)\s*(?:\{,\}|\{\\,\}|,?\\[,!:;]|\\ |'|(?<=\d)\{ \})\s*(?=\d{3}(?!\d))", r"\1", text
    )
    text = _SPACE.sub(" ", text.replace("{,}", ",").replace("{:}", ":"))
    text = re.sub(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    if re.fullmatch(r"-?\d{1,3}( \d{3})+(\.\d+)?", text):
        text = text.replace(" ", "")
    return text


def _plain_words(text: str) -> str:
    """`sqrt(2)`, `pi/2`, `<=`, `infinity` as they are written outside of LaTeX."""
    for pattern, command in _WORDS:
        text = pattern.sub(command, text)
    return text


_WORDS = tuple(
    (re.compile(pattern), command)
    for pattern, command in (
        (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])sqrt\s*(?=[\d{])", r"\\sqrt "),
        (r"(?<![\\a-zA-Z{])(pi|theta|alpha|beta|infty)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![\\a-zA-Z{])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"<=|=<|\\leqslant(?![a-z])|\\leqq(?![a-z])|\\leq(?![a-z])", r"\\le "),
        (r">=|\\geqslant(?![a-z])|\\geqq(?![a-z])|\\geq(?![a-z])", r"\\ge "),
        (r"!=|\\neq(?![a-z])", r"\\ne "),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\*\*", "^"),
        (r"\{?\s*(?<!\w)(\w+)\s*\\choose\s*(\w+)\s*\}?", r"\\binom{\1}{\2}"),
        (r"(?<=[\d)])\s*\*\s*(?=[\d(\\a-z])", r" \\cdot "),
        (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset "),
        (r"\\(?:lbrace|rbrace)(?![a-z])", lambda b: "\\{" if b[0][1] == "l" else "\\}"),
        (r"\\(?:imath|jmath)(?![a-z])", "i"),
        (r"\\(?:[lr]?vert|mid)(?![a-z])", "|"),
        (r"\\[dlrc]?dots[a-z]?(?![a-zA-Z])|\.\.\.+", r"\\ldots "),
    )
)

_SENTENCE = re.compile(
    r"^(?:#{3,4}|\\text\{[^{}]*(?:\bis|\bare|:|=)\s*\}|(?:the )?(?:final )?(?:correct )?answer (?:is|=)|"
    r"(?:final )?answer\s*:)\s*:?\s*",
    re.IGNORECASE,
)
_APPROXIMATELY = re.compile(r"^\s*(?:\\approx|\\text\{(?:about|approximately)\s*\}|≈)\s*")


def _sentence(text: str) -> str:
    return _APPROXIMATELY.sub("", _SENTENCE.sub("", text)) or text


_CURRENCY = re.compile(
    r"\\\$|[$£€¥₹₽₩₪¢]|\\(?:pounds|euro|yen|textdollar|texteuro)(?![a-z])|\\text\{\s*(?:Rs\.?|USD|US|EUR|"
    r"INR|GBP|HK|dollars?|cents?)\s*\}|(?<![a-zA-Z\\])(?:Rs\.?|USD|EUR|GBP|INR)(?![a-zA-Z])"
)


def _currency(text: str) -> str:
    return re.sub(r"\s+", " ", _CURRENCY.sub("", text)).strip() or text


_MIXED = re.compile(r"(?<![\w.\\}/^])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.]*\d|\s*/)")


def _mixed(text: str) -> str:
    def improper(found: re.Match[str]) -> str:
        whole, above, below = map(int, found.groups())
        if above >= below:
            return found[0]
        return rf"\frac{{{whole * below + above}}}{{{below}}}"

    return _MIXED.sub(improper, text)


_E_NOTATION = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]\^?\{?([+-]?\d+)\}?(?![\w.]*\w)")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_POWER = re.compile(r"(?<![\w.])10\s*\^\s*\(?([+-]?\d+)\)?(?!\d)")


def _powers_of_ten(text: str) -> str:
    text = _TIMES_TEN.sub(r" \\times ", text)
    return _POWER.sub(r"10^{\1}", _E_NOTATION.sub(r"\1 \\times 10^{\2}", text))


_REPEATING = re.compile(
    r"(?<![\w.])(\d+)\.(\d*?)(?:\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?|\((\d+)\)|"
    r"\\dot\{?(\d)\}?(?:(\d*)\\dot\{?(\d)\}?)?)(?![\d(])"
)
# 0.333…, 0.142857142857…: the shortest end that stands there twice
_DOTTED = re.compile(r"(?<![\w.])(\d+)\.(\d*?)(\d+?)(?:\3)+\s*\\ldots(?![a-z])")


def _repeating(text: str) -> str:
    def rational(whole: str, first: str, period: str) -> str:
        nines, shift = 10 ** len(period) - 1, 10 ** len(first)
        value = int(whole) + Fraction(int(first or 0) * nines + int(period), nines * shift)
        if value.denominator == 1:  # 0.999…
            return str(value.numerator)
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

    def marked(found: re.Match[str]) -> str:
        whole, first, over, bracketed, from_, through, to = found.groups()
        period = over or bracketed or f"{from_}{through or ''}{to or ''}"
        return rational(whole, first, period)

    text = _REPEATING.sub(marked, text)
    return _DOTTED.sub(lambda found: rational(*found.groups()[:3]), text)


_AND = r"(?:\\quad|\\ |[\s,])*\\text\s*\{\s*(?:and|or)\s*\}(?:\\quad|\\ |\s)*"
_SOLUTIONS = re.compile(rf"(=[^=;$]*,[^=;$]*=[^=;$]*?){_AND}(?=[^=;$]*=[^=;$]*,[^=;$]*=)")


def several_solutions(text: str) -> str:
    """`p=5, q=2 \\text{ and } p=7, q=2`: two solutions of two equations each, not one of four."""
    return _SOLUTIONS.sub(r"\1; ", text)


_TRIGONOMETRIC = re.compile(
    rf"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{{?\d\}}?)?)\s*[{{(]?\s*(-?{NUMBER})\s*"
    r"\^\s*\{?\s*\\circ\s*\}?\s*[})]?"
)


def _degrees(text: str) -> str:
    return _TRIGONOMETRIC.sub(r"\1{\\left(\\frac{\2 \\pi}{180}\\right)}", text)


RULES = (
    Rule("unicode", to_latex, (r"2\sqrt{3}", "2√3"), (r"x\le 5", "x ≥ 5")),
    Rule("unwrap", _unwrap, ("12", r"\underline{\mathbf{12}}"), ("12", r"\mathbf{13}")),
    Rule("spaces", _spaces, ("10000", r"10\,000"), ("10000", r"10\,00")),
    Rule("plain words", _plain_words, (r"\frac{\pi}{2}", "pi/2"), (r"\sqrt{2}", "sqrt(3)")),
    Rule("sentence", _sentence, ("5", r"\text{The answer is }5"), ("5", r"\text{The answer is }6")),
    Rule("currency", _currency, ("5", "£5"), ("5", "£50")),
    Rule("mixed number", _mixed, (r"\frac{59}{8}", "7 3/8"), ("7", "7 3/8")),
    Rule(
        "power of ten", _powers_of_ten, ("4.5e33", r"4.5 \times 10^{33}"), ("4.5e33", "4.5 x 10^32")
    ),
    Rule(
        "repeating decimal",
        _repeating,
        (r"\frac{4}{11}", r"0.\overline{36}"),
        ("0.36", r"0.\overline{36}"),
    ),
    Rule(
        "several solutions",
        several_solutions,
        ("p=5,q=2;p=7,q=2", r"p=5,q=2 \text{ and } p=7,q=2"),
        ("p=5,q=2;p=7,q=2", r"p=5,q=2 \text{ and } p=7,q=3"),
    ),
    Rule("degrees", _degrees, ("0.5", r"\sin 30^\circ"), (r"\sin 30", r"\sin 30^\circ")),
    Rule("outer brackets", without_outer_brackets, ("1", "((1))"), ("(1,2)", "((2,1))")),
)


def rewrite(text: str) -> str:
    """`text`, by all the rules."""
    for rule in RULES:
        text = rule.rewrite(text)
    return text
