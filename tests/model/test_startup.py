"""What each of 64 ranks reads of a model's folder when a run starts. The ranks are this process by
turns: the others are not there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing._internal.distributed.fake_pg import FakeStore

from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.distributed.ranks import device_mesh
from adaptsft.model import load
from adaptsft.model.build import build_model
from adaptsft.model.pretrained import load_pretrained
from adaptsft.statistics.base_model import model_fingerprint

RANKS, CPU = 64, torch.device("cpu")


class Counted:
    """An opened file, and slices of its tensors, that count the bytes they are asked for."""

    bytes = 0

    def __init__(self, opened: Any):
        self.opened = opened

    def __enter__(self) -> "Counted":
        return Counted(self.opened.__enter__())

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.opened, name)

    def get_slice(self, name: str) -> "Counted":
        return Counted(self.opened.get_slice(name))

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._count(self.opened.get_tensor(name))

    def __getitem__(self, window: Any) -> torch.Tensor:
        return self._count(self.opened[window])

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        Counted.bytes += tensor.nbytes
        return tensor


def read_by(rank: int, config: ModelConfig, pretrained: Any) -> tuple[int, int]:
    """(bytes that a rank asks of the files, bytes of its shards, without their padding)."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    try:
        Counted.bytes = 0
        model = build_model(config, TrainConfig(), pretrained, device_mesh(CPU, 1), CPU)
        return Counted.bytes, sum(p.to_local().nbytes for p in model.parameters())
    finally:
        dist.destroy_process_group()


def test_64_ranks_read_the_folder_once_between_them(tiny_model, tmp_path, monkeypatch):
    """Also where the head is stored beside the embedding that it is tied to, which is compared:
    every rank compares some rows."""
    source, folder = tiny_model("llama", tied=True, layers=1), tmp_path / "model"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if "embed_tokens" in name)
    tensors["lm_head.weight"] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(
        load, "safe_open", lambda *args, **kwargs: Counted(safe_open(*args, **kwargs))
    )
    monkeypatch.setattr(load, "ROWS", 2)
    config = ModelConfig(path=str(folder))
    pretrained = load_pretrained(config)
    asked, held = zip(*(read_by(rank, config, pretrained) for rank in range(RANKS)), strict=True)
    whole = sum(tensor.nbytes for tensor in tensors.values()) - tensors[name].nbytes
    compared = 2 * tensors[name].nbytes
    assert sum(held) == whole
    assert sum(asked) == whole + compared
    assert max(asked) <= 1.5 * sum(asked) / RANKS  # rank 0 has the first row of every norm


def test_a_fingerprint_reads_little_of_a_folder_of_any_size(tmp_path):
    """Every rank takes one where parameters are frozen."""
    if not Path("/proc/self/io").is_file():
        pytest.skip("this system does not count what a process reads")
    (tmp_path / "config.json").write_text("{}")
    for number in range(4):
        with (tmp_path / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(10 << 30)  # sparse

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    model_fingerprint(tmp_path)
    assert read() - before < 4 * 2 << 20
