"""Fill a sharded model from safetensors: every rank reads only its own slice of every tensor."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from adaptsft.distributed.ranks import print0, raise_on_all_ranks, rank, world_size
from adaptsft.errors import ConfigError, reason_of
from adaptsft.model.conversion import Conversion, Window
from adaptsft.model.language import multimodal_class
from adaptsft.model.names import Names, names_of

ROWS = 8192  # of a matrix that are read at a time


@dataclass(frozen=True)
class Stored:
    """Where the tensors of a model are: in files, under the files' names."""

    files: dict[str, Path]  # name in the files -> the file
    names: Names


def fitted(build: Callable[[], PreTrainedModel], config: Any, folder: Path) -> tuple[Any, Stored]:
    """The model that `build` makes of a configuration, on meta, and its tensors in the folder's
    safetensors. All ranks call it together. Raises ConfigError.

    A head that is stored beside the embedding it is tied to, with other values, is a head of its
    own, as for transformers: `config` is then changed to untie the two.
    """
    files = raise_on_all_ranks(lambda: weight_files(folder))
    for _ in range(2):
        model = raise_on_all_ranks(build)
        names = raise_on_all_ranks(partial(names_of, model, config, folder, files))
        stored = Stored(files, names)
        if names.twins is None or _equal(stored, *names.twins):
            _say_language_part(model, config, names)
            return model, stored
        print0(
            f"{folder}: {names.twins[1]} differs from the embeddings that config.json ties it to "
            "(tie_word_embeddings=true): both are trained, and the export says false"
        )
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
    raise AssertionError("still tied")


def _say_language_part(model: PreTrainedModel, config: Any, names: Names) -> None:
    if whole := multimodal_class(config):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print0(
            f"trains the language part of {whole.__name__} ({parameters / 1e6:,.2f} M parameters) "
            f"on text; its {len(names.copied)} other tensors are copied unchanged"
        )


def _equal(stored: Stored, *pair: str) -> bool:
    """Whether two stored matrices are the same; every rank compares its share of their rows."""

    def mine() -> bool:
        with ExitStack() as opened:
            one, other = (
                opened.enter_context(_opened(stored.files[name])).get_slice(name) for name in pair
            )
            if one.get_shape() != other.get_shape():
                return False
            starts = range(0, one.get_shape()[0], ROWS)[rank() :: world_size()]
            pieces = (slice(start, start + ROWS) for start in starts)
            return all(torch.equal(one[rows].float(), other[rows].float()) for rows in pieces)

    equal = [False] * world_size()
    dist.all_gather_object(equal, raise_on_all_ranks(mine))
    return all(equal)


@torch.no_grad()
def load_weights(model: nn.Module, stored: Stored, new_tokens: list[int]) -> None:
    """Copy the stored tensors into the model's parameters and persistent buffers, cast to their
    dtype.

    `new_tokens` are ids that the files do not know: their vectors in the embedding and in the head
    start at the mean of the others. Raises ConfigError where a tensor has another shape, and where
    a file is damaged, also one that only the export will read.
    """
    names = stored.names.stored
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    whole: Any = model
    widened = {id(whole.get_input_embeddings().weight), id(whole.get_output_embeddings().weight)}
    copied = stored.names.copied
    for file in sorted({stored.files[old] for old in [*names.values(), *copied]}):
        with _opened(file) as opened:
            for old in copied:
                if stored.files[old] == file:
                    opened.get_slice(old)
            for name, old in names.items():
                if stored.files[old] == file:
                    added = new_tokens if id(tensors[name]) in widened else []
                    _copy(tensors[name], opened.get_slice(old), old, added)
    for conversion in stored.names.computed:
        _compute(tensors, stored, conversion)


