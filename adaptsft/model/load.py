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

HEAD = "lm_head.weight"


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path, new_tokens: list[int]) -> None:
    """Copy the tensors of the folder's safetensors into the model's parameters and persistent
    buffers, cast to their dtype.

    `new_tokens` are ids that the files do not know: their vectors in the embedding and in the head
    start at the mean of the others. Raises ConfigError where a tensor is missing, has another
    shape, or where the files hold tensors that the model lacks.
    """
    files, saved = weight_files(folder), model.state_dict()
    tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    _check_names(model, folder, set(files), set(tensors))
    whole: Any = model
    widened = {id(whole.get_input_embeddings().weight), id(whole.get_output_embeddings().weight)}
    for file in sorted(set(files.values())):
        try:
            with safe_open(file, framework="pt") as stored:
                for name, tensor in tensors.items():
                    if files[name] != file:
                        continue
                    added = new_tokens if id(tensor) in widened else []
                    _copy(tensor, stored.get_slice(name), name, added)
        except SafetensorError as error:
            raise ConfigError(f"{file}: damaged or not a safetensors file: {error}") from None


def _check_names(model: nn.Module, folder: Path, stored: set[str], wanted: set[str]) -> None:
    missing, unread = sorted(wanted - stored), sorted(stored - wanted)
    if HEAD in unread and HEAD in model.state_dict():  # some files repeat a tied head
        unread.remove(HEAD)
    if missing or unread:
        near = difflib.get_close_matches(missing[0], unread, n=1) if missing else []
        raise ConfigError(
            f"{folder}: the files do not fit {type(model).__name__}: {len(missing)} tensors "
            f"missing (such as {missing[:1]}), {len(unread)} not used (such as "
            f"{near or unread[:1]}). Load and save the model once with transformers to bring its "
            "names up to date; models whose files transformers converts while loading (fused "
            "experts) are not supported"
        )


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            found = {name: folder / file for name, file in weight_map.items()}
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


def _copy(target: Tensor, stored: Any, name: str, new_tokens: list[int]) -> None:
    """Fill this rank's shard of `target` from a slice of a file."""
    shape, file_shape = tuple(target.shape), tuple(stored.get_shape())
    grown = bool(new_tokens) and file_shape[1:] == shape[1:] and file_shape[0] <= shape[0]
    if shape != file_shape and not grown:
        raise ConfigError(
            f"{name}: the file has shape {list(file_shape)}, the model {list(shape)}: config.json "
            "and the weights do not belong together"
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
    first, end = offset[0], offset[0] + local.shape[0]
    last = min(end, file_shape[0])
    if last > first:
        sizes = zip(offset[1:], local.shape[1:], strict=True)
        window = (slice(first, last), *(slice(begin, begin + size) for begin, size in sizes))
        local[: last - first].copy_(stored[window])
    if new_tokens:
        known = file_shape[0]
        new = [i - first for i in range(first, end) if i in new_tokens or i >= known]
        if new:
            local[new] = _mean_vector(stored, min(min(new_tokens), known)).to(local)


def _mean_vector(stored: Any, count: int) -> Tensor:
    """Mean of the first `count` vectors of a stored matrix, read a piece at a time."""
    total = torch.zeros(stored.get_shape()[1], dtype=torch.float64)
    for start in range(0, count, 8192):
        total += stored[start : min(start + 8192, count)].double().sum(0)
    return total / count
