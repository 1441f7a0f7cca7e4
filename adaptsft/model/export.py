"""Write a sharded model as a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` loads."""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from adaptsft.distributed.ranks import rank, sync_errors
from adaptsft.errors import CheckpointError
from adaptsft.model.build import embedding_of, head_of
from adaptsft.model.pretrained import Pretrained

SHARD_BYTES = 5 * 1024**3


def export(model: PreTrainedModel, pretrained: Pretrained, folder: Path, dtype_name: str) -> None:
    """Gather one tensor at a time on all ranks; rank 0 writes files of at most 5 GiB. The folder appears complete or not at all."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype_name]
    temporary = folder.with_name(folder.name + ".tmp")
    tied = head_of(model).weight is embedding_of(model).weight
    shard: dict[str, torch.Tensor] = {}
    where: dict[str, int] = {}
    size = total = number = 0
    error: CheckpointError | None = None

    def flush() -> None:
        nonlocal shard, size, number, error
        if rank() == 0 and error is None:
            try:
                if number == 0:
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir(parents=True)
                save_file(
                    shard, temporary / f"part-{number}.safetensors", metadata={"format": "pt"}
                )
            except (OSError, SafetensorError) as caught:
                error = CheckpointError(
                    f"{folder}: could not be written: {caught}. The checkpoints are intact"
                )
        shard, size, number = {}, 0, number + 1

    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        wanted = dtype if full.is_floating_point() else full.dtype
        full_bytes = full.numel() * wanted.itemsize
        if shard and size + full_bytes > SHARD_BYTES:
            flush()
        where[name] = number
        if rank() == 0:
            shard[name] = full.to("cpu", wanted, copy=True).contiguous()
        else:
            shard[name] = torch.empty(0)
        size, total = size + full_bytes, total + full_bytes
    flush()
    if rank() == 0 and error is None:
        try:
            _finish(temporary, folder, where, number, total, pretrained, dtype)
        except OSError as caught:
            error = CheckpointError(
                f"{folder}: could not be written: {caught}. The checkpoints are intact"
            )
    sync_errors(error)


def _finish(
    temporary: Path,
    folder: Path,
    where: dict[str, int],
    files: int,
    total: int,
    pretrained: Pretrained,
    dtype: torch.dtype,
) -> None:
    names = [
        f"model-{i + 1:05d}-of-{files:05d}.safetensors" if files > 1 else "model.safetensors"
        for i in range(files)
    ]
    for i, name in enumerate(names):
        (temporary / f"part-{i}.safetensors").rename(temporary / name)
    if files > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {key: names[i] for key, i in where.items()},
        }
        (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config = copy.deepcopy(pretrained.config)
    config.dtype = dtype
    config.use_cache = True
    config._attn_implementation = None
    config.save_pretrained(temporary)
    pretrained.tokenizer.save_pretrained(temporary)
    if pretrained.generation is not None:
        pretrained.generation.save_pretrained(temporary)
    if getattr(pretrained.config, "auto_map", None):  # a model that comes with its code
        for path in pretrained.folder.glob("*.py"):
            shutil.copy(path, temporary)
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
