"""What `python -m tests.golden` starts with torchrun: its runs of this many ranks, in turn."""

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

from adaptsft.config.resolve import load_config
from adaptsft.model.tiny import make_tiny_model
from adaptsft.train import train
from tests.golden.__main__ import RUNS, arguments


def main(folder: Path) -> None:
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks == 1:  # the ranks of the second start find it
        make_tiny_model(folder / "model", "llama", tied=False)
        (folder / "machine.json").write_text(json.dumps(machine()))
    for name in (name for name, (wanted, _) in RUNS.items() if wanted == ranks):
        train(load_config(arguments(name, folder)))
    if ranks == 1:
        shutil.rmtree(folder / "resume" / "checkpoints" / "step_00000006")
        train(load_config(arguments("resume", folder)))


def machine() -> dict[str, str]:
    """What bits depend on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    return {
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cpu": cpu,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
