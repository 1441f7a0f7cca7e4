"""Fill a sharded model from safetensors: every rank reads only its own slice of every tensor."""

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from adaptsft.errors import ConfigError


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path, new_rows: list[int]) -> None:
    """Copy the tensors of the folder's safetensors into the model's parameters and persistent buffers, cast to their dtype.

    `new_rows` are the ids of tokens that the files do not know: their rows of the embedding and of the head start at the mean of the
    others. Raises ConfigError where a tensor is missing, has another shape, or where the files hold tensors that the model lacks.
    """
    files = weight_files(folder)
    targets = dict(model.named_parameters()) | {
        name: b for name, b in model.named_buffers() if name in model.state_dict()
    }
    missing, unread = sorted(targets.keys() - files.keys()), sorted(files.keys() - targets.keys())
    tied = (
        "lm_head.weight" in unread and "lm_head.weight" in model.state_dict()
    )  # some files repeat a tied head
    unread = [name for name in unread if not (tied and name == "lm_head.weight")]
    if missing or unread:
        hint = difflib.get_close_matches(missing[0], unread, n=1) if missing else []
        raise ConfigError(
            f"{folder}: the files do not fit {type(model).__name__}: {len(missing)} tensors missing (such as {missing[:1]}), "
            f"{len(unread)} not used (such as {hint or unread[:1]}). Load and save the model once with transformers to bring its names "
            "up to date; models whose files transformers converts while loading (fused experts) are not supported"
        )
    whole: Any = model
    widened = {id(whole.get_input_embeddings().weight), id(whole.get_output_embeddings().weight)}
    for file in sorted(set(files.values())):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if name in targets:
                        _copy(
                            targets[name],
                            tensors.get_slice(name),
                            name,
                            new_rows if id(targets[name]) in widened else [],
                        )
        except SafetensorError as error:
            raise ConfigError(f"{file}: damaged or not a safetensors file: {error}") from None


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            found = {
                name: folder / file
                for name, file in json.loads(index.read_text())["weight_map"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{index}: damaged: it should map tensor names to files under weight_map"
            ) from None
        absent = sorted({file for file in found.values() if not file.is_file()})
        if absent:
            raise ConfigError(
                f"{index}: names {len(absent)} files that are not there, such as {absent[0].name}"
            )
        return found
    found = {}
    single = folder / "model.safetensors"
    for file in [single] if single.is_file() else sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), file)
        except SafetensorError as error:
            raise ConfigError(f"{file}: damaged or not a safetensors file: {error}") from None
    return found


def _copy(target: Tensor, stored, name: str, new_rows: list[int]) -> None:
    shape, file_shape = tuple(target.shape), tuple(stored.get_shape())
    grown = bool(new_rows) and file_shape[1:] == shape[1:] and file_shape[0] <= shape[0]
    if shape != file_shape and not grown:
        raise ConfigError(
            f"{name}: the file has shape {list(file_shape)}, the model {list(shape)}: config.json and the weights do not belong together"
        )
    local, offset = target, (0,) * len(shape)
    if isinstance(target, DTensor):
        local = target.to_local()
        _, offset = compute_local_shape_and_global_offset(
            target.shape, target.device_mesh, target.placements
        )
    if local.numel() == 0:
        return
    if not shape:
        local.copy_(stored[...] if not file_shape else stored[:].squeeze())
        return
    last = min(offset[0] + local.shape[0], file_shape[0])
    if last > offset[0]:
        window = (
            slice(offset[0], last),
            *(slice(o, o + n) for o, n in zip(offset[1:], local.shape[1:], strict=True)),
        )
        local[: last - offset[0]].copy_(stored[window])
    mine = (
        [
            row - offset[0]
            for row in range(offset[0], offset[0] + local.shape[0])
            if row in new_rows or row >= file_shape[0]
        ]
        if new_rows
        else []
    )
    if mine:
        local[mine] = _mean_row(stored, min(min(new_rows), file_shape[0])).to(local)


def _mean_row(stored, rows: int) -> Tensor:
    """Mean of the first rows of a stored matrix, read a piece at a time."""
    total = torch.zeros(stored.get_shape()[1], dtype=torch.float64)
    for start in range(0, rows, 8192):
        total += stored[start : min(start + 8192, rows)].double().sum(0)
    return total / rows
