"""Pretrain a tiny model, fine-tune it under every objective, regime and seed of the configuration,
and report.

    python -m benchmarks.lab.quickstart configs/quickstart.yaml [key=value …]

Finished runs are found again: after an interruption, or with another objective or seed added, only
what is missing is run.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptsft.errors import UserError, require
from benchmarks.lab import grid, settings
from benchmarks.lab.quickstart import report
from benchmarks.lab.runs import UNTOUCHED
from benchmarks.lab.stages import stage


@dataclass
class QuickStart(settings.Lab):
    """configs/quickstart.yaml says what each key means. `methods` is every one of `objectives`."""

    run_dir: str = "runs/quickstart"
    objectives: dict[str, Any] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if "--help" in arguments or "-h" in arguments else 2
    started = time.perf_counter()
    try:
        lab = settings.read(QuickStart, Path(arguments[0]), arguments[1:])
        lab.methods = [UNTOUCHED, *lab.objectives]
        keys = settings.check(lab, settings.Methods(methods={UNTOUCHED: {}} | lab.objectives))
        require(len(lab.families) == 1, f"families={lab.families}: the quick start takes one")
        results = run_all(lab, keys)
        with stage("report"):
            text = report.write(Path(lab.run_dir), results)
        print(f"\n{text}")
    except UserError as error:
        print(f"benchmarks.lab.quickstart: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on with what is missing"
        print(f"\nbenchmarks.lab.quickstart: {message}", file=sys.stderr)
        return 130
    print(f"\nFinished in {report.duration(time.perf_counter() - started)}.")
    return 0


def run_all(lab: QuickStart, keys: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of all runs, in the order of the settings. Raises UserError where one fails."""
    folder = Path(lab.run_dir)
    with grid.workers(lab.workers) as pool:
        with stage(f"pretraining a tiny model on {lab.families[0]}") as show:
            bases = grid.pretrained(pool, lab, folder, show)
        asked = grid.asked(lab, keys, folder, bases, keep=True)
        results = {run.name: run.finished() for run in asked}
        missing = [run for run in asked if results[run.name] is None]
        with stage(f"fine-tuning it, {', '.join(lab.objectives)}") as show:
            started = time.perf_counter()
            for done, (run, result) in enumerate(grid.complete(pool, missing), 1):
                if isinstance(result, UserError):
                    raise result
                results[run.name] = result
                eta = (time.perf_counter() - started) / done * (len(missing) - done)
                left = f", ETA {report.duration(eta)}" if done < len(missing) else ""
                show(f"{done}/{len(missing)} runs{left}")
            if not missing:
                show("all runs found finished")
    return [result for result in results.values() if result is not None]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
