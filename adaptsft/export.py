"""python -m adaptsft.export RUN OUT [--step N] [--dtype bf16|fp32] [--merge]: a checkpoint of a run
as a Hugging Face folder.

A finished run has its export in RUN/final already; this is for another step, another dtype, or a
run that was stopped.
"""

import argparse
import sys
from pathlib import Path


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.export",
        description="Write a checkpoint of a run as a Hugging Face folder.",
    )
    parser.add_argument("run", type=Path, help="run folder (run_dir of the training)")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp32"),
        default="bf16",
        help="dtype of the weights (default: bf16)",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of a run with model.lora: the whole model with its adapters added, not these alone",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse(sys.argv[1:])  # ends here for --help and for a misspelt option: before torch is imported

from adaptsft.command_line import print_error
from adaptsft.config.load import read_config
from adaptsft.data.stop import turn_end
from adaptsft.data.template import Template
from adaptsft.distributed import checkpoint
from adaptsft.distributed.ranks import device_mesh, print0, process_group
from adaptsft.errors import CheckpointError, ConfigError, UserError
from adaptsft.model.build import build_model
from adaptsft.model.export import export
from adaptsft.model.pretrained import load_pretrained
from adaptsft.training.model_card import model_card


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        with process_group("cpu") as device:
            found = find_checkpoint(options.run, options.step)
            if options.out.exists():
                raise CheckpointError(f"{options.out} exists already: name a new folder")
            checkpoint.verify(found)
            config = read_config(options.run / "config.yaml")
            pretrained = load_pretrained(config.model)
            if options.merge and not config.model.lora.rank:
                raise ConfigError(
                    f"--merge: {options.run} has no adapters (model.lora.rank=0), its export is "
                    "the whole model: leave it out"
                )
            config.train.compile = False
            # the weights as they are stored: adapters may have been trained beside rounded ones
            config.model.compute_dtype = "fp32"
            if config.model.attention != "eager":
                config.model.attention = "sdpa"
            # what the run's GPUs did; no loss is computed here
            config.train.loss_implementation, config.train.loss_logits = "auto", "fp32"
            config.model.fp8 = "none"
            mesh = device_mesh(device, 1)
            model = build_model(config.model, config.train, pretrained, mesh, device)
            checkpoint.load_model(found, model)
            end = turn_end(Template(pretrained.tokenizer, config.data))
            merge, steps = options.merge, int(found.name.removeprefix("step_"))
            card = model_card(config, steps, {}, merged=merge)
            kind = export(model, pretrained, options.out, options.dtype, end, card, merge)
            print0(f"{options.out}: {found.name} as {kind} in {options.dtype}")
    except UserError as error:
        return print_error("adaptsft.export", error)
    return 0


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The newest complete checkpoint of a run, or that of `step`. Raises CheckpointError."""
    complete = checkpoint.complete_checkpoints(run / "checkpoints")
    if not complete:
        raise CheckpointError(f"{run}: no complete checkpoint in {run / 'checkpoints'}")
    if step is None:
        return complete[-1]
    steps = {int(path.name.removeprefix("step_")): path for path in complete}
    if step not in steps:
        raise CheckpointError(
            f"{run}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
        )
    return steps[step]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
