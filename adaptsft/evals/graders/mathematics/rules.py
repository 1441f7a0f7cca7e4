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


# commands that change how their argument looks, not what it is
_LOOKS = re.compile(
    r"\\(?:underline|mathbf|mathit|boldsymbol|bm|pmb|mathsf|mathtt|boxed|fbox|hbox|ensuremath|"
    r"displaystyle|textstyle|limits|(?:text)?color\{[^{}]*\})(?![a-zA-Z])\s*"
)
_TEXT = re.compile(
    r"\\(?:text|mathrm|textbf|textit|textrm|textnormal|textsf|texttt|mbox|operatorname|rm|bf|emph)"
    r"\*?\s*(?=\{)"
)
_TEXT_OF = re.compile(r"\\text\{([^{}]*)\}")
_NO_WORD = re.compile(r"\s*(?:[-+]?[\d.,/ ]*|pi|i|e|d)\s*")
_LETTER = re.compile(r"\(?\\text\{\s*(\(?[A-Za-z]\)?)\s*\}\)?")
_LETTERS = re.compile(r"\\text\{\s*([A-J](?:\s*(?:,|and|or)\s*[A-J])+)\s*\}")


def _looks(text: str) -> str:
    """Bold, underlined and framed text as it is, and one command for all text in mathematics."""
    while look := _LOOKS.search(text):
        held, end = brackets(text, look.end())
        if not text.startswith("{", look.end()):
            held, end = "", look.end()
        text = f"{text[: look.start()]}{held}{text[end:]}"
    text = _TEXT.sub(lambda _: r"\text", text)
    # \text{4210}_5, \mathrm{e}, \text{(C)} and \text{A and C} hold no words
    text = _TEXT_OF.sub(lambda held: held[1] if _NO_WORD.fullmatch(held[1]) else held[0], text)
    text = _LETTERS.sub(lambda held: re.sub(r"\s*(?:,|and|or)\s*", ", ", held[1]), text)
    letter = _LETTER.fullmatch(text.strip())
    return letter[1] if letter else text


_THOUSANDS = re.compile(r"(?<=\d)\s*(?:\{,\}|\{\\,\}|,?\\[,!:;]|\\ |'|\{ \})\s*(?=\d{3}(?!\d))")
# not the second backslash of a matrix's `\\ `
_SPACE = re.compile(
    r"(?<!\\)\\(?:[,:;! ]|quad|qquad|thinspace|enspace|hspace\{[^{}]*\})(?![a-zA-Z])|~"
)
_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?")


def _spaces(text: str) -> str:
    text = _THOUSANDS.sub("", text)
    text = _SPACE.sub(" ", text.replace("{,}", ",").replace("{:}", ":"))
    text = re.sub(r"\s+", " ", _SIZE.sub("", text)).strip()
    if re.fullmatch(r"-?\d{1,3}( \d{3})+(\.\d+)?", text):
        text = text.replace(" ", "")
    if re.fullmatch(r"-?\d{1,3}(\.\d{3}){2,}", text):  # 1.234.567
        text = text.replace(".", "")
    return text


