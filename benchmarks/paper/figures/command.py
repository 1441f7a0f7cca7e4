"""The command line of the figures."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adaptsft.analysis.places import continuum
from adaptsft.drawing import save
from adaptsft.errors import ConfigError, UserError
from benchmarks.paper.figures import formulas, inputs
from benchmarks.paper.figures.curves import trajectories
from benchmarks.paper.figures.sweeps import alpha, quantiles, scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_ROWS = {"quantiles": quantiles, "alpha": alpha, "scale": scale, "continuum": continuum}
KINDS = ("weights", *OF_ROWS, "trajectories")

EXPLAINED = """what to draw, and from what:
  weights       W(p) of objectives, Fig. 2.
                INPUT: NAME, NAME:VALUE or NAME:key=value,…  (nll neg_p alpha:3 log1mp)
  quantiles     quantile thresholds, Fig. 3. INPUT: rows.json
  alpha         score and mean p over alpha, Fig. 4. INPUT: rows.json
  scale         scores over the size of the model, Fig. 5. INPUT: rows.json
  continuum     mean p of base models beside the paper's, Tables 6 and 7.
                INPUT: folders of adaptsft.diagnose, rows.json
  trajectories  alpha and thresholds over runs. INPUT: run folders

examples:
  python -m benchmarks.paper.figures weights nll neg_p alpha:3 focal threshold:base=nll,lower=0.2
  python -m benchmarks.paper.figures alpha out/rows.json --only 'model=Qwen2.5-Math-1.5B|Qwen2.5-7B'
  python -m benchmarks.paper.figures alpha --lab benchmarks/results/lab.json --only 'model=digits *'
  python -m benchmarks.paper.figures continuum runs/first/diagnosis runs/second/diagnosis
  python -m benchmarks.paper.figures trajectories runs/first runs/second

Rows are described in benchmarks/paper/figures/sweeps.py."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper.figures",
        description="The figures of arXiv:2510.00526 from formulas, results and runs, as PNG and "
        "PDF.",
        epilog=EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help=" | ".join(KINDS))
    parser.add_argument("inputs", metavar="INPUT", nargs="*", help="see below")
    parser.add_argument(
        "--lab",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="results of the lab: its folder, or a results.json",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FIELD=PATTERN",
        help="only rows of this model, objective, column or origin; repeatable",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        metavar="DIR",
        help="folder of KIND.png and KIND.pdf (figures)",
    )
    return parser.parse_intermixed_args(arguments)  # `--lab DIR` may stand between inputs


def main(arguments: list[str]) -> int:
    """Draw what the arguments ask for, print the files, return the exit code."""
    options = parse(arguments)
    try:
        figure = draw(options)
    except UserError as error:
        print(f"figures: {error}", file=sys.stderr)
        return error.exit_code
    print(
        "\n".join(
            str(save(figure, options.out / f"{options.kind}.{suffix}")) for suffix in ("png", "pdf")
        )
    )
    return 0


def draw(options: argparse.Namespace) -> "Figure":
    """Raises ConfigError."""
    if options.kind == "weights":
        if options.lab or options.only:
            raise ConfigError("weights are drawn from formulas: --lab and --only have no effect")
        return formulas.weights(options.inputs or formulas.DEFAULTS)
    paths = [Path(place) for place in options.inputs]
    if options.kind == "trajectories":
        if options.only:
            raise ConfigError("--only chooses among rows; trajectories are drawn from run folders")
        if paths and options.lab:
            raise ConfigError(
                "give run folders or --lab, not both: one counts steps, the other shares of the run"
            )
        curves = inputs.runs(paths) + [
            curve for place in options.lab for curve in inputs.lab_curves(place)
        ]
        return trajectories(curves, "share of the run" if options.lab else "step")
    rows = [row for path in paths for row in inputs.rows(path)] + [
        row for place in options.lab for row in inputs.lab(place)
    ]
    return OF_ROWS[options.kind](inputs.only(rows, options.only))
