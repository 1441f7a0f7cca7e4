"""Data at scale: tokenise, open and plan a million conversations, and take the first optimizer
steps on one rank and on two.

    # 1,000,000 examples: 10 to 20 minutes on two cores, 1.3 GB of disk
    python benchmarks/data_scale.py
    # a minute
    python benchmarks/data_scale.py --examples 20000

Each measurement is a process of its own, so that its peak of memory is its own. Memory is the peak
resident set: it includes the pages of memory-mapped token files, which the system may drop at any
time. Times of first steps count from the end of the imports. The file of examples is the same on
every machine. Writes benchmarks/results/data_scale.json.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.data.collator import collate
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.tokenized import open_data
from adaptsft.model.pretrained import load_pretrained
from adaptsft.model.tiny import bpe_tokenizer, make_tiny_model, texts_of
from adaptsft.train import train
from adaptsft.training.environment import environment

IMPORTED = time.perf_counter()
RESULT = Path(__file__).parent / "results" / "data_scale.json"
LIMITS = {"peak_gb": 2.0, "first_step_seconds": 15.0}
STEPS = 3  # optimizer steps of the runs


def write_examples(path: Path, examples: int) -> None:
    """Conversations of one or two turns and, with the tokenizer below, about 150 tokens, one a
    line, each with an id."""
    generator = random.Random(0)
    vowels = ("a", "e", "i", "o", "u", "an", "er", "ing")
    syllables = [a + b for a in "bdfghklmnprstvwz" for b in vowels]
    words = [
        "".join(generator.choices(syllables, k=generator.randrange(1, 4))) for _ in range(4000)
    ]
    sentences = [
        " ".join(generator.choices(words, k=generator.randrange(5, 16))).capitalize() + "."
        for _ in range(20000)
    ]
    with path.open("w") as file:
        for number in range(examples):
            messages = []
            for _ in range(generator.randrange(1, 3)):
                question = generator.choices(sentences, k=2)
                answer = generator.choices(sentences, k=generator.randrange(2, 5))
                messages.append({"role": "user", "content": " ".join(question)})
                messages.append({"role": "assistant", "content": " ".join(answer)})
            file.write(json.dumps({"id": f"example-{number}", "messages": messages}) + "\n")


def settings(folder: Path, run: str = "run") -> Config:
    return load_config(
        [
            f"run_dir={folder / run}",
            f"model.path={folder / 'model'}",
            f"data.path={folder / 'train.jsonl'}",
            f"data.cache_dir={folder / 'cache'}",
            "data.max_length=1024",
            "train.global_batch_size=64",
            "train.micro_batch_size=2",
            f"train.max_steps={STEPS}",
            "train.device=cpu",
            "log.trackers=[]",
            "log.every=1",
        ]
    )


def peak_gb() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def anonymous_gb() -> float | None:
    """Memory of this process that is its own, without the pages of mapped files; None where the
    system does not report it."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e9
    return None


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def tokenise(folder: Path) -> dict[str, Any]:
    config, before = settings(folder), peak_gb()
    tokenizer = load_pretrained(config.model).tokenizer
    log = partial(print, flush=True)
    seconds, (data, _) = timed(lambda: open_data(config.data, tokenizer, config.seed, log=log))
    cache = (file for file in (folder / "cache").rglob("*") if file.is_file())
    return {
        "tokenise_seconds": seconds,
        "examples_per_second": len(data) / seconds,
        "tokens": int(data.lengths.sum(dtype=np.int64)),
        "mean_tokens": float(data.lengths.mean()),
        "longest": int(data.lengths.max()),
        "imports_gb": before,
        "tokenise_peak_gb": peak_gb(),
        "cache_gb": sum(file.stat().st_size for file in cache) / 1e9,
    }


