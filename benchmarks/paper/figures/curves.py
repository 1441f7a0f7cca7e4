"""What moved during a run: alpha and thresholds, per source."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from adaptsft.drawing import canvas, style
from adaptsft.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 3  # panels side by side


class Curve(NamedTuple):
    panel: str  # its title: a run, or a method and a family
    line: str  # its label: a source, or a regime
    quantity: str  # alpha, lower or upper
    x: Sequence[float]
    y: Sequence[float]

    @property
    def moves(self) -> bool:
        return max(self.y) - min(self.y) > 1e-6


def trajectories(curves: Sequence[Curve], xlabel: str = "step") -> "Figure":
    """A panel per title, once for alpha and once for thresholds; only what moves is drawn."""
    moving = [curve for curve in curves if len(curve.y) and curve.moves]
    if not moving:
        there = ", ".join(
            dict.fromkeys(
                f"{curve.panel}: {curve.quantity}={curve.y[0]:g}"
                for curve in curves
                if len(curve.y)
            )
        )
        raise ConfigError(
            "figure trajectories: alpha, lower and upper stand still in every run "
            f"({there or 'no steps'})"
        )
    # alphas first, and thresholds below them
    panels = dict.fromkeys(
        sorted(
            ((curve.panel, _axis_of(curve)) for curve in moving),
            key=lambda panel: panel[1] != "alpha",
        )
    )
    across = min(ACROSS, len(panels))
    figure, axes = canvas(-(-len(panels) // across), across, (4.6, 3.0))
    order = list(dict.fromkeys((curve.line, curve.quantity) for curve in moving))
    for axis, (title, ylabel) in zip(axes.flat, panels, strict=False):
        here = [curve for curve in moving if (curve.panel, _axis_of(curve)) == (title, ylabel)]
        for curve in here:
            label = (
                curve.line
                if ylabel == "alpha"
                else " ".join(filter(None, [curve.line, curve.quantity]))
            )
            look = style(order.index((curve.line, curve.quantity))) | {"marker": ""}
            axis.plot(curve.x, curve.y, label=label, linewidth=1.4, **look)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if any(label for label in axis.get_legend_handles_labels()[1]):
            axis.legend(fontsize=7, frameon=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return figure


def _axis_of(curve: Curve) -> str:
    return "alpha" if curve.quantity == "alpha" else "threshold on p"
