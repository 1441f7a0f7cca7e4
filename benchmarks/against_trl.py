"""The same training run, step by step, in adaptsft and in TRL: tiny model, same tokens in the same order, fp32, one process.

    pip install "trl==1.16.0"
    python benchmarks/against_trl.py --data train.jsonl --fields '{prompt: question, completion: answer}'

Compared per step, as the largest relative difference over all steps:
nll and dft with TRL's loss_type nll and dft: loss, ungated NLL, gradient norm before clipping, entropy, top-1 accuracy;
neg_p with TRL's dft: all but the loss, since neg_p reports -p where DFT reports -sg[p] log p. The gradients are the same.
Exits with 1 where a difference is above --tolerance. Writes benchmarks/results/against_trl.json.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.tokenized import open_data
from adaptsft.model.tiny import bpe_tokenizer, make_tiny_model, texts_of
from adaptsft.train import train
from adaptsft.training.environment import environment

Steps = dict[str, list[float]]  # figure -> one value per step
RESULT = Path(__file__).parent / "results" / "against_trl.json"
PAIRS = {"nll": "nll", "dft": "dft", "neg_p": "dft"}  # our objective -> TRL's loss_type
FIGURES = ("loss", "nll", "grad_norm", "entropy", "top1")


def settings(args: argparse.Namespace, folder: Path, objective: str) -> Config:
    return load_config(
        [
            *(
                f"run_dir={folder / objective}",
                f"model.path={folder / 'model'}",
                f"objective.name={objective}",
            ),
            *(
                f"data.path={args.data}",
                f"data.fields={args.fields}",
                f"data.cache_dir={folder / 'cache'}",
                "data.max_length=512",
            ),
            *(
                f"train.max_steps={args.steps}",
                "train.global_batch_size=8",
                "train.micro_batch_size=8",
                f"train.lr={args.lr}",
            ),
            *(
                "train.lr_schedule=constant",
                "train.warmup_ratio=0",
                "train.device=cpu",
                "log.tensorboard=false",
            ),
        ]
    )


def with_adaptsft(config: Config) -> Steps:
    train(config)
    rows = [
        json.loads(line)
        for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    return {figure: [row[figure] for row in rows] for figure in FIGURES}


def with_trl(config: Config, loss_type: str) -> Steps:
    """The same examples in the order of our plan, already tokenised, through SFTTrainer with the same settings."""
    tokenizer: Any = AutoTokenizer.from_pretrained(config.model.path)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    data, _ = open_data(config.data, tokenizer, config.seed, log=print)
    plan = BatchSampler(data, config, world_size=1)
    examples = [
        data.example(int(i)) for step in range(config.train.max_steps) for i in plan.examples(step)
    ]
    rows = [
        {
            "input_ids": ids.tolist(),
            "labels": [int(i) if m else -100 for i, m in zip(ids, mask, strict=True)],
        }
        for ids, mask in examples
    ]
    nll: list[float] = []
    # TRL's fused head returns the log-probability of every target, 0 where nothing is learned
    model.register_forward_hook(
        lambda *call: nll.append(
            -float(call[-1].log_probs.detach().sum() / call[-1].label_mask.sum())
        )
    )
    options = config.train
    arguments = SFTConfig(
        output_dir=f"{config.run_dir}_trl",
        loss_type=loss_type,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.global_batch_size,
        gradient_accumulation_steps=1,
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        adam_beta1=options.betas[0],
        adam_beta2=options.betas[1],
        adam_epsilon=options.eps,
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip_norm,
        max_length=config.data.max_length,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    log = [row for row in trainer.state.log_history if "grad_norm" in row]
    names = {
        "loss": "loss",
        "grad_norm": "grad_norm",
        "entropy": "entropy",
        "top1": "mean_token_accuracy",
    }
    return {ours: [row[theirs] for row in log] for ours, theirs in names.items()} | {"nll": nll}


def largest_difference(ours: list[float], theirs: list[float], steps: int) -> float:
    assert len(ours) == len(theirs) == steps
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))


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
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps (default: 50)")
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="constant learning rate (default: 1e-3)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest relative difference of a step (default: 1e-4)",
    )
    args = parser.parse_args()

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_tiny_model(
            folder / "model",
            "qwen2",
            tokenizer=bpe_tokenizer(texts_of(args.data), 1024),
            layers=2,
            hidden=64,
            initializer_range=0.1,
        )
        ours = {objective: with_adaptsft(settings(args, folder, objective)) for objective in PAIRS}
        theirs = {
            loss: with_trl(settings(args, folder, loss), loss)
            for loss in dict.fromkeys(PAIRS.values())
        }

    differences: dict[str, dict[str, float]] = {}
    for objective, loss_type in PAIRS.items():
        figures = [figure for figure in FIGURES if objective == loss_type or figure != "loss"]
        differences[f"{objective} / TRL {loss_type}"] = {
            figure: largest_difference(
                ours[objective][figure], theirs[loss_type][figure], args.steps
            )
            for figure in figures
        }
    print(f"\nlargest relative difference over {args.steps} steps\n")
    print(f"{'':18}" + "".join(f"{figure:>12}" for figure in FIGURES))
    for name, row in differences.items():
        print(
            f"{name:18}"
            + "".join(
                f"{row[figure]:12.1e}" if figure in row else f"{'-':>12}" for figure in FIGURES
            )
        )
    learned = {name: (values["nll"][0], values["nll"][-1]) for name, values in ours.items()}
    print(
        "\nungated NLL, first and last step: "
        + ", ".join(f"{name} {first:.3f} -> {last:.3f}" for name, (first, last) in learned.items())
    )

    worst = max(value for row in differences.values() for value in row.values())
    facts = environment()
    facts["versions"] |= {"trl": version("trl"), "accelerate": version("accelerate")}
    result = {
        "environment": facts,
        "data": {
            "name": args.data.name,
            "sha256": hashlib.sha256(args.data.read_bytes()).hexdigest(),
        },
        "steps": args.steps,
        "tolerance": args.tolerance,
        "largest_relative_difference": differences,
        "ungated_nll_first_and_last_step": learned,
        "seconds": round(time.perf_counter() - started, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{'agrees' if worst <= args.tolerance else 'DIFFERS'}: worst {worst:.1e}, tolerance {args.tolerance:g}; {RESULT.name} written"
    )
    return 0 if worst <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
