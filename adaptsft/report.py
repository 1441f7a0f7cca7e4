"""python -m adaptsft.report RUN…: what happened in one or several runs, as one self-contained HTML
page, and its charts as PNG files.

    python -m adaptsft.report runs/first
    python -m adaptsft.report runs/nll runs/auto --out reports/compared --evals evals/nll evals/auto

The runs may be finished, killed or still running: whatever they have written is shown, and what is
missing is named. The page loads nothing from anywhere, so that it can be mailed or archived as it
is. What it shows: docs/report.md.
"""

import argparse
import sys
import time
from pathlib import Path


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folder of adaptsft.train; several are overlaid",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder that receives report.html and figures/ (default: RUN/report of the first run)",
    )
    parser.add_argument(
        "--evals",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="results of adaptsft.evals that are not in RUN/evals",
    )
    parser.add_argument(
        "--no-png",
        action="store_true",
        help="only the page: faster, for a look at a run that is still running",
    )
    return parser.parse_args(arguments or ["--help"])


if __name__ == "__main__":
    parse(sys.argv[1:])  # ends here for --help and for a misspelt option: before torch is imported

from adaptsft.analysis.report import folder, outputs, page, png
from adaptsft.analysis.report.charts import Chart
from adaptsft.command_line import print_error
from adaptsft.errors import CheckpointError, ConfigError, UserError
from adaptsft.files import write_atomically

MAX_RUNS = 16  # colours times two kinds of line


def write(paths: list[Path], out: Path, evals: list[Path], pictures: bool = True) -> Path:
    """Write out/report.html and, with `pictures`, out/figures/*.png; returns the page. Raises
    UserError."""
    if len(paths) > MAX_RUNS:
        raise ConfigError(
            f"{len(paths)} runs: at most {MAX_RUNS} can be told apart on one page; give fewer"
        )
    for place in evals:
        if not place.is_dir():
            raise ConfigError(
                f"--evals {place}: no such folder; give the --out of python -m adaptsft.evals"
            )
    runs = folder.open_runs(paths)
    notes: list[str] = []
    text, drawn = page.build(runs, outputs.read(runs, evals, notes), notes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "report.html", text.encode(errors="replace"))
        if pictures:
            draw(drawn, out / "figures")
    except OSError as error:
        raise CheckpointError(f"--out {out}: could not be written: {error}") from None
    return out / "report.html"


def draw(drawn: list[Chart], figures: Path) -> None:
    """Write every chart as a PNG; on a terminal, with a progress line."""
    began = time.monotonic()
    for done, chart in enumerate(drawn, 1):
        png.write(chart, figures / f"{chart.name}.png")
        if sys.stderr.isatty():
            left = (time.monotonic() - began) / done * (len(drawn) - done)
            line = f"\r{done} of {len(drawn)} charts as PNG, ETA {left:.0f} s "
            print(line, end="\n" if done == len(drawn) else "", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    out = options.out or options.runs[0] / "report"
    try:
        print(write(options.runs, out, options.evals, not options.no_png))
    except UserError as error:
        return print_error("adaptsft.report", error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
