"""Mathematics in Unicode as LaTeX: `2√3`, `75°`, `4×10⁵`, `x ≤ ½`, `∠ABC`, `(−∞, 4)`.

Models write it, golds are LaTeX, and no parser of LaTeX reads it. What stands for itself in LaTeX
(letters with accents, other scripts) stays as it is.
"""

import re
import unicodedata
from functools import lru_cache

from adaptsft.evals.graders.mathematics.latex import brackets

_SYMBOLS = {
    "−": "-",  # minus sign, then the dashes that stand for it
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "×": r"\times ",
    "✕": r"\times ",
    "⨯": r"\times ",
    "÷": r"\div ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "∗": "*",
    "⁄": "/",
    "∕": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≦": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≧": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "∞": r"\infty ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∅": r"\emptyset ",
    "⊂": r"\subset ",
    "⊆": r"\subseteq ",
    "∧": r"\land ",
    "∨": r"\lor ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℚ": r"\mathbb{Q}",
    "ℕ": r"\mathbb{N}",
    "ℂ": r"\mathbb{C}",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "∂": r"\partial ",
    "∠": r"\angle ",
    "∡": r"\angle ",
    "△": r"\triangle ",
    "∆": r"\Delta ",
    "⊥": r"\perp ",
    "∥": r"\parallel ",
    "′": "'",
    "″": "''",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "…": r"\ldots ",
    "⋯": r"\cdots ",
    "∣": "|",
    "‖": r"\| ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "→": r"\to ",
    "⇒": r"\Rightarrow ",
    "ϕ": r"\phi ",
    "ϵ": r"\epsilon ",
    "ℓ": r"\ell ",
    "µ": r"\mu ",
    "，": ", ",
    "。": ". ",
    "、": ", ",
}
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff\ufe0e\ufe0f]")
_SCRIPTS = {"<super>": "^", "<sub>": "_"}
_GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER (?:FINAL )?(\w+)$")
_ROOT = re.compile(r"([√∛∜])\s*(\\frac\{[^{}]*\}\{[^{}]*\}|\d+(?:\.\d+)?|[^\W\d_]|\\[a-z]+)?")
_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}
_RUN = re.compile(r"([\^_])\{[^{}]*\}(?:\1\{[^{}]*\})+")
_GROUP = re.compile(r"\{([^{}]*)\}")
_OVERLINE = re.compile("((?:[0-9]\u0305)+)")


def to_latex(text: str) -> str:
    """`text` with every mathematical sign of Unicode as LaTeX; ASCII is returned as it is."""
    if text.isascii():
        return text
    text = _OVERLINE.sub(lambda run: rf"\overline{{{run[1].replace(chr(0x305), '')}}}", text)
    text = "".join(map(_character, _INVISIBLE.sub("", text)))
    return _roots(_RUN.sub(_join, text))  # 10¹² is one exponent


@lru_cache(maxsize=4096)
def _character(character: str) -> str:
    if character.isascii() or character in "√∛∜":
        return character
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if character.isspace():
        return " "
    if (digit := unicodedata.decimal(character, None)) is not None:  # of any script
        return str(digit)
    kind = (unicodedata.decomposition(character) or " ").split(" ")[0]
    plain = unicodedata.normalize("NFKC", character)
    if kind in _SCRIPTS and character not in "ªº":
        return f"{_SCRIPTS[kind]}{{{to_latex(plain)}}}"
    if kind == "<fraction>":
        above, _, below = plain.partition("⁄")
        return rf"\frac{{{above}}}{{{below or 1}}}"
    if greek := _GREEK.match(unicodedata.name(plain[0], "")):
        size, name = greek[1], greek[2].replace("LAMDA", "LAMBDA")
        return f"\\{name.lower() if size == 'SMALL' else name.capitalize()} "
    # full-width and mathematical letters; letters with accents and other scripts keep their form
    return plain if kind in ("<wide>", "<font>", "<compat>") else character


def _join(run: re.Match[str]) -> str:
    return f"{run[1]}{{{''.join(_GROUP.findall(run[0]))}}}"


def _roots(text: str) -> str:
    r"""√2 is \sqrt{2}, √(x+1) is \sqrt{x+1}: a root reaches over a number, a letter or brackets."""
    while root := _ROOT.search(text):
        sign, radicand = root.groups()
        start, end = root.span()
        if radicand is None:
            radicand, end = brackets(text, end)
        text = f"{text[:start]}\\sqrt{_INDEX[sign]}{{{radicand}}}{text[end:]}"
    return text
