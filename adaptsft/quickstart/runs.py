"""The quick start's runs: configurations for adaptsft.train, and what its worker processes do with them."""

import contextlib
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from adaptsft import config as configuration
from adaptsft.quickstart import tasks
from adaptsft.quickstart.settings import Settings
from adaptsft.tiny import make_tiny_model


@dataclass
class Run:
    """A task, an objective and a seed; `folder` is the trainer's run_dir, and `folder`.yaml its configuration."""

    task: str
    label: str
    seed: int
    folder: Path
    held_out: int  # words to score on


def write_config(folder: Path, *parts: dict[str, Any], data: Path, model: Path, seed: int) -> None:
    """A configuration of adaptsft.train beside the run's folder, so that any run can be repeated by hand. Raises ConfigError."""
    fixed = {
        "run_dir": str(folder),
        "seed": seed,
        "model": {"path": str(model)},
        "data": {"path": str(data), "template": "plain", "prompt_template": "{prompt}", "cache_dir": str(folder.parent / "cache")},
        "train": {"device": "cpu"},
        "checkpoint": {"export_dtype": "fp32"},
        "log": {"tensorboard": False},
    }
    # not with_suffix: the name of an objective may hold a dot
    path = Path(f"{folder}.yaml")
    path.write_text(OmegaConf.to_yaml(OmegaConf.merge(*parts, fixed)))
    configuration.load([str(path)])


def prepare(settings: Settings, folder: Path) -> list[Run]:
    """Write the data and the checked configuration of every run, pretraining included; returns the fine-tuning runs. The objectives of
    a task and seed share their data. Raises ConfigError."""
    mixture = [name for name in tasks.TASKS if name != settings.new]
    data = tasks.write_examples(folder / "pretrain.jsonl", mixture, _examples(settings.pretrain), 0.0, 0, settings.held_out)
    write_config(folder / "pretrain", settings.pretrain, data=data, model=folder / "random", seed=0)
    planned = []
    for seed, task in product(settings.seeds, settings.tasks()):
        count = _examples(settings.finetune)
        data = tasks.write_examples(folder / f"{task}-{seed}.jsonl", [task], count, settings.noise, seed, settings.held_out)
        for name, keys in settings.objectives.items():
            run = Run(task, name, seed, folder / f"{task}-{name}-{seed}", settings.held_out)
            write_config(run.folder, settings.finetune, keys, data=data, model=folder / "pretrain" / "final", seed=seed)
            planned.append(run)
    return planned


def _examples(keys: dict[str, Any]) -> int:
    return keys["train"]["max_steps"] * keys["train"]["global_batch_size"]


def pretrain(settings: Settings, folder: Path) -> None:
    """Leave in `folder`/pretrain/final a model that knows every task but the new one. Raises UserError."""
    from adaptsft.train import train

    logging.disable_progress_bar()
    make_tiny_model(folder / "random", tokenizer=tasks.tokenizer(), **settings.model)
    train(configuration.load([str(folder / "pretrain.yaml")]))


def execute(run: Run) -> dict[str, Any]:
    """Train and score one run, or find it trained. The trainer's own lines go to `folder`.log. Raises UserError."""
    from adaptsft.train import train

    config = configuration.load([f"{run.folder}.yaml"])
    with Path(f"{run.folder}.log").open("a") as log, contextlib.redirect_stderr(log):
        train(config)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    curves = {key: [row[key] for row in rows] for key in ("nll", "mean_p", "alpha")}
    result = {"task": run.task, "label": run.label, "seed": run.seed}
    result |= score(run.folder / "final", run.task, run.held_out, run.seed)
    return result | {"train_nll": curves["nll"][-1], "seconds": sum(row["seconds"] for row in rows), "curves": curves}


def score(model_folder: Path, task: str, held_out: int, seed: int) -> dict[str, Any]:
    """Exact match on held-out words, greedy and sampled at temperature 1, and the first answer of each: {greedy, sampled, answers}."""
    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    words = tasks.held_out_words(held_out)
    expected = [tasks.TASKS[task].answer(word) for word in words]
    prompts = [tasks.prompt(task, word) for word in words]
    answers = {"greedy": generate(model, tokenizer, prompts, 0.0, seed), "sampled": generate(model, tokenizer, prompts, 1.0, seed)}
    matches = {mode: sum(a == e for a, e in zip(given, expected, strict=True)) / len(words) for mode, given in answers.items()}
    return matches | {"answers": {mode: given[0] for mode, given in answers.items()}}


@torch.no_grad()
def generate(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], temperature: float, seed: int) -> list[str]:
    """An answer to each prompt, all in one batch; temperature 0 is greedy, 1 samples from the model as it is."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = model.generate(**inputs, **sampling, max_new_tokens=tasks.LENGTH + 2)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
