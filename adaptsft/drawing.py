"""What all pictures share: a canvas without pyplot (no display, no global state to close), and
colours, dashes and markers that can be told apart by the colour-blind and in grey."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptsft.files import replacing

if TYPE_CHECKING:  # matplotlib is imported only where something is drawn
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design", 2008, without the yellow; black comes last
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")  # 7 colours and 4 dashes: the first 28 lines differ
MARKERS = "osD^vPX*"
# objectives that the paper calls by their formula
NAMES = {"nll": "-log p", "neg_p": "-p", "log1mp": "log(1-p)"}


def style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line of this number."""
    return {
        "color": COLOURS[number % 7],
        "linestyle": DASHES[number % 4],
        "marker": MARKERS[number % 8],
        "markersize": 5,
    }


def canvas(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 4.0), **options: Any
) -> tuple["Figure", Any]:
    """(figure, its axes [rows, columns]); `size` in inches is that of one of the axes, `options`
    are those of Figure.subplots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: "Figure", path: Path, dpi: int = 150) -> Path:
    """Write the figure; the suffix of `path` chooses the format. The file appears when it is
    complete."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    # fonts as outlines that can be searched and edited; journals refuse type 3
    with replacing(path) as partial, matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(partial, dpi=dpi, format=path.suffix.removeprefix("."))
    return path