_FUNCTIONS = "(?:arc)?(?:sin|cos|tan)h?|sec|csc|cot|log|ln|exp"
_NAMES = tuple(
    (re.compile(pattern), command)
    for pattern, command in (
        (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])sqrt\s*(?=[\d{])", r"\\sqrt "),
        (rf"(?:\b(?:np|math)\.)?(?<![\\a-zA-Z{{])({_FUNCTIONS})(?![a-zA-Z])", r"\\\1 "),
        (r"(?<=\d)\.(?=\s*[/*+)}-])", ""),  # 3./2
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
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\\langle(?![a-z])", "("),
        (r"\\rangle(?![a-z])", ")"),
        (r"\\(?:imath|jmath)(?![a-z])", "i"),
        (r"\\(?:[lr]?vert|mid)(?![a-z])", "|"),
        (r"\\[dlrc]?dots[a-z]?(?![a-zA-Z])|\.\.\.+", r"\\ldots "),
        (r"[(\[]?\s*\\begin\{(?:small)?matrix\}", r"\\begin{pmatrix}"),
        (r"\\end\{(?:small)?matrix\}\s*[)\]]?", r"\\end{pmatrix}"),
        (r"(\\\\)\[-?[\d.]+(?:pt|em|ex|mm)\]", r"\1"),  # the distance of a matrix's rows
        (r"^\s*\]([^\[\]]*)([\[\]])\s*$", lambda m: f"({m[1]}{')' if m[2] == '[' else ']'}"),
        (r"^\s*\[([^\[\]()]*,[^\[\]()]*)\[\s*$", r"[\1)"),
    )
)


def _other_names(text: str) -> str:
    """`sqrt(2)`, `pi/2`, `<=` as they are written outside of LaTeX, and LaTeX's synonyms."""
    for pattern, command in _NAMES:
        text = pattern.sub(command, text)
    return text


_SHORT = tuple(
    (re.compile(pattern), command)
    for pattern, command in (
        (r"\\sqrt\s*([\da-zA-Z])", r"\\sqrt{\1}"),
        (r"\\log_\s*(\d)\s*(\d+)", r"\\log_{\1}{\2}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\\frac\s*([^\s{\\])", r"\\frac{\1}"),
    )
)


def _arguments(text: str) -> str:
    r"""`\frac12` is \frac{1}{2}, `\sqrt3` is \sqrt{3}: braces for what LaTeX reads without."""
    for pattern, command in _SHORT:
        text = pattern.sub(command, text)
    position = 0
    while (position := text.find("\\frac{", position)) >= 0:
        position = brackets(text, position + 5)[1]
        rest = text[position:].lstrip()
        if rest and rest[0] not in "{\\":
            text = f"{text[:position]}{{{rest[0]}}}{rest[1:]}"
    return text


_SENTENCE = re.compile(
    r"""
    ^(?: \#{3,4}
       | \\text\{ [^{}]* (?:\bis|\bare|:|=) \s* \}
       | \\text\{\s*(?:point|option|choice|line|set)\s*\}
       | (?:the\ )? (?:final\ )? (?:correct\ )? answer \s* (?:is|=|:) ) \s* :? \s*
    """,
    re.IGNORECASE | re.VERBOSE,
)


def _sentence(text: str) -> str:
    return _SENTENCE.sub("", text) or text


_CURRENCY = re.compile(
    r"""
    \\\$ | [$£€¥₹₽₩₪¢] | \\(?:pounds|euro|yen|textdollar|texteuro)(?![a-z])
    | \\text\{\s*(?:Rs\.?|USD|US|EUR|INR|GBP|HK|dollars?|cents?)\s*\}
    | (?<![a-zA-Z\\])(?:Rs\.?|USD|EUR|GBP|INR)(?![a-zA-Z])
    """,
    re.VERBOSE,
)


def _currency(text: str) -> str:
    return re.sub(r"\s+", " ", _CURRENCY.sub("", text)).strip() or text


_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBERS = {word: i for i, word in enumerate(_ONES)}
NUMBERS |= {word: 20 + 10 * i for i, word in enumerate(_TENS)}
NUMBERS |= {f"{ten} {one}": NUMBERS[ten] + NUMBERS[one] for ten in _TENS for one in _ONES[1:10]}
NUMBERS |= {f"{one} hundred": 100 * NUMBERS[one] for one in _ONES[1:10]}
_SETS = (
    (
        re.compile(r"(?:\\text\{)?\s*all real(?:s| numbers?| values)?\s*[a-z]?\s*\}?", re.I),
        r"\mathbb{R}",
    ),
    (re.compile(r"(?:\\text\{)?\s*(?:the )?empty set\s*\}?", re.I), r"\emptyset "),
)


def _words(text: str) -> str:
    """`twelve` is 12, `all real numbers` the set of them."""
    for pattern, replacement in _SETS:
        if pattern.fullmatch(text.strip()):
            return replacement
    plain = " ".join(_TEXT_OF.sub(r"\1", text).lower().replace("-", " ").split())
    return str(NUMBERS.get(plain, text))


_MIXED = re.compile(r"(?<![\w.\\}/^])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.]*\d|\s*/)")


def _mixed(text: str) -> str:
    def improper(found: re.Match[str]) -> str:
        whole, above, below = map(int, found.groups())
        return rf"\frac{{{whole * below + above}}}{{{below}}}" if above < below else found[0]

    return _MIXED.sub(improper, text)


_E_NOTATION = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.]*\w)")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_POWER = re.compile(r"(?<![\w.])10\s*\^\s*\(?([+-]?\d+)\)?(?!\d)")
_SCALE = re.compile(
    r"(?<=\d)\s*(?:\\text\{)?\s*(thousand|million|billion|trillion)(?![a-z])\s*\}?", re.IGNORECASE
)
_ZEROS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _powers_of_ten(text: str) -> str:
    text = _TIMES_TEN.sub(r" \\times ", text)
    text = _SCALE.sub(lambda found: rf" \times 10^{{{_ZEROS[found[1].lower()]}}} ", text)
    return _POWER.sub(r"10^{\1}", _E_NOTATION.sub(r"\1 \\times 10^{\2}", text))


