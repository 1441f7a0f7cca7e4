"""Results over one number: quantile thresholds (Fig. 3 of arXiv:2510.00526), alpha (Fig. 4) and
model size (Fig. 5).

A row is a dict: model, objective, column (benchmark or metric), value, se (standard error or None),
n, origin ("ours" or "paper"), and

    percentile, side   the tokens trained on: side ">=" is p >= Q_percentile, "<=" the others;
                       `objective` is that under the threshold
    alpha              of f_alpha; mean_p: mean p of the training targets after training (Eq. 5)
    billions           parameters of the model

Rows without such a number are drawn as levels if their objective is one of LEVELS.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptsft.drawing import COLOURS, NAMES, canvas, style
from adaptsft.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
LEVELS = {"base": (0, (1, 1)), "auto": (0, (6, 2, 1, 2))}  # objective -> dashes
ACROSS = 4  # panels side by side
FEW = 3  # columns in a panel of `alpha` that get levels of their own


def quantiles(rows: Sequence[Row]) -> "Figure":
    """A line per objective and two panels per model and column: trained on the tokens below, and
    above, a percentile of the base model's p.

    All tokens are percentile 100 on the left and 0 on the right; a row of either stands for both.
    """
    found = _having(rows, "quantiles", "percentile", "side")
    whole = [row for row in found if (row["side"], row["percentile"]) in ((">=", 0), ("<=", 100))]
    mirrored = [
        {
            **row,
            "side": "<=" if row["side"] == ">=" else ">=",
            "percentile": 100 - row["percentile"],
        }
        for row in whole
    ]
    # a row of its own before its mirror image
    found = list({_key(row): row for row in [*mirrored, *found]}.values())
    panels = _sweeps(
        "quantiles",
        found,
        lambda row: (row["model"], row["column"]),
        lambda row: row["percentile"] % 100,
    )
    objectives = list(dict.fromkeys(row["objective"] for row in found))
    figure, axes = canvas(len(panels), 2, (5.2, 3.4), sharey="row")
    for pair, ((model, column), members) in zip(axes, panels.items(), strict=True):
        for axis, side, sign in zip(pair, ("<=", ">="), ("≤", "≥"), strict=True):
            here = [row for row in members if row["side"] == side]
            _lines(axis, here, "percentile", lambda row: row["objective"], objectives)
            _levels(axis, rows, model, column)
            axis.set(
                title=f"{model}: p {sign} Q",
                xlabel=f"percentile of p under the base model, trained on p {sign} Q",
            )
            axis.set_xlim(-3, 103)
        pair[0].set_ylabel(column)
    _legend(figure, axes)
    return figure


def alpha(rows: Sequence[Row]) -> "Figure":
    """Per model the score over alpha, a line per column, and below it, where rows have mean_p, the
    mean p of the training targets."""
    found = _having(rows, "alpha", "alpha")
    panels = _sweeps("alpha", found, lambda row: row["model"], lambda row: row["alpha"])
    columns = list(dict.fromkeys(row["column"] for of in panels.values() for row in of))
    below = any(_has(row, "mean_p") for of in panels.values() for row in of)
    across, bands = min(ACROSS, len(panels)), -(-len(panels) // ACROSS)
    figure, axes = canvas(bands * (1 + below), across, (3.9 if across > 2 else 5.2, 2.7))
    for number, (model, members) in enumerate(panels.items()):
        band, place = divmod(number, across)
        axis = axes[band * (1 + below), place]
        _lines(axis, members, "alpha", lambda row: row["column"], columns)
        _alpha_axis(axis, members, model, columns[0] if len(columns) == 1 else "score")
        for index, column in enumerate(columns if len(columns) <= FEW else []):
            _levels(
                axis, rows, model, column, *((COLOURS[index], column) if len(columns) > 1 else ())
            )
        if any(_has(row, "mean_p") for row in members):
            axis = axes[2 * band + 1, place]
            once = {
                (row["alpha"], row.get("origin")): {**row, "value": row["mean_p"], "se": None}
                for row in members
                if _has(row, "mean_p")
            }
            _lines(axis, once.values(), "alpha", lambda row: "mean p", [*columns, "mean p"])
            base = next(
                (
                    row["mean_p"]
                    for row in rows
                    if row["model"] == model and row["objective"] == "base" and _has(row, "mean_p")
                ),
                None,
            )
            if base is not None:
                axis.axhline(
                    base,
                    color=style(len(columns))["color"],
                    linestyle=LEVELS["base"],
                    linewidth=1.2,
                    label="base, mean p",
                )
            _alpha_axis(axis, members, "", "mean p, training targets")
            axis.set_ylim(0, 1.02)
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    _legend(figure, axes)
    return figure


def scale(rows: Sequence[Row]) -> "Figure":
    """A panel per column, a line per objective over the parameters of the model; both axes are
    logarithmic.

    Where a score is 0 the axis is linear below the smallest other one, and says so.
    """
    found = _having(rows, "scale", "billions")
    panels = _sweeps("scale", found, lambda row: row["column"], lambda row: row["billions"])
    objectives = list(dict.fromkeys(row["objective"] for row in found))
    figure, axes = canvas(1, len(panels), (5.2, 4.0))
    for axis, (column, members) in zip(axes[0], panels.items(), strict=True):
        values = [row["value"] for row in members]
        least = min((value for value in values if value > 0), default=1.0)
        axis.set(
            xscale="log", yscale="log", title=column, xlabel="parameters, billions", ylabel="score"
        )
        if min(values) <= 0:
            axis.set_yscale("symlog", linthresh=least)
            axis.set_ylabel(f"score (linear below {least:g})")
        _lines(axis, members, "billions", lambda row: row["objective"], objectives)
        sizes = sorted({row["billions"] for row in members})
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ticks = [0.0] * (min(values) <= 0) + _round_ticks(least, max(*values, least))
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    _legend(figure, axes)
    return figure


def _has(row: Row, field: str) -> bool:
    return row.get(field) is not None


def _having(rows: Sequence[Row], kind: str, *fields: str) -> list[Row]:
    """The rows that have these fields. Raises ConfigError where there is none."""
    found = [row for row in rows if all(_has(row, field) for field in fields)]
    if not found:
        absent = [field for field in fields if not any(_has(row, field) for row in rows)] or list(
            fields
        )
        there = ", ".join(sorted({key for row in rows for key in row})) or "no row at all"
        raise ConfigError(
            f"figure {kind}: none of {len(rows)} rows has {' and '.join(absent)}; they have: "
            f"{there}"
        )
    return found


def _sweeps(
    kind: str, rows: Iterable[Row], panel: Callable[[Row], Any], x: Callable[[Row], float]
) -> dict[Any, list[Row]]:
    """The rows by panel, of panels with more than one place on the axis. Raises ConfigError where
    there is none."""
    panels = _grouped(rows, panel)
    several = {name: members for name, members in panels.items() if len(set(map(x, members))) > 1}
    if not several:
        only = ", ".join(f"{name}: {x(members[0]):g}" for name, members in panels.items())
        raise ConfigError(
            f"figure {kind}: a line needs several values, but there is one each ({only})"
        )
    return several


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(
        row.get(key) for key in ("model", "objective", "column", "origin", "side", "percentile")
    )


def _lines(
    axis: Any, rows: Iterable[Row], x: str, label: Callable[[Row], str], order: Sequence[str]
) -> None:
    """A line per label and origin with its standard errors; the paper's have hollow markers."""
    for (name, origin), members in _grouped(
        rows, lambda row: (label(row), row.get("origin", "ours"))
    ).items():
        members.sort(key=lambda row: row[x])
        axis.errorbar(
            [row[x] for row in members],
            [row["value"] for row in members],
            yerr=[row.get("se") or 0.0 for row in members],
            label=NAMES.get(name, name) + (" (paper)" if origin == "paper" else ""),
            capsize=2,
            markerfacecolor="white" if origin == "paper" else None,
            **style(order.index(name)),
        )


