"""What the settings of docs/strict_reproduction.md do to a run: the same fine-tuning without them,
with each, and with both.

    python -m benchmarks.paper.strict_reproduction --data train.jsonl \
        --fields '{prompt: question, completion: answer}'

A tiny model learns the data from random weights, and is then fine-tuned further under NLL and -p,
at the paper's learning rate of 5e-5, clip 1 and AdamW settings, in 8 padded micro-batches per step.
Per run: the gradient norm before clipping and the share of steps in which it was clipped; the
held-out NLL and mean p; the share of weights that the whole run has not moved. Writes
benchmarks/results/strict_reproduction.json. One seed and a tiny model: it shows the mechanism, and
says nothing of the paper's results.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file

from adaptsft.config.resolve import load_config
from adaptsft.model.tiny import bpe_tokenizer, make_tiny_model, texts_of
from adaptsft.train import train
from adaptsft.training.environment import environment

RESULT = Path(__file__).parents[1] / "results" / "strict_reproduction.json"
SUMMED = {"train.loss_reduction": "micro_batch"}
BF16 = {"model.param_dtype": "bf16"}
OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
    "summed": SUMMED,
    "bf16": BF16,
    "both": SUMMED | BF16,
}
OBJECTIVES = ("nll", "neg_p")


def run(
    args: argparse.Namespace, folder: Path, name: str, model: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Train, and return the last step's figures with those of the held-out data."""
    common = {
        "run_dir": folder / name,
        "model.path": model,
        "data.path": args.data,
        "data.fields": args.fields,
        "data.max_length": 192,
        "data.cache_dir": folder / "cache",
        "data.validation_examples": 128,
        "train.global_batch_size": 16,
        "train.micro_batch_size": 2,
        "train.device": "cpu",
        "checkpoint.export_dtype": "fp32",
        "log.trackers": "[]",
    }
    return train(load_config([f"{key}={value}" for key, value in (common | settings).items()]))


def fine_tuned(
    args: argparse.Namespace, folder: Path, objective: str, options: dict[str, str]
) -> dict[str, Any]:
    name = "-".join([objective, *options])
    settings = {
        "objective.name": objective,
        "train.max_steps": args.steps,
        "train.lr": 5e-5,
        "train.warmup_ratio": 0.1,
    }
    settings |= {"data.packing": "false"} | options
    found = run(args, folder, name, folder / "base" / "final", settings)
    steps = [
        json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()
    ]
    norms = [step["grad_norm"] for step in steps]
    before, after = (
        load_file(folder / part / "final" / "model.safetensors") for part in ("base", name)
    )
    if "model.param_dtype" in options:  # they begin at the rounded weights
        before = {key: tensor.bfloat16().float() for key, tensor in before.items()}
    still = torch.cat([(before[key] == after[key]).flatten() for key in before]).double().mean()
    return {
        "norm_median": statistics.median(norms),
        "clipped": sum(norm > 1.0 for norm in norms) / len(norms),
        "held_out_nll": found["held_out"]["nll"],
        "held_out_mean_p": found["held_out"]["mean_p"],
        "unmoved": float(still),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="jsonl file")
    parser.add_argument(
        "--fields",
        default="{}",
        help="data.fields of adaptsft, where the fields are not recognised by name",
    )
    parser.add_argument(
        "--base-steps", type=int, default=200, help="steps of the base model (default: 200)"
    )
    parser.add_argument(
        "--steps", type=int, default=60, help="steps of each fine-tuning (default: 60)"
    )
    args = parser.parse_args()

    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_tiny_model(
            folder / "model",
            "qwen2",
            tokenizer=bpe_tokenizer(texts_of(args.data), 1024),
            layers=2,
            hidden=64,
        )
        base = run(
            args,
            folder,
            "base",
            folder / "model",
            {"train.max_steps": args.base_steps, "train.lr": 2e-3},
        )["held_out"]
        results: dict[str, dict[str, Any]] = {}
        for objective in OBJECTIVES:
            for option, names in OPTIONS.items():
                results[f"{objective}, {option}"] = fine_tuned(args, folder, objective, names)

    print(f"\nbase model: held-out NLL {base['nll']:.4f}, mean p {base['mean_p']:.4f}\n")
    print(f"{'':18}{'norm':>8}{'clipped':>9}{'nll':>9}{'mean p':>9}{'unmoved':>9}")
    for name, result in results.items():
        steps = f"{result['norm_median']:8.3f}{result['clipped']:9.0%}"
        held_out = f"{result['held_out_nll']:9.4f}{result['held_out_mean_p']:9.4f}"
        print(f"{name:18}{steps}{held_out}{result['unmoved']:9.1%}")
    settings = {
        "base_steps": args.base_steps,
        "steps": args.steps,
        "micro_batches_per_step": 8,
        "lr": 5e-5,
        "seed": 0,
    }
    content = environment() | {
        "settings": settings,
        "data": {
            "name": args.data.name,
            "sha256": hashlib.sha256(args.data.read_bytes()).hexdigest(),
        },
        "base": {"held_out_nll": base["nll"], "held_out_mean_p": base["mean_p"]},
        "results": results,
        "seconds": round(time.perf_counter() - started),
    }
    partial = RESULT.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
