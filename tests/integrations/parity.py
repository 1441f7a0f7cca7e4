"""The same batches in this package's loop and in a trainer of the transformers family."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from adaptsft.config.schema import Config
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import process_group
from adaptsft.model.pretrained import load_pretrained
from adaptsft.train import train
from tests.runs import small_config

STEPS, EXAMPLES, LR = 6, 4, 1e-3
REQUIRED = ("nll", "mean_p", "weight")
COMPARED = (*REQUIRED, "alpha", "floor", "lr_scale")  # of what the objective reads


def our_config(folder: Path, model: Path, **settings: Any) -> Config:
    """A run without what trainers do in another way: warm-up, clipping, weight decay."""
    plain = {"train__lr": LR, "train__lr_schedule": "constant", "train__warmup_ratio": 0.0}
    plain |= {"train__clip_norm": 0.0, "train__weight_decay": 0.0, "train__max_steps": STEPS}
    plain |= {"train__global_batch_size": EXAMPLES, "log__every": 1, "checkpoint__every": 0}
    return small_config(folder, model, **plain | settings)


def our_steps(config: Config) -> list[dict[str, Any]]:
    """What metrics.jsonl says of every step."""
    train(config)
    return [
        json.loads(line)
        for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    ]


def batches_of(config: Config) -> Dataset:
    """The examples of all steps in their order, as TRL takes them: input_ids, and labels that are
    -100 where nothing is learned."""
    rows = []
    with process_group("cpu"):
        data = TrainingData(config, load_pretrained(config.model).tokenizer, None)
        for step in range(STEPS):
            for example in data.sampler.examples(step):
                ids, mask = data.train.example(example)
                labels = [int(t) if m else -100 for t, m in zip(ids, mask, strict=True)]
                rows.append({"input_ids": [int(token) for token in ids], "labels": labels})
    return Dataset.from_list(rows)


def arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    """Those of TrainingArguments for the run of `our_config`; all examples of a step at once."""
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": EXAMPLES,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    } | settings


def assert_same_steps(logs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """The logs of a trainer, in order, against metrics.jsonl: 1e-5 relative."""
    theirs = [line for line in logs if "loss" in line]
    assert len(theirs) == len(ours) == STEPS
    for line, expected in zip(theirs, ours, strict=True):
        names = [name for name in COMPARED if name in line or name in REQUIRED]
        assert {name: line[name] for name in names} == pytest.approx(
            {name: expected[name] for name in names}, rel=1e-5
        )
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
