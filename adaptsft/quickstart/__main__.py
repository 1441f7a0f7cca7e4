"""Pretrain a tiny model, fine-tune it under every objective, task and seed of the configuration, and report.

    python -m adaptsft.quickstart configs/quickstart.yaml [key=value …]

Finished runs are found again: after an interruption, or with another objective or seed added, only what is missing is run.
"""

import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from adaptsft.errors import UserError
from adaptsft.quickstart import report, runs
from adaptsft.quickstart.settings import Settings, claim, load


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if "--help" in arguments or "-h" in arguments else 2
    # for the workers, before they import torch: one thread each, and nothing that reaches for the network
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    try:
        settings = load(arguments)
        folder = Path(settings.run_dir)
        claim(folder, settings)
        results, base = run_all(settings, folder)
    except UserError as error:
        print(f"adaptsft.quickstart: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nadaptsft.quickstart: interrupted; the same command goes on with what is missing", file=sys.stderr)
        return 130
    report.write(folder, results, base, settings.noise)
    print(f"\nFinished in {report.duration(time.perf_counter() - started)}.")
    return 0


def run_all(settings: Settings, folder: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The results of all runs, in the order of the settings, and the scores of the pretrained model by task."""
    planned = runs.prepare(settings, folder)
    # spawn: a fork of a process that has run torch may hang
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
        print(
            f"[1/3] pretraining a tiny model on generated words; {settings.known!r} is in the mixture, {settings.new!r} is not\n",
            flush=True,
        )
        pool.submit(runs.pretrain, settings, folder).result()
        base = {task: pool.submit(runs.score, folder / "pretrain" / "final", task, settings.held_out, 0) for task in settings.tasks()}

        what = f"{len(planned)} runs: {', '.join(settings.objectives)}; {settings.noise:.0%} of the target characters are wrong"
        print(f"\n[2/3] fine-tuning it, {what}\n", flush=True)
        started = time.perf_counter()
        futures: dict[Future, int] = {pool.submit(runs.execute, run): number for number, run in enumerate(planned)}
        results: list[dict[str, Any]] = [{}] * len(planned)
        try:
            for done, future in enumerate(as_completed(futures), 1):
                result = results[futures[future]] = future.result()
                eta = (time.perf_counter() - started) / done * (len(planned) - done)
                print(f"  {done:2}/{len(planned)}  {report.line(result)}  ETA {report.duration(eta)}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return results, {task: future.result() for task, future in base.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
