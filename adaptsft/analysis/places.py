"""Base models on the continuum of arXiv:2510.00526, beside those of its Tables 6 and 7."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptsft.analysis.continuum import PLACES, REFERENCES, borders, place_of
from adaptsft.drawing import canvas
from adaptsft.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"MW": "#D55E00", "MI": "#7f7f7f", "MS": "#0072B2"}
SHARE = "above_0.55"


def continuum(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """On the left mean p of the targets under the base model (Eq. 5), on the right the share of
    tokens with p > .55 where it is known.

    A row has model, column (the data or the benchmark), mean_p and, where known, mean_p_interval,
    above_0.55 and above_0.55_interval (95 %). Rows of trained models (`objective` other than base)
    and of the paper are left out. Hollow: the paper's.
    """
    own = [row for row in rows if row.get("mean_p") is not None and _is_base(row)]
    if not own:
        there = ", ".join(sorted({key for row in rows for key in row})) or "no row at all"
        raise ConfigError(
            f"figure continuum: none of {len(rows)} rows has mean_p with objective base; "
            f"they have: {there}"
        )
    # a model may have a row per benchmark, all with the one mean p of its training data
    models: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in own:
        models.setdefault((row["model"], row["mean_p"]), []).append(row)
    lines = [
        (_label(members), place_of(mean_p), members[0], False)
        for (_, mean_p), members in models.items()
    ]
    references = [({"mean_p": r.mean_p, SHARE: r.above_055}, r) for r in REFERENCES]
    lines += [(f"{r.model}, {r.data}", r.place, row, True) for row, r in references]
    lines.sort(key=lambda line: line[2]["mean_p"])
    figure, axes = canvas(1, 2, (5.5, 1.6 + 0.24 * len(lines)), sharey=True, width_ratios=[2.2, 1])
    left, right = axes[0]
    bands(left, len(lines) - 0.4)
    for height, (_, place, row, paper) in enumerate(lines):
        for axis, field in ((left, "mean_p"), (right, SHARE)):
            if row.get(field) is None:
                continue
            begin, end = row.get(f"{field}_interval") or [row[field]] * 2
            axis.plot([begin, end], [height] * 2, color="black", linewidth=2)
            fill = "white" if paper else COLOURS[place]
            marker = "D" if paper else "o"
            edge: dict[str, Any] = {
                "markeredgecolor": COLOURS[place],
                "clip_on": False,
                "zorder": 3,
            }
            axis.plot(row[field], height, marker, color=fill, **edge)
    left.set_yticks(range(len(lines)), [name for name, *_ in lines], fontsize=8)
    for label, (*_, paper) in zip(left.get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if paper else "bold")
    left.set(
        xlim=(0, 1),
        ylim=(-0.6, len(lines) + 0.4),
        xlabel="mean p of the targets under the base model",
    )
    right.set(xlim=(0, 1), xlabel="share of tokens with p > .55")
    for axis in (left, right):
        axis.grid(axis="y", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure


def _is_base(row: Mapping[str, Any]) -> bool:
    return row.get("objective", "base") == "base" and row.get("origin") != "paper"


def _label(members: Sequence[Mapping[str, Any]]) -> str:
    model, column = members[0]["model"], members[0]["column"]
    return f"{model}, {column}" if len(members) == 1 else model


def bands(axis: Any, height: float) -> None:
    """Shade the three parts of the continuum over mean p, their names at `height`."""
    low, high = borders()
    for place, begin, end in (("MW", 0.0, low), ("MI", low, high), ("MS", high, 1.0)):
        axis.axvspan(begin, end, color=COLOURS[place], alpha=0.12, linewidth=0)
        name = PLACES[place].meaning.split(":")[0]
        axis.text((begin + end) / 2, height, name, ha="center", va="bottom", fontsize=8)
