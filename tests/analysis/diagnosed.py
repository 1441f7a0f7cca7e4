"""What the tests of a diagnosis share: the configuration of the diagnosed run, its data and its
files."""

import json
import os
import socket
import sys
from pathlib import Path

import torch

from adaptsft.config.schema import Config
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.diagnose import Options, main
from adaptsft.model.pretrained import load_pretrained
from tests.runs import PROCESSES, small_config

CPU = torch.device("cpu")
ALL = Options(sample=None, per_token=True)


def config_of(folder: Path, model: Path | None = None, **overrides) -> Config:
    sources = [
        {"path": str(folder / "sums.jsonl")},
        {"path": str(folder / "b.jsonl"), "weight": 0.5},
    ]
    settings = {"data__path": '""', "data__sources": sources} | overrides
    return small_config(folder, model or folder / "known" / "final", "run", **settings)


def stats_of(out: Path) -> dict:
    return json.loads((out / "base_stats.json").read_text())


def data_of(config: Config) -> tuple[TokenizedData, Path]:
    pretrained = load_pretrained(config.model)
    return open_data(config.data, pretrained.tokenizer, config.seed, lambda line: None)[
        0
    ], pretrained.folder


def _rank(number: int, port: int, arguments: list[str], log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(main(arguments))


def diagnose_on_two_ranks(arguments: list[str], folder: Path) -> str:
    """The command on two ranks, started without the imports of torchrun; what both printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [folder / f"rank{number}.log" for number in range(2)]
    ranks = [
        PROCESSES.Process(target=_rank, args=(number, port, arguments, log))
        for number, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.start()
    for rank, log in zip(ranks, logs, strict=True):
        rank.join(600)  # seconds; the last resort against a hang
        assert rank.exitcode == 0, log.read_text()[-4000:]
    return "".join(log.read_text() for log in logs)
