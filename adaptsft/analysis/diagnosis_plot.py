"""A diagnosis as a picture, from the sources of base_stats.json."""

from pathlib import Path
from typing import Any

from adaptsft.analysis.continuum import REFERENCES
from adaptsft.analysis.places import COLOURS, bands
from adaptsft.statistics.step import BINS, p_of_bin_edges

SHOWN = 6  # sources in the picture, those with the most tokens


def plot(path: Path, sources: dict[str, dict[str, Any]]) -> None:
    """Above, mean p of every source beside the paper's models; below, for each source, the
    histogram of p and the reliability diagram."""
    from matplotlib.figure import Figure

    shown = sorted(sources, key=lambda name: -sources[name]["tokens"])[:SHOWN]
    figure = Figure(figsize=(10, 1.6 + 0.25 * len(shown) + 2.6 * len(shown)), layout="constrained")
    grid = figure.add_gridspec(
        1 + len(shown),
        2,
        width_ratios=[2, 1],
        height_ratios=[0.7 + 0.12 * len(shown)] + [1.0] * len(shown),
    )
    _strip(figure.add_subplot(grid[0, :]), sources, shown)
    for row, name in enumerate(shown, 1):
        _histogram(figure.add_subplot(grid[row, 0]), name, sources[name])
        _reliability(figure.add_subplot(grid[row, 1]), sources[name])
    figure.savefig(path, dpi=150, format="png")


def _strip(axis: Any, sources: dict[str, dict[str, Any]], shown: list[str]) -> None:
    bands(axis, len(shown) + 0.3)
    for reference in REFERENCES:
        axis.plot(reference.mean_p, len(shown), "|", color=COLOURS[reference.place], markersize=12)
    for row, name in enumerate(reversed(shown)):
        source = sources[name]
        begin, end = source["mean_p_interval"] or [source["mean_p"]] * 2
        axis.plot([begin, end], [row, row], color="black", linewidth=2)
        axis.plot(
            source["mean_p"], row, "o", color=COLOURS[source["place"]], markeredgecolor="black"
        )
    axis.set_yticks(range(len(shown) + 1), [*reversed(shown), "arXiv:2510.00526"])
    axis.set(
        xlim=(0, 1),
        ylim=(-0.6, len(shown) + 1.1),
        xlabel="mean p of the targets under the base model",
    )


def _histogram(axis: Any, name: str, source: dict[str, Any]) -> None:
    """Equal steps of log-odds, so that both ends are seen; four bins of the file in a bar."""
    counts = [sum(source["histogram"][i : i + 4]) / source["tokens"] for i in range(0, BINS, 4)]
    middles = [index + 0.5 for index in range(len(counts))]
    edges = p_of_bin_edges()[::4]

    def position(p: float) -> float:
        return next(
            i - (edges[i] - p) / (edges[i] - edges[i - 1])
            for i in range(1, len(edges))
            if edges[i] >= p
        )

    colours = ["MW" if edge <= 0.2 else "MI" if edge <= 0.55 else "MS" for edge in edges[1:]]
    axis.bar(middles, counts, width=1.0, color=[COLOURS[colour] for colour in colours])
    for value in (0.2, 0.55):
        axis.axvline(position(value), color="black", linewidth=0.8, linestyle=":")
    ticks = (1e-6, 1e-4, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999999)
    axis.set_xticks([position(tick) for tick in ticks], [f"{tick:g}" for tick in ticks], fontsize=8)
    low, high = source["below_0.2"], source["above_0.55"]
    title = f"{name}: {low:.0%} of the tokens below .2, {high:.0%} above .55"
    axis.set_title(title, fontsize=9)
    axis.set(
        xlabel="p of the target (equal steps of log-odds)",
        ylabel="share of tokens",
        xlim=(0, len(counts)),
    )


def _reliability(axis: Any, source: dict[str, Any]) -> None:
    reliability = source["reliability"]
    counts, confidence, right = (reliability[key] for key in ("tokens", "confidence", "right"))
    seen = [index for index, count in enumerate(counts) if count]
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axis.scatter(
        [confidence[i] / counts[i] for i in seen],
        [right[i] / counts[i] for i in seen],
        s=[6 + 200 * counts[i] / sum(counts) for i in seen],
        color="#444444",
        clip_on=False,
    )
    axis.set_title(f"ECE {source['ece']:.3f}", fontsize=9)
    axis.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="p of the likeliest token",
        ylabel="how often it is the target",
    )
