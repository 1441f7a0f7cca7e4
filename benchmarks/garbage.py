"""What Python's garbage collection costs a run, where each rank collects when it likes, and where
all collect in the same step (train.gc_every).

    python benchmarks/garbage.py --out benchmarks/results/garbage.json

Trains a tiny model on generated additions on two gloo ranks, by turns with either, and notes on
each rank which steps a collection interrupted, and for how long; the first 20 steps do not count.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from adaptsft.config.resolve import load_config
from adaptsft.model.tiny import make_tiny_model
from adaptsft.train import train
from adaptsft.training.environment import environment
from adaptsft.training.garbage import GarbageCollection

PERIODS, STEPS, WARM_UP, RANKS = (0, 50), 300, 20, 2


def on_a_rank(out: Path, arguments: list[str]) -> None:
    """Train, and write (step, seconds) of every collection in the loop."""
    pauses: list[tuple[int, float]] = []
    step, began, before = -1, 0.0, GarbageCollection.before

    def counted(self: GarbageCollection, now: int) -> None:
        nonlocal step
        step = now
        before(self, now)

    def watch(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        elif step >= WARM_UP:
            pauses.append((step, time.perf_counter() - began))

    GarbageCollection.before = counted  # type: ignore[method-assign]
    gc.callbacks.append(watch)
    train(load_config(arguments))
    gc.callbacks.remove(watch)
    out.with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(pauses))


def measure(folder: Path, every: int, turn: int) -> dict[str, Any]:
    """One run: pauses of all ranks, steps in which one paused and another did not, time."""
    out = folder / f"every{every}_{turn}"
    settings = {
        "run_dir": out,
        "model.path": folder / "model",
        "data.path": folder / "data.jsonl",
        "data.cache_dir": folder / "cache",
        "data.max_length": 128,
        "train.max_steps": STEPS,
        "train.global_batch_size": 16,
        "train.device": "cpu",
        "log.trackers": "[]",
        "train.gc_every": every,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(RANKS), __file__, "--rank", f"{out}.pauses"]
    command += [f"{key}={value}" for key, value in settings.items()]
    subprocess.run(command, check=True, capture_output=True)
    ranks = [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(RANKS)]
    steps = [{step for step, _ in pauses} for pauses in ranks]
    lines = (out / "metrics.jsonl").read_text().splitlines()[WARM_UP:]
    seconds = [json.loads(line)["seconds"] for line in lines]
    spent = [paused for pauses in ranks for _, paused in pauses]
    return {
        "collections_per_rank": [len(pauses) for pauses in ranks],
        "steps_that_one_rank_paused_alone": len(set.union(*steps) - set.intersection(*steps)),
        "longest_pause_ms": round(1000 * max(spent, default=0.0), 2),
        "share_of_time_paused": round(sum(spent) / RANKS / sum(seconds), 5),
        "seconds_per_step": round(statistics.median(seconds), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options, settings = parser.parse_known_args()
    if options.rank:
        on_a_rank(options.rank, settings)
        return
    found: dict[str, list[dict[str, Any]]] = {f"gc_every={every}": [] for every in PERIODS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny_model(folder / "model", layers=4)
        with (folder / "data.jsonl").open("w") as file:
            for a in range(40):
                for b in range(40):
                    row = {"prompt": f"Add {a}, {b}", "completion": f"The sum is {a + b}."}
                    file.write(json.dumps(row) + "\n")
        for turn in range(options.turns):
            for every in PERIODS:
                found[f"gc_every={every}"].append(measure(folder, every, turn))
                print(f"gc_every={every}:", found[f"gc_every={every}"][-1], flush=True)
    if options.out:
        content = {"steps": STEPS - WARM_UP, "ranks": RANKS, "runs": found}
        options.out.write_text(json.dumps(content | {"environment": environment()}, indent=1))


if __name__ == "__main__":
    main()
