"""The same training run, step by step, in adaptsft and in TRL: tiny model, same tokens in the same
order, fp32, one process.

    pip install "trl==1.16.0"
    python benchmarks/against_trl.py --data train.jsonl \\
        --fields '{prompt: question, completion: answer}'

Compared per step, as the largest relative difference over all steps:
nll and dft with TRL's loss_type nll and dft: loss, ungated NLL, gradient norm before clipping,
entropy, top-1 accuracy; neg_p with TRL's dft: all but the loss, since neg_p reports -p where DFT
reports -sg[p] log p. The gradients are the same. Exits with 1 where a difference is above
--tolerance. Writes benchmarks/results/against_trl.json.
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
            f"run_dir={folder / objective}",
            f"model.path={folder / 'model'}",
            f"objective.name={objective}",
            f"data.path={args.data}",
            f"data.fields={args.fields}",
            f"data.cache_dir={folder / 'cache'}",
            "data.max_length=512",
            f"train.max_steps={args.steps}",
            "train.global_batch_size=8",
            "train.micro_batch_size=8",
            f"train.lr={args.lr}",
            "train.lr_schedule=constant",
            "train.warmup_ratio=0",
            "train.device=cpu",
            "log.trackers=[]",
        ]
    )


def with_adaptsft(config: Config) -> Steps:
    train(config)
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return {figure: [step[figure] for step in steps] for figure in FIGURES}


def with_trl(config: Config, loss_type: str) -> Steps:
    """The same examples in the order of our sampler, already tokenised, through SFTTrainer with the
    same settings."""
    tokenizer: Any = AutoTokenizer.from_pretrained(config.model.path)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    data, _ = open_data(config.data, tokenizer, config.seed, log=print)
    sampler, examples = BatchSampler(data, config, world_size=1), []
    for step in range(config.train.max_steps):
        for ids, mask in (data.example(int(i)) for i in sampler.examples(step)):
            labels = [int(i) if learned else -100 for i, learned in zip(ids, mask, strict=True)]
            examples.append({"input_ids": ids.tolist(), "labels": labels})
    nll: list[float] = []

    def record_nll(module: Any, inputs: Any, outputs: Any) -> None:
        # TRL's fused head returns the log-probability of every target, 0 where nothing is learned
        nll.append(-float(outputs.log_probs.detach().sum() / outputs.label_mask.sum()))

    model.register_forward_hook(record_nll)
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
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )
    trainer.train()
    log = [line for line in trainer.state.log_history if "grad_norm" in line]
    names = {name: name for name in ("loss", "grad_norm", "entropy")}
    names["top1"] = "mean_token_accuracy"
    return {ours: [line[theirs] for line in log] for ours, theirs in names.items()} | {"nll": nll}


def largest_difference(ours: list[float], theirs: list[float], steps: int) -> float:
    assert len(ours) == len(theirs) == steps
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="FILE", help="jsonl file")
    fields = "data.fields of adaptsft, where the fields are not recognised by name"
    add("--fields", default="{}", help=fields)
    add("--steps", type=int, default=50, help="optimizer steps (default: 50)")
    add("--lr", type=float, default=1e-3, help="constant learning rate (default: 1e-3)")
    tolerance = "largest relative difference of a step (default: 1e-4)"
    add("--tolerance", type=float, default=1e-4, help=tolerance)
    return parser


def main() -> int:
    args = arguments().parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = bpe_tokenizer(texts_of(args.data), 1024)
        shape = {"layers": 2, "hidden": 64, "initializer_range": 0.1}
        make_tiny_model(folder / "model", "qwen2", tokenizer=tokenizer, **shape)
        ours, theirs = {}, {}
        for objective in PAIRS:
            ours[objective] = with_adaptsft(settings(args, folder, objective))
        for loss_type in dict.fromkeys(PAIRS.values()):
            theirs[loss_type] = with_trl(settings(args, folder, loss_type), loss_type)

    differences: dict[str, dict[str, float]] = {}
    for objective, loss_type in PAIRS.items():
        found = differences[f"{objective} / TRL {loss_type}"] = {}
        for figure in FIGURES:
            if objective == loss_type or figure != "loss":
                steps = ours[objective][figure], theirs[loss_type][figure]
                found[figure] = largest_difference(*steps, args.steps)
    print(f"\nlargest relative difference over {args.steps} steps\n")
    print(f"{'':18}" + "".join(f"{figure:>12}" for figure in FIGURES))
    for name, found in differences.items():
        cells = [f"{found[figure]:.1e}" if figure in found else "-" for figure in FIGURES]
        print(f"{name:18}" + "".join(f"{cell:>12}" for cell in cells))
    learned = {name: (values["nll"][0], values["nll"][-1]) for name, values in ours.items()}
    shown = [f"{name} {first:.3f} -> {last:.3f}" for name, (first, last) in learned.items()]
    print(f"\nungated NLL, first and last step: {', '.join(shown)}")

    worst = max(value for found in differences.values() for value in found.values())
    facts = environment()
    facts["versions"] |= {"trl": version("trl"), "accelerate": version("accelerate")}
    digest = hashlib.sha256(args.data.read_bytes()).hexdigest()
    result = {
        "environment": facts,
        "data": {"name": args.data.name, "sha256": digest},
        "steps": args.steps,
        "tolerance": args.tolerance,
        "largest_relative_difference": differences,
        "ungated_nll_first_and_last_step": learned,
        "seconds": round(time.perf_counter() - started, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    verdict = "agrees" if worst <= args.tolerance else "DIFFERS"
    print(f"{verdict}: worst {worst:.1e}, tolerance {args.tolerance:g}; {RESULT.name} written")
    return 0 if worst <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
