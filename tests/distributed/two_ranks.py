"""Started by torchrun on two gloo ranks: trains every configuration of a list, and loads a checkpoint that one rank saved.

torchrun --standalone --nproc-per-node 2 -m tests.distributed.two_ranks FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adaptsft.config.load import read_config
from adaptsft.distributed.ranks import rank
from adaptsft.train import train
from tests.runs import loaded_state


class Reductions(TorchDispatchMode):
    """Counts the collectives that reduce gradients."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def main(folder: Path) -> None:
    reductions = {}
    for file in sorted(folder.glob("*.yaml")):
        with Reductions() as counter:
            train(read_config(file))
        reductions[file.stem] = counter.count
    job = json.loads((folder / "load.json").read_text())
    state = loaded_state(read_config(folder / f"{job['config']}.yaml"), Path(job["checkpoint"]))
    if rank() == 0:
        torch.save(state, folder / "loaded.pt")
        (folder / "reductions.json").write_text(json.dumps(reductions))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
