"""What the load-balancing loss of a tiny mixture of experts costs on one CPU core.

    python -m benchmarks.router_loss --out benchmarks/results/router_loss.json

CPU seconds of forward and backward of a step, best of six, without and with the loss: in four
micro-batches, whose choices are counted by a forward of their own, and in one.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.data.collator import Batch
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.model.build import build_model
from adaptsft.model.check import batch_of
from adaptsft.model.fsdp import ShardedModel
from adaptsft.model.pretrained import load_pretrained
from adaptsft.model.tiny import make_tiny_model
from adaptsft.objectives.build import NLL
from adaptsft.training.environment import environment

DOCUMENTS, TOKENS = 4, 256


def seconds(model: ShardedModel, batches: list[Batch]) -> float:
    began = time.process_time()
    model.routers.start_step(model, batches, DOCUMENTS * TOKENS, 1, 1.0)
    for batch in batches:
        loss, _, _ = model.token_loss(batch, NLL, None, 1e-3)
        model.routers.add_loss(loss).backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    found = {}
    torch.set_num_threads(1)
    documents = [torch.randint(3, 200, (TOKENS,)) for _ in range(DOCUMENTS)]
    splits = {
        "four micro-batches": [batch_of([[document]], True) for document in documents],
        "one micro-batch": [batch_of([[document] for document in documents], True)],
    }
    with tempfile.TemporaryDirectory() as folder, process_group("cpu") as device:
        path = make_tiny_model(
            Path(folder) / "model", "qwen3_moe", hidden=256, layers=4, num_experts=16
        )
        config = ModelConfig(path=str(path))
        pretrained, mesh = load_pretrained(config), device_mesh(device, 1)
        models = [
            build_model(config, TrainConfig(router_aux_loss=weight), pretrained, mesh, device)
            for weight in (0.0, 0.01)
        ]
        for name, batches in splits.items():
            rounds = [[seconds(model, batches) for model in models] for _ in range(6)]
            off, on = (min(column) for column in zip(*rounds, strict=True))
            found[name] = {"without_s": round(off, 4), "with_s": round(on, 4)}
            print(f"{name}: {off:.2f} s without, {on:.2f} s with: {on / off - 1:+.0%}")
    if options.out:
        content = {"environment": environment(), "cpu_seconds_of_a_step": found}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
