"""python -m adaptsft.export RUN OUT [--step N] [--dtype bf16|fp32]: a checkpoint of a run as a Hugging Face folder.

A finished run has its export in RUN/final already; this is for another step, another dtype, or a run that was stopped.
"""

import argparse
import sys
from pathlib import Path

from adaptsft.config.load import read_config
from adaptsft.distributed import checkpoint
from adaptsft.distributed.ranks import device_mesh, print0, process_group
from adaptsft.errors import CheckpointError, UserError
from adaptsft.model.build import build_model
from adaptsft.model.export import export
from adaptsft.model.pretrained import load_pretrained


def main(arguments: list[str]) -> int:
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
    options = parser.parse_args(arguments)
    try:
        with process_group("cpu") as device:
            found = find_checkpoint(options.run, options.step)
            if options.out.exists():
                raise CheckpointError(f"{options.out} exists already: name a new folder")
            checkpoint.verify(found)
            config = read_config(options.run / "config.yaml")
            pretrained = load_pretrained(config.model)
            config.train.compile = False
            config.model.attention = "sdpa"
            # what the run's GPUs did; no loss is computed here
            config.train.loss_implementation, config.train.loss_logits = "auto", "fp32"
            model = build_model(
                config.model,
                config.train,
                pretrained,
                device_mesh(device, 1),
                device,
            )
            checkpoint.load_model(found, model)
            export(model, pretrained, options.out, options.dtype)
            print0(f"{options.out}: {found.name} as a Hugging Face model in {options.dtype}")
    except UserError as error:
        print(f"adaptsft.export: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def find_checkpoint(run: Path, step: int | None) -> Path:
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