_REPEATING = re.compile(
    r"""
    (?<![\w.]) (\d+) \. (\d*?)
    (?: \\(?:overline|bar)\s*\{?\s*(\d+)\s*\}? | \((\d+)\)
      | \\dot\{?(\d)\}? (?: (\d*) \\dot\{?(\d)\}? )? ) (?![\d(])
    """,
    re.VERBOSE,
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
        whole, first, over, bracketed, begin, through, end = found.groups()
        return rational(whole, first, over or bracketed or f"{begin}{through or ''}{end or ''}")

    text = _REPEATING.sub(marked, text)
    return _DOTTED.sub(lambda found: rational(*found.groups()), text)


_AND = r"(?:\\quad|\\ |[\s,])*\\text\s*\{\s*(?:and|or)\s*\}(?:\\quad|\\ |\s)*"
_SOLUTIONS = re.compile(rf"(=[^=;$]*,[^=;$]*=[^=;$]*?){_AND}(?=[^=;$]*=[^=;$]*,[^=;$]*=)")


def several_solutions(text: str) -> str:
    r"""`p=5, q=2 \text{ and } p=7, q=2`: two solutions of two equations each, not one of four."""
    return _SOLUTIONS.sub(r"\1; ", text)


_ANGLE = r"(-?\d*\.?\d+)\s*\^\s*\{?\s*\\circ\s*\}?"
_TRIGONOMETRIC = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{?-?\d\}?)?)\s*"
    rf"(?:\(\s*{_ANGLE}\s*\)|\{{\s*{_ANGLE}\s*\}}|{_ANGLE})"
)


def _degrees(text: str) -> str:
    def radians(found: re.Match[str]) -> str:
        function, *angles = found.groups()
        return rf"{function}{{(\frac{{{next(filter(None, angles))} \pi}}{{180}})}}"

    return _TRIGONOMETRIC.sub(radians, text)


RULES = (
    Rule("Unicode", to_latex, (r"2\sqrt{3}", "2√3"), (r"x\le 5", "x ≥ 5")),
    Rule("looks", _looks, ("12", r"\underline{\mathbf{12}}"), ("12", r"\mathbf{13}")),
    Rule("spaces", _spaces, ("10000", r"10\,000"), ("10000", r"10\,00")),
    Rule("other names", _other_names, (r"\frac{\pi}{2}", "pi/2"), (r"\sqrt{2}", "sqrt(3)")),
    Rule("arguments", _arguments, (r"\frac{5}{12}", r"\frac5{12}"), (r"\frac{51}{2}", r"\frac512")),
    Rule("sentence", _sentence, ("5", r"\text{The answer is }5"), ("5", r"\text{The answer is }6")),
    Rule("currency", _currency, ("5", "£5"), ("5", "£50")),
    Rule(
        "number words",
        _words,
        (r"(-\infty,\infty)", r"\text{all real numbers}"),
        ("12", "twenty"),
    ),
    Rule("mixed number", _mixed, (r"\frac{59}{8}", "7 3/8"), ("7", "7 3/8")),
    Rule(
        "power of ten",
        _powers_of_ten,
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("4.5e33", "4.5 x 10^32"),
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
