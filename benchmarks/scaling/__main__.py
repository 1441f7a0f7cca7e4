"""Full fine-tuning past one node, on paper: memory, communication and time of a step, plain FSDP2
beside HSDP, for the shapes of config.json in this folder.

    python -m benchmarks.scaling           prints docs/scaling.md's tables
    python -m benchmarks.scaling --write   writes them, and benchmarks/results/scaling.json

Nothing is measured: the figures are those of adaptsft.plan. It takes minutes of one core, in which
activations are traced; tests/benchmarks/test_scaling.py computes all else again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from adaptsft.analysis.advice import Paced, paced
from adaptsft.analysis.fit import GIB, USABLE, Choice, choose, with_choice
from adaptsft.analysis.scaling import Cluster
from adaptsft.analysis.trace import Traced, trace
from adaptsft.config.schema import Config, packs_at_once
from adaptsft.training.gpus import GB, GPUS

FOLDER = Path(__file__).resolve().parent
REPO = FOLDER.parent.parent
DOCUMENT, RESULT = REPO / "docs" / "scaling.md", REPO / "benchmarks" / "results" / "scaling.json"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
SHAPES = {  # file: what it is the shape of
    "8b": "8B dense: Llama 3.1",
    "32b": "32B dense: Qwen3",
    "70b": "70B dense: Llama 3.1",
    "30b_a3b": "30B, 3B active: Qwen3-MoE",
    "120b_a5b": "120B, 5B active: GPT-OSS",
}
GPU, COUNTS = "H100", (8, 32, 128, 512)
PACKS, LENGTH = 512, 8192  # of a step: 4.2 M tokens
COLUMNS = "| GPUs | replicas | micro-batches | memory, GiB | GB in a node | GB between nodes "
COLUMNS += "| compute, s | waits, s | step, s | tokens/s per GPU | MFU | limited by |"


def settings() -> Config:
    config = Config()
    config.data.max_length = LENGTH
    config.train.activation_checkpointing = "full"
    return config


def traced(name: str, activations: list[int] | None = None) -> Traced:
    """One pack of a shape; `activations`: of it, where they are known."""
    shape = json.loads((FOLDER / f"{name}.json").read_text())
    model_config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    config = with_choice(settings(), Choice(1, "always", []))
    known = (activations[0], activations[1]) if activations else None
    return trace(config, model_config, True, COUNTS[0], 1, known)


def rows(found: Traced) -> Iterator[dict[str, Any]]:
    """Plain FSDP2, and HSDP with a copy of the model on as few nodes as it fits."""
    for gpus in COUNTS:
        cluster = Cluster(gpus, GPUS[GPU])
        yield row(found, cluster, 1)
        replicas = gpus // cluster.per_node
        while replicas > 1 and "does_not_fit" in (copies := row(found, cluster, replicas)):
            replicas //= 2
        if replicas > 1:
            yield copies


def row(found: Traced, cluster: Cluster, replicas: int) -> dict[str, Any]:
    """As training would choose, and with gradients reduced in every micro-batch if only so it
    fits."""
    step = None
    for reduces in (False, True):
        config = settings()
        config.train.replicas, config.train.reduce_every_micro_batch = replicas, reduces
        memory = GPUS[GPU].memory * GIB
        choice = choose(config, None, cluster.gpus, memory, PACKS, found)
        train = with_choice(config, choice).train
        step = paced(found, train, cluster, PACKS, LENGTH)
        if step.memory.peak <= USABLE * memory:
            return {
                "gpus": cluster.gpus,
                "replicas": replicas,
                **fitting(found, step, train, cluster),
            }
    assert step is not None
    return {
        "gpus": cluster.gpus,
        "replicas": replicas,
        "memory": round(step.memory.peak / GIB, 1),
        "does_not_fit": max(step.memory.stages, key=lambda name: step.memory.stages[name]),
    }


def fitting(found: Traced, paced: Paced, train: Any, cluster: Cluster) -> dict[str, Any]:
    size, step = packs_at_once(train), paced.step
    sent, rate = step.communication, paced.tokens / cluster.gpus
    return {
        "micro_batches": -(-PACKS // (cluster.gpus * size)),
        "packs": size,
        "reshard": train.reshard,
        "reduces": paced.memory.reduces and paced.memory.accumulates,
        "memory": round(paced.memory.peak / GIB, 1),
        "link": round(sent.link / GB, 1),
        "network": round(sent.network / GB, 1),
        "compute": round(step.needed + step.recomputed + step.copies + step.optimizer, 2),
        "waits": round(step.exposed, 2),
        "seconds": round(step.seconds, 2),
        "tokens": round(rate),
        "mfu": round(found.operations.needed * rate / cluster.gpu.flops, 3),
        "limit": step.limit.split(":")[0],
    }


def result_of(name: str, found: Traced) -> dict[str, Any]:
    return {
        "parameters": found.parameters,
        "active": round(found.active),
        "activations": [found.memory.kept, found.memory.highest],
        "rows": list(rows(found)),
    }


def table(name: str, result: dict[str, Any]) -> str:
    billions = f"{result['parameters'] / 1e9:.2f} B parameters"
    if result["active"] != result["parameters"]:
        billions += f", {result['active'] / 1e9:.2f} B active"
    lines = [f"### {SHAPES[name]}", "", f"{billions}.", "", COLUMNS, f"|{' ---: |' * 11} --- |"]
    for found in result["rows"]:
        if "does_not_fit" in found:
            cells = [found["gpus"], found["replicas"], "", f"{found['memory']}: does not fit"]
            cells += [""] * 8
        else:
            count = f"{found['micro_batches']} x {found['packs']}"
            marks = [f"reshard {found['reshard']}"] if found["reshard"] == "never" else []
            marks += ["reduced each"] * found["reduces"]
            cells = [found["gpus"], found["replicas"], ", ".join([count, *marks]), found["memory"]]
            cells += [found[key] for key in ("link", "network", "compute", "waits", "seconds")]
            cells += [f"{found['tokens']:,}", f"{found['mfu']:.0%}", found["limit"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def tables(models: dict[str, Any]) -> str:
    return "\n\n".join(table(name, models[name]) for name in models)


def document(text: str, body: str) -> str:
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{body}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="docs/scaling.md, and the result")
    write = parser.parse_args(arguments).write
    models = {name: result_of(name, traced(name)) for name in SHAPES}
    if not write:
        print(tables(models))
        return 0
    result = {
        "command": "python -m benchmarks.scaling --write",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "gpu": {"name": GPU, **GPUS[GPU]._asdict()},
        "assumed": Cluster(COUNTS[0], GPUS[GPU]).assumed,
        "step": {"packs": PACKS, "tokens of each": LENGTH},
        "train": {"activation_checkpointing": "full"},
        "models": models,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    DOCUMENT.write_text(document(DOCUMENT.read_text(), tables(models)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
