"""Where a base model stands on its training data, before any training: p of the target tokens, per
source, and what follows from it.

    python -m adaptsft.diagnose CONFIG.yaml key=value … [sample=2000] [out=FOLDER] [per_token=true]

The arguments are those of adaptsft.train, and three more (`HELP`). The model is built, sharded and
checked by the code that trains it.
"""

import dataclasses
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adaptsft.command_line import first_answer, print_error
from adaptsft.errors import CheckpointError, ConfigError, UserError

HELP = """\
usage: python -m adaptsft.diagnose [CONFIG.yaml] [key=value …]
   or: torchrun --standalone --nproc-per-node GPUS -m adaptsft.diagnose [CONFIG.yaml] [key=value …]

Runs the base model over (a sample of) the training data and reports, per source, how likely it
finds the target tokens, whether its probabilities can be trusted, where it stands between
model-weak and model-strong, and which objective that suggests.

Give it the arguments of your training run. Example:
  python -m adaptsft.diagnose configs/sft.yaml model.path=Qwen/Qwen2.5-1.5B data.path=train.jsonl \\
    run_dir=runs/first

Three keys of its own:
  sample     examples of each source, drawn by `seed`, or all (2000)
  out        folder for diagnosis.md, diagnosis.png and base_stats.json (run_dir/diagnosis)
  per_token  true: also write base_tokens.safetensors: log p, entropy and more of every target
             token; needs sample=all (false)

base_stats.json is for training: controller.base_stats=FILE starts a controller from it, and
quantile thresholds are read from it; objective.base_tokens=FILE is what objective.reference=base
reads. `python -m adaptsft.train --help` lists all other keys."""


@dataclasses.dataclass(frozen=True)
class Options:
    sample: int | None = 2000  # examples of each source; None: all
    out: str = ""
    per_token: bool = False

    @classmethod
    def parse(cls, arguments: list[str]) -> tuple["Options", list[str]]:
        """(the options among the arguments, the other arguments). Raises ConfigError."""
        names = tuple(f"{field.name}=" for field in dataclasses.fields(cls))
        own = [argument for argument in arguments if argument.startswith(names)]
        others = [argument for argument in arguments if argument not in own]
        given = dict(argument.split("=", 1) for argument in own)
        sample, per_token = given.get("sample") or "2000", given.get("per_token") or "false"
        if sample != "all" and not (sample.isdecimal() and int(sample) > 0):
            raise ConfigError(
                f"sample={sample}: must be a number of examples of each source, above 0, or all"
            )
        if per_token not in ("true", "false"):
            raise ConfigError(f"per_token={per_token}: must be true or false")
        if per_token == "true" and sample != "all":
            raise ConfigError(
                f"per_token=true needs every example, but sample={sample}: add sample=all"
            )
        count = None if sample == "all" else int(sample)
        return cls(count, given.get("out", ""), per_token == "true"), others


def answer(arguments: list[str]) -> int | None:
    """The help, or an error in the arguments, before torch is imported; see `first_answer`."""
    return first_answer(arguments, "adaptsft.diagnose", lambda: HELP, lambda a: Options.parse(a)[1])


if __name__ == "__main__" and (code := answer(sys.argv[1:])) is not None:
    sys.exit(code)

import torch
from safetensors.torch import save_file

from adaptsft.analysis.diagnosis import markdown
from adaptsft.analysis.diagnosis_plot import plot
from adaptsft.analysis.measure import describe, draw_sample, measure
from adaptsft.config import user_code
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, LoraConfig, is_packed
from adaptsft.data.loader import BatchLoader
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import (
    check_same_config,
    device_mesh,
    print0,
    process_group,
    raise_on_all_ranks,
    rank,
    rank0_first,
)
from adaptsft.distributed.watchdog import Watchdog
from adaptsft.files import replacing, write_atomically
from adaptsft.model.build import build_model, compute_dtype
from adaptsft.model.check import check_first_batch
from adaptsft.model.pretrained import check_fits_model, load_pretrained
from adaptsft.model.supported import check_verified, choose_packing
from adaptsft.objectives.reference import Reference
from adaptsft.statistics.base_model import SCHEMA, TOKENS_SCHEMA, identity
from adaptsft.training.environment import environment


