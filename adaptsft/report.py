"""python -m adaptsft.report RUN…: what happened in one or several runs, as one self-contained HTML page, and its charts as PNG files.

    python -m adaptsft.report runs/first
    python -m adaptsft.report runs/nll runs/auto --out reports/compared --evals evals/nll evals/auto

The runs may be finished, killed or going on: whatever they have written is shown, and what is missing is named. The page loads
nothing from anywhere, so that it can be mailed or archived as it is. What it shows: docs/report.md.
"""

import argparse
import sys
import time
from pathlib import Path

from adaptsft.errors import CheckpointError, ConfigError, UserError

MAX_RUNS = 16  # colours times two kinds of line


def write(paths: list[Path], out: Path, evals: list[Path], pictures: bool = True) -> Path:
    """Write out/report.html and, with `pictures`, out/figures/*.png; returns the page. Raises UserError."""
    from adaptsft.analysis.report import charts, folder, outputs, page

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
        partial = out / "report.html.tmp"
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.rename(out / "report.html")
        began = time.monotonic()
        for i, chart in enumerate(drawn if pictures else []):
            charts.png(chart, out / "figures" / f"{chart.name}.png")
            if sys.stderr.isatty():
                left = (time.monotonic() - began) / (i + 1) * (len(drawn) - i - 1)
                end = "\n" if i + 1 == len(drawn) else ""
                print(
                    f"\r{i + 1} of {len(drawn)} charts as PNG, ETA {left:.0f} s ",
                    end=end,
                    file=sys.stderr,
                    flush=True,
                )
    except OSError as error:
        raise CheckpointError(f"--out {out}: could not be written: {error}") from None
    return out / "report.html"


def main(arguments: list[str]) -> int:
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
        help="only the page: faster, for a look at a run that is going on",
    )
    options = parser.parse_args(arguments or ["--help"])
    try:
        page = write(
            options.runs,
            options.out or options.runs[0] / "report",
            options.evals,
            not options.no_png,
        )
    except UserError as error:
        print(f"adaptsft.report: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