def plan(folder: Path) -> dict[str, Any]:
    """Opening, planning and reading with a warm cache; then every example once, in the order of the
    first epoch."""
    config = settings(folder)
    tokenizer = load_pretrained(config.model).tokenizer

    def read() -> Any:
        return open_data(config.data, tokenizer, config.seed, log=lambda line: None)

    figures: dict[str, Any] = {}
    figures["open_seconds"], (data, _) = timed(read)
    figures["fingerprint_seconds"], _ = timed(lambda: data.fingerprint)
    figures["plan_seconds"], sampler = timed(lambda: BatchSampler(data, config, world_size=2))
    # the step in which the first epoch ends, or just before it
    last = (sampler.epoch_size - 1) // config.train.global_batch_size
    steps = {"first": 0, "second": 1, "middle": last // 2}
    steps |= {"epoch_end": last, "next_epoch": last + 1}

    def collate_step(step: int) -> None:
        for micro_batch in sampler.micro_batches(step, 0):
            collate(micro_batch, data, pad_id=0)

    for name, step in steps.items():
        figures[f"step_{name}_seconds"], _ = timed(partial(collate_step, step))
    figures |= {"plan_anonymous_gb": anonymous_gb(), "plan_peak_gb": peak_gb()}
    order = np.concatenate([sampler.examples(step) for step in range(last + 1)])[: len(data)]
    seconds, tokens = timed(lambda: sum(len(data.example(int(i))[0]) for i in order))
    assert tokens == data.lengths.sum(dtype=np.int64)
    figures["read_all_examples_per_second"] = len(data) / seconds
    return figures | {"read_all_anonymous_gb": anonymous_gb(), "read_all_peak_gb": peak_gb()}


def first_steps(folder: Path) -> None:
    """A run of a few steps, under torchrun or alone; each rank writes what it measured."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ends: list[float] = []
    handle = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    train(settings(folder, f"run{world}"))
    handle.remove()
    figures = {
        "imports_seconds": IMPORTED - STARTED,
        "first_step_seconds": ends[0] - IMPORTED,
        "peak_gb": peak_gb(),
    }
    (folder / f"first_step_{world}_{rank}.json").write_text(json.dumps(figures))


def stage(folder: Path, name: str, ranks: int = 0) -> str:
    """Run a stage of this script in a process, or in `ranks` processes; its last line of output."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [__file__, "--folder", str(folder), "--stage", name]
    lines = [""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines = [*lines[-1:], line.rstrip()]
            if not line.startswith("{"):
                print(f"  {line}", end="", flush=True)
    if process.returncode:
        raise SystemExit(f"stage {name} ended with code {process.returncode}")
    return lines[-1]


def measure(folder: Path, examples: int) -> dict[str, Any]:
    print(f"writing {examples:,} examples", flush=True)
    data, sample = folder / "train.jsonl", folder / "sample.jsonl"
    if not data.is_file():
        write_examples(data, examples)
    with data.open() as lines:
        sample.write_text("".join(islice(lines, 2000)))
    make_tiny_model(folder / "model", "llama", tokenizer=bpe_tokenizer(texts_of(sample), 2048))
    figures: dict[str, Any] = {"file_gb": data.stat().st_size / 1e9}
    for name in ("tokenise", "plan"):
        figures |= json.loads(stage(folder, name))
        print(f"{name} done", flush=True)
    for world in (1, 2):
        stage(folder, "first_steps", world)
        files = [folder / f"first_step_{world}_{rank}.json" for rank in range(world)]
        ranks = [json.loads(file.read_text()) for file in files]
        for name in ranks[0]:
            figures[f"{world}_rank{'s' * (world > 1)}_{name}"] = max(rank[name] for rank in ranks)
    return figures


def within_limits(figures: dict[str, Any]) -> bool:
    return all(
        value <= limit
        for end, limit in LIMITS.items()
        for name, value in figures.items()
        if name.endswith(end)
    )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--examples", type=int, default=1_000_000, help="examples (default: 1000000)")
    folder = "work in this folder and leave it; a train.jsonl and a cache in it are used again"
    add("--folder", type=Path, help=folder)
    add("--out", type=Path, default=RESULT, help="file of the result")
    add("--stage", choices=("tokenise", "plan", "first_steps"), help=argparse.SUPPRESS)
    return parser


def main() -> int:
    args = arguments().parse_args()
    torch.set_num_threads(1)
    if args.stage:
        if figures := globals()[args.stage](args.folder):
            print(json.dumps(figures))
        return 0

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, args.examples)
    ok = within_limits(figures)
    for name, value in figures.items():
        if isinstance(value, float):
            value = figures[name] = float(f"{value:.4g}")
        print(f"{name:32}{value if value is None else format(value, ','):>14}")
    limits = ", ".join(f"{name} <= {limit:g}" for name, limit in LIMITS.items())
    print(f"{'within' if ok else 'NOT within'} the limits: {limits}")
    result = {"environment": environment(), "examples": args.examples, "limits": LIMITS}
    result |= {"within_limits": ok, "figures": figures}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