def diagnose(options: Options, config: Config) -> str:
    """Measure, and write the results to the folder; returns the report. All ranks call it."""
    if config.data.stream:
        raise ConfigError(
            f"data.stream={config.data.stream}: only a whole set can be diagnosed; set "
            "data.stream=0 and name fewer files"
        )
    out = Path(options.out or Path(config.run_dir) / "diagnosis")
    # one forward of each example repays neither; there are no steps: data may be smaller than one
    train = dataclasses.replace(
        config.train,
        micro_batch_size=1 if (size := config.train.micro_batch_size) == "auto" else size,
        compile=False,
        activation_checkpointing="none",
        context_parallel=1,
        router_aux_loss=0.0,
        max_steps=config.train.max_steps or 1,
    )
    model_config = dataclasses.replace(config.model, lora=LoraConfig())  # the base alone
    config = dataclasses.replace(config, train=train, model=model_config)
    with process_group(config.train.device) as device, ExitStack() as stack:
        torch.use_deterministic_algorithms(config.train.deterministic)
        check_same_config((options, config, user_code.digest(config)))
        raise_on_all_ranks(lambda: _make_folder(out))
        mesh = device_mesh(device, config.train.replicas)
        pretrained = rank0_first(lambda: load_pretrained(config.model))
        if padded := choose_packing(config, pretrained.config):
            print0(padded)
        check_verified(config.model, pretrained.config, is_packed(config.data))
        opened = stack.enter_context(TrainingData(config, pretrained.tokenizer, None))
        data = opened.train
        check_fits_model(config, pretrained, data)
        packing = is_packed(config.data)
        model = build_model(config.model, config.train, pretrained, mesh, device, packing=packing)
        loader = BatchLoader(opened, config, pretrained.pad_id, model.needs_buckets, device)
        stack.enter_context(loader)
        check_first_batch(model, loader.first_batch(), packing)

        sample = data.take(draw_sample(data, options.sample, config.seed))
        watchdog = stack.enter_context(Watchdog(config.train.hang_timeout))
        batches = loader.in_order(sample)
        measured = measure(model, batches, sample, options.per_token, device, watchdog)
        model_identity, data_identity = identity(config.model.path, pretrained.folder, data)
        content = {
            "schema": SCHEMA,
            "model": model_identity
            | {
                "compute_dtype": str(compute_dtype(config.model, device)).removeprefix("torch."),
                "bf16_masters": config.model.param_dtype == "bf16",
            },
            "data": data_identity,
            "sample": options.sample or "all",
            "seed": config.seed,
            "sources": {
                name: describe(measured, data, sample, number)
                for number, name in enumerate(data.names)
            },
            "environment": environment(),
        }
        report = markdown(content, out)
        raise_on_all_ranks(
            lambda: _save(out, content, report, measured.reference) if rank() == 0 else None
        )
        return report


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={out}: this folder cannot be made: {error}") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"out={out}: this folder cannot be written to")


def _save(out: Path, content: dict[str, Any], report: str, reference: Reference | None) -> None:
    """Every file is complete, or as it was before; base_stats.json is the last to be replaced."""
    try:
        if reference is not None:
            metadata = {name: json.dumps(content[name]) for name in ("model", "data")}
            metadata["schema"] = str(TOKENS_SCHEMA)
            with replacing(out / "base_tokens.safetensors", sync=True) as partial:
                save_file(reference._asdict(), partial, metadata)
        with replacing(out / "diagnosis.png", sync=True) as partial:
            plot(partial, content["sources"])
        write_atomically(out / "diagnosis.md", report, sync=True)
        write_atomically(out / "base_stats.json", json.dumps(content), sync=True)
    except OSError as error:
        raise CheckpointError(f"out={out}: could not be written: {error}") from None


def main(arguments: list[str]) -> int:
    if (code := answer(arguments)) is not None:
        return code
    try:
        options, others = Options.parse(arguments)
        report = diagnose(options, load_config(others))
    except UserError as error:
        return print_error("adaptsft.diagnose", error)
    if rank() == 0:
        print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
