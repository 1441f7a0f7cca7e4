"""Tokens per second, memory and MFU of a whole fine-tuning step: our objectives beside each other, and TRL with Liger, in the same run.

    pip install trl liger-kernel
    python benchmarks/train_step.py                  # a Qwen2.5-1.5B-shaped model with random weights, packs of 8192 tokens, one GPU
    python benchmarks/train_step.py --tiny           # seconds on a CPU: shows that everything runs, measures nothing of interest

Every candidate trains in a process of its own (peak memory is then its own), the candidates one after another, --rounds times. Same
model files, same examples, fp32 masters with bf16 compute, AdamW, no activation checkpointing. TRL packs by itself, attends with
flash-attn where that is installed and with SDPA otherwise, and uses Liger's fused loss. Saving and exporting are left out.
The first half of the steps is warm-up. MFU: 6 FLOP per parameter and token, and attention, over the peak of --peak-tflops.
Writes benchmarks/results/train_step.json.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

RESULT = Path(__file__).parent / "results" / "train_step.json"
CANDIDATES: dict[str, list[str]] = {
    "NLL": ["objective.name=nll", "controller.name=fixed"],
    "-p": ["objective.name=neg_p", "controller.name=fixed"],
    "p >= .2": ["objective.name=threshold", "objective.lower=0.2", "controller.name=fixed"],
    "adaptive": [],  # the defaults
}
SHAPES: dict[bool, dict[str, Any]] = {  # of the model, keyed by --tiny; Qwen2.5-1.5B: config.json of Qwen/Qwen2.5-1.5B
    False: {"hidden": 1536, "layers": 28, "heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936},
    True: {"hidden": 64, "layers": 2, "heads": 4, "vocab_size": 1024},
}
WORDS = ["the", "of", "and", "a", "to", "in", "is", "that", "for", "it", "question", "answer", "seven", "forty", "because", "therefore"]


def prepare(folder: Path, tiny: bool, length: int) -> None:
    from adaptsft.tiny import make_tiny_model

    make_tiny_model(folder / "model", "qwen2", tied=True, max_position_embeddings=32768, **SHAPES[tiny])
    random = Random(0)
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(512):
            prompt, completion = (" ".join(random.choices(WORDS, k=random.randint(length // 64, length // 16))) for _ in range(2))
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def overrides(folder: Path, args: argparse.Namespace, changes: list[str]) -> list[str]:
    return [
        *(f"run_dir={folder / 'run'}", f"model.path={folder / 'model'}", f"data.path={folder / 'train.jsonl'}", "log.tensorboard=false"),
        *(f"data.cache_dir={folder / 'cache'}", f"data.max_length={args.length}", f"train.max_steps={args.steps}", "log.every=1"),
        *("train.global_batch_size=32", "train.micro_batch_size=1", f"train.device={args.device}", "checkpoint.every=0", *changes),
    ]


def run_ours(folder: Path, args: argparse.Namespace, changes: list[str]) -> dict[str, Any]:
    from adaptsft import config as configuration, train as module

    module.export = lambda *call: None  # type: ignore[assignment]  # 20 GB of files are no part of a step
    module.Checkpointer.save = lambda *call: None  # type: ignore[method-assign]
    config = configuration.load(overrides(folder, args, changes))
    if not args.breakdown:
        module.train(config)
        parts: dict[str, float] = {}
    else:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CUDA] if args.device == "cuda" else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            module.train(config)
        parts = breakdown(profiler)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["seconds"] for row in rows][args.steps // 2 :]
    rate = [row["tokens_per_second_per_rank"] for row in rows][args.steps // 2 :]
    return {"seconds": median(steps), "tokens_per_second": median(rate), "bytes": peak(args.device), "parts": parts}


def breakdown(profiler: Any) -> dict[str, float]:
    """Share of the kernels' time by kind."""
    kinds = {
        "attention": ("flash", "fmha", "attention"),
        "loss rows": ("row_sums", "row_gradient"),
        "products": ("gemm", "nvjet", "cutlass", "aten::mm", "aten::addmm"),
        "optimizer": ("adam", "multi_tensor"),
        "communication": ("nccl",),
    }
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        value = event.self_device_time_total or event.self_cpu_time_total
        name = event.key.lower()
        found[next((kind for kind, parts in kinds.items() if any(part in name for part in parts)), "other")] += value
    total = sum(found.values()) or 1.0
    return {kind: round(value / total, 4) for kind, value in sorted(found.items(), key=lambda item: -item[1])}


def peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def run_trl(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation=attention)
    tokens, ticks = [0], []
    model.register_forward_pre_hook(lambda _, call, options: tokens.append(options["input_ids"].numel()), with_kwargs=True)

    class Clock(TrainerCallback):
        def on_step_end(self, *call: Any, **options: Any) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            ticks.append((time.perf_counter(), sum(tokens)))

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    packs = max(1, round(32 * args.mean_tokens / args.length))  # the packs of a step of 32 examples
    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=args.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=packs,
        max_length=args.length,
        packing=True,
        use_liger_kernel=args.device == "cuda",
        bf16=args.device == "cuda",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    trainer = SFTTrainer(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Clock()])
    trainer.train()
    half = ticks[args.steps // 2 - 1 :]
    steps = [after[0] - before[0] for before, after in pairwise(half)]
    rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(half)]
    return {"seconds": median(steps), "tokens_per_second": median(rates), "bytes": peak(args.device), "attention": attention}


def child(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The result of a candidate, measured in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--device", args.device, "--length", str(args.length)]
    command += ["--steps", str(args.steps), "--mean-tokens", str(args.mean_tokens)] + ["--breakdown"] * args.breakdown
    subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        return {"failed": (result.stderr.strip() or result.stdout.strip()).splitlines()[-1][:200]}
    return json.loads(result.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and packs of 256 tokens")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--length", type=int, help="tokens of a pack (default: 8192; --tiny: 256)")
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, the first half warm-up (default: 12)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each candidate, interleaved (default: 2)")
    parser.add_argument("--only", default="", help="comma-separated candidates (default: all)")
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="dense bf16, for MFU (default: 989, NVIDIA's data sheet of the H200)"
    )
    parser.add_argument("--breakdown", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file (default: benchmarks/results/train_step.json)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in the child
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--mean-tokens", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.length = args.length or (256 if args.tiny else 8192)
    if args.one:
        result = run_trl(args.folder, args) if args.one == "TRL" else run_ours(args.folder, args, CANDIDATES[args.one])
        print(json.dumps(result))
        return 0

    from adaptsft import config as configuration
    from adaptsft.data import open_data
    from adaptsft.run import environment

    names = [name for name in args.only.split(",") if name] or [*CANDIDATES, *(["TRL"] if importlib.util.find_spec("trl") else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("writing the model and the data", file=sys.stderr)
        prepare(folder, args.tiny, args.length)
        from transformers import AutoTokenizer

        config = configuration.load(overrides(folder, args, []))
        tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
        data, _ = open_data(config.data, tokenizer, config.seed, log=lambda line: None)
        args.mean_tokens = float(data.lengths.mean())
        shape = SHAPES[args.tiny]
        weights = sum(tensor.numel() for tensor in load(folder / "model").values())  # tied: the head counts once, as it multiplies once
        # forward and backward: 6 per weight; attention 12 layers hidden tokens attended to, half of it by causality
        flops = 6.0 * weights + 6.0 * shape["layers"] * shape["hidden"] * args.mean_tokens
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        started, count = time.perf_counter(), 0
        for index in range(args.rounds):
            for name in names:
                passed = time.perf_counter() - started
                left = f", about {passed / count * (args.rounds * len(names) - count) / 60:.1f} min left" if count else ""
                print(f"round {index + 1} of {args.rounds}, {name}{left}", file=sys.stderr, flush=True)
                runs[name].append(child(name, folder, args))
                count += 1
        args.breakdown = True
        parts = child(names[0], folder, args).get("parts", {}) if names[0] in CANDIDATES else {}

    print(f"\n{'':12}{'tokens/s':>12}{'ms/step':>10}{'MFU':>8}{'GB':>8}")
    for name, found in runs.items():
        good = [run for run in found if "failed" not in run]
        if not good:
            print(f"{name:12}  {found[0]['failed']}")
            continue
        rate, step = (median(run[key] for run in good) for key in ("tokens_per_second", "seconds"))
        memory = f"{max(run['bytes'] for run in good) / 1e9:.1f}" if good[0]["bytes"] else "-"
        mfu = f"{rate * flops / args.peak_tflops / 1e12:.1%}" if args.device == "cuda" else "-"
        print(f"{name:12}{rate:12,.0f}{1e3 * step:10.1f}{mfu:>8}{memory:>8}")
    print(f"\nwhere the time of {names[0]} goes: " + ", ".join(f"{kind} {share:.0%}" for kind, share in parts.items()))
    result = {"environment": environment(), "model": shape, "length": args.length, "steps": args.steps, "flops_per_token": flops}
    result |= {"peak_tflops": args.peak_tflops, "runs": runs, "breakdown": {names[0]: parts}}
    temporary_file = args.out.with_suffix(".tmp")
    temporary_file.write_text(json.dumps(result, indent=1) + "\n")
    temporary_file.replace(args.out)
    print(f"{args.out} written")
    return 1 if any("failed" in run for found in runs.values() for run in found) else 0


def load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


if __name__ == "__main__":
    sys.exit(main())