def _levels(
    axis: Any, rows: Iterable[Row], model: str, column: str, colour: str = "0.3", of: str = ""
) -> None:
    for row in rows:
        if (row["model"], row["column"]) == (model, column) and row["objective"] in LEVELS:
            label = (
                row["objective"]
                + (f", {of}" if of else "")
                + (" (paper)" if row.get("origin") == "paper" else "")
            )
            axis.axhline(
                row["value"],
                color=colour,
                linestyle=LEVELS[row["objective"]],
                linewidth=1.2,
                label=label,
            )


def _alpha_axis(axis: Any, rows: Sequence[Row], title: str, ylabel: str) -> None:
    """Linear up to 1, logarithmic above, as the paper's values of alpha are spread."""
    largest = max(row["alpha"] for row in rows)
    axis.set_xscale("symlog", linthresh=1, linscale=1)
    axis.set_xlim(-0.05, largest * 1.08)
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 100) if tick <= largest]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.axvline(1, color="0.8", linewidth=0.8, zorder=0)
    axis.set(title=title, ylabel=ylabel, xlabel="alpha (0: NLL, 1: -p)")


def _round_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten around what is drawn."""
    steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 3, 5, 7)]
    first = max((i for i, step in enumerate(steps) if step <= low), default=0)
    last = min((i for i, step in enumerate(steps) if step >= high), default=len(steps) - 1)
    return steps[first : last + 1]


def _legend(figure: "Figure", axes: Any) -> None:
    """One legend for all panels, of every label once."""
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    # as many as fit beside each other
    columns = max(1, min(5, len(handles), int(figure.get_figwidth() / 1.8)))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
