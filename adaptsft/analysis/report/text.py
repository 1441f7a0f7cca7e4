"""Text for a reader: numbers and durations, and content that is not trusted."""

import json
import math
from typing import Any

from markupsafe import Markup

from adaptsft.analysis.report.folder import number
from adaptsft.evals import pages

NAME, VALUE, TEXT = 80, 400, 1500  # characters of a name, a setting and a text that are shown


def figures(value: Any, digits: int = 3) -> str:
    """A number for reading: 0.705, 12.3, 4,321, 3e-5; – where there is none."""
    value = number(value)
    if not math.isfinite(value):
        return "–"
    if value and not 0.1 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}g}".replace("e-0", "e-").replace("e+0", "e")
    if value == int(value):
        return f"{int(value):,}"
    whole = len(f"{abs(value):.0f}") if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - whole)}f}"


def duration(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds < 1e10:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if round(seconds / 60) < 90:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def visible(value: Any) -> Any:
    """Text whose invisible characters are shown as ⟨U+202E⟩; line breaks and tabs stay. Anything
    else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return pages.visible(value)


def cut(value: Any, longest: int = NAME) -> str:
    if isinstance(value, list | dict):
        value = json.dumps(value, default=str)
    text = str(value)
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… [cut: {len(text) - longest:,} more characters]"