def _compute(tensors: dict[str, Tensor], stored: Stored, conversion: Conversion) -> None:
    """Fill this rank's shards of the tensors of the model that a conversion gives. Of a stack of
    tensors of the files only those are read, and only so much of them, that are in the shards."""
    shards = {name: _shard(tensors[name]) for name in conversion.targets.values()}
    if all(local.numel() == 0 for local, _ in shards.values()):
        return
    name, (local, window) = next(iter(shards.items()))
    narrowed = conversion.narrowed(tensors[name].shape, window)
    of, within = (slice(None), ()) if narrowed is None else (narrowed[0], narrowed[1:])
    wanted = {
        pattern: [source.stored for source in sources.values()][of]
        for pattern, sources in conversion.sources.items()
    }
    with ExitStack() as stack:
        needed = {stored.files[old] for names in wanted.values() for old in names}
        files = {file: stack.enter_context(_opened(file)) for file in needed}
        read = {
            pattern: [_read(files[stored.files[old]], old, conversion, within) for old in names]
            for pattern, names in wanted.items()
        }
    try:
        computed = conversion.convert(read)
    except Exception as error:  # whatever an operation raises, such as of shapes that do not fit
        raise ConfigError(f"{name} cannot be computed: {reason_of(error)}") from None
    for name, (local, window) in shards.items():
        found = computed[name] if narrowed is not None else computed[name][window]
        if found.shape != local.shape:
            raise ConfigError(_misfit(name, computed[name].shape, tensors[name].shape))
        local.copy_(found)


def _read(opened: Any, name: str, conversion: Conversion, window: Window) -> Tensor:
    stored, expected = opened.get_slice(name), conversion.shapes[name]
    shape = torch.Size(stored.get_shape())
    if shape != expected and (window or shape != conversion.transposed(expected)):
        raise ConfigError(_misfit(name, shape, expected))
    conversion.shapes[name] = shape  # an export writes it so
    return stored[window or ...]


def read_tensor(file: Path, name: str) -> Tensor:
    """A whole tensor, in its stored dtype. Raises ConfigError for a damaged file."""
    with _opened(file) as tensors:
        return tensors.get_tensor(name)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ConfigError(f"{file}: damaged or not a safetensors file: {error}") from None


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
        with _opened(file) as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def _copy(target: Tensor, stored: Any, name: str, new_tokens: list[int]) -> None:
    """Fill this rank's shard of `target` from a slice of a file."""
    shape, file_shape = tuple(target.shape), tuple(stored.get_shape())
    grown = bool(new_tokens) and file_shape[1:] == shape[1:] and file_shape[0] <= shape[0]
    if shape != file_shape and not grown:
        raise ConfigError(_misfit(name, file_shape, shape))
    local, window = _shard(target)
    if local.numel() == 0:
        return
    if not shape:
        local.copy_(stored[...] if not file_shape else stored[:].squeeze())
        return
    first, end = window[0].start, window[0].stop
    last = min(end, file_shape[0])
    if last > first:
        local[: last - first].copy_(stored[slice(first, last), *window[1:]])
    if new_tokens:
        known = file_shape[0]
        new = [i - first for i in range(first, end) if i in new_tokens or i >= known]
        if new:
            local[new] = _mean_vector(stored, min(min(new_tokens), known)).to(local)


def _shard(target: Tensor) -> tuple[Tensor, Window]:
    """This rank's part of a tensor, and where in it that is."""
    local, offset = target, (0,) * target.dim()
    if isinstance(target, DTensor):
        local = target.to_local()
        _, offset = compute_local_shape_and_global_offset(
            target.shape, target.device_mesh, target.placements
        )
    sizes = zip(offset, local.shape, strict=True)
    return local, tuple(slice(begin, begin + size) for begin, size in sizes)


def _misfit(name: str, stored: Iterable[int], expected: Iterable[int]) -> str:
    return (
        f"{name}: the file has shape {list(stored)}, the model {list(expected)}: config.json and "
        "the weights do not belong together"
    )


def _mean_vector(stored: Any, count: int) -> Tensor:
    """Mean of the first `count` vectors of a stored matrix, read a piece at a time."""
    total = torch.zeros(stored.get_shape()[1], dtype=torch.float64)
    for start in range(0, count, ROWS):
        total += stored[start : min(start + ROWS, count)].double().sum(0)
    return total / count
