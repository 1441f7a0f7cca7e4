"""Write a sharded model as a Hugging Face folder, which `from_pretrained` loads; of a model with
adapters these alone, as PEFT's folder."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel

from adaptsft.data.stop import TurnEnd
from adaptsft.distributed.ranks import rank, sync_errors
from adaptsft.errors import CheckpointError, UserError
from adaptsft.model import lora
from adaptsft.model.language import multimodal_class
from adaptsft.model.load import Stored, read_tensor
from adaptsft.model.pretrained import Pretrained

FILE_BYTES = 5 * 1024**3


def export(
    model: PreTrainedModel,
    pretrained: Pretrained,
    folder: Path,
    dtype_name: str,
    end: TurnEnd,
    card: str = "",
    merge: bool = False,
) -> str:
    """Gather one tensor at a time on all ranks; rank 0 writes files of at most 5 GiB, under the
    names of the files that the model was read from. The folder appears complete or not at all.
    `end` is what ends a learned turn, `card` its README.md. Returns what the folder is. Raises
    CheckpointError on all ranks.

    Of a model with adapters these are written alone, unless `merge` adds them to its weights.
    """
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype_name]
    if lora.has_adapters(model) and not merge:
        return _export_adapter(model, pretrained, folder, dtype, card)
    writer, state, stored = _Writer(folder), model.state_dict(), cast(Any, model).stored
    buffers = {name for name, _ in model.named_buffers()}
    adapted = {f"{name}.base_layer.weight": layer for name, layer in lora.adapted_layers(model)}

    def whole(name: str) -> torch.Tensor:
        layer = adapted.get(name)
        return lora.full(state[name]) if layer is None else lora.merged_weight(layer)

    for name, written in stored.names.exported.items():
        tensor = whole(name)
        # what is not trained is not rounded: a bias of a router (DeepSeek-V3) may not bear it
        writer.add(written, tensor, tensor.dtype if name in buffers else dtype)
    for conversion in stored.names.computed:
        # the ranks that write nothing need only the sizes
        place = "cpu" if rank() == 0 else "meta"
        tensors = {name: whole(name).to(place, dtype) for name in conversion.targets.values()}
        for written, tensor in conversion.revert(tensors).items():
            writer.add(written, tensor, dtype)
    writer.copy(stored)
    if multimodal_class(pretrained.config) is None:  # not that of a checkpoint without its head
        pretrained.config.architectures = [type(model).__name__.removeprefix("FSDP")]
    writer.finish(partial(_write_surroundings, pretrained=pretrained, dtype=dtype, end=end), card)
    sync_errors(writer.error)
    return "a Hugging Face model"


def _export_adapter(
    model: PreTrainedModel, pretrained: Pretrained, folder: Path, dtype: torch.dtype, card: str
) -> str:
    writer = _Writer(folder, only_file=lora.WEIGHTS_FILE)
    for name, tensor in lora.adapter_tensors(model).items():
        writer.add(name, lora.full(tensor), dtype)

    def write_surroundings(temporary: Path) -> None:
        lora.write_adapter_config(temporary, model)
        pretrained.tokenizer.save_pretrained(temporary)

    writer.finish(write_surroundings, card)
    sync_errors(writer.error)
    return f"an adapter of {lora.base_name(model)} for PEFT"


class _Writer:
    """Collects tensors and writes a file whenever the next one would make it too large, or one file
    of this name.

    Ranks other than 0 write nothing. After an error rank 0 writes nothing more either, but still
    takes part in gathering; `error` is raised in the end.
    """

    def __init__(self, folder: Path, only_file: str = "") -> None:
        self.folder, self.temporary = folder, folder.with_name(folder.name + ".tmp")
        self.only_file = only_file
        self.pending: dict[str, torch.Tensor] = {}
        self.size = self.total = 0  # bytes of the pending tensors, and of all
        self.files: dict[str, int] = {}  # tensor name: number of its file
        self.count = 0  # files so far
        self.error: CheckpointError | None = None

    def add(self, name: str, full: torch.Tensor, dtype: torch.dtype) -> None:
        """`dtype` is that of the file, where the tensor is one of floating point."""
        dtype = dtype if full.is_floating_point() else full.dtype
        size = full.numel() * dtype.itemsize
        if self.pending and self.size + size > FILE_BYTES and not self.only_file:
            self._flush()
        self.files[name] = self.count
        if rank() == 0:
            self.pending[name] = full.to("cpu", dtype, copy=True).contiguous()
        else:
            self.pending[name] = torch.empty(0)
        self.size, self.total = self.size + size, self.total + size

    def copy(self, stored: Stored) -> None:
        """Repeat the tensors that the model does not hold, as they are in its files."""
        for name in stored.names.copied if rank() == 0 and self.error is None else ():
            try:
                tensor = read_tensor(stored.files[name], name)
            except (OSError, UserError) as error:
                self.error = self._failed(error)
                return
            self.add(name, tensor, tensor.dtype)

    def finish(self, write_surroundings: Callable[[Path], None], card: str) -> None:
        self._flush()
        if rank() == 0 and self.error is None:
            try:
                self._name_files()
                write_surroundings(self.temporary)
                if card:
                    (self.temporary / "README.md").write_text(card)
                self._commit()
            except OSError as error:
                self.error = self._failed(error)

    def _flush(self) -> None:
        if rank() == 0 and self.error is None:
            try:
                if self.count == 0:
                    shutil.rmtree(self.temporary, ignore_errors=True)
                    self.temporary.mkdir(parents=True)
                path = self.temporary / f"part-{self.count}.safetensors"
                save_file(self.pending, path, metadata={"format": "pt"})
            except (OSError, SafetensorError) as error:
                self.error = self._failed(error)
        self.pending, self.size, self.count = {}, 0, self.count + 1

    def _failed(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: could not be written: {error}. The checkpoints are intact"
        )

    def _name_files(self) -> None:
        """Hugging Face's names hold the number of files, which is known only now."""
        names = [self.only_file or "model.safetensors"]
        if self.count > 1:
            numbers = range(1, self.count + 1)
            names = [f"model-{i:05d}-of-{self.count:05d}.safetensors" for i in numbers]
            index = {
                "metadata": {"total_size": self.total},
                "weight_map": {key: names[number] for key, number in self.files.items()},
            }
            path = self.temporary / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2))
        for i, name in enumerate(names):
            (self.temporary / f"part-{i}.safetensors").rename(self.temporary / name)

    def _commit(self) -> None:
        for path in self.temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(self.folder, ignore_errors=True)
        self.temporary.rename(self.folder)


def _write_surroundings(
    folder: Path, pretrained: Pretrained, dtype: torch.dtype, end: TurnEnd
) -> None:
    """Config, tokenizer, generation settings, and the code of a model that comes with its own."""
    _write_config(folder, pretrained, dtype)
    pretrained.tokenizer.save_pretrained(folder)
    _write_generation(folder / "generation_config.json", pretrained, end)
    if getattr(pretrained.config, "auto_map", None):
        for path in pretrained.folder.glob("*.py"):
            shutil.copy(path, folder)
    for pattern in ("*processor*.json", "chat_template.json"):  # of images and sound
        for path in pretrained.folder.glob(pattern):
            shutil.copy(path, folder)


def _write_config(folder: Path, pretrained: Pretrained, dtype: torch.dtype) -> None:
    config = copy.deepcopy(pretrained.config)
    for part in (config, config.get_text_config()):
        part.dtype = dtype
    config.save_pretrained(folder)


def _write_generation(path: Path, pretrained: Pretrained, end: TurnEnd) -> None:
    """The model's own generation settings, in which generation stops where a learned turn ends."""
    config, tokenizer = pretrained.config, pretrained.tokenizer
    generation = copy.deepcopy(pretrained.generation) or GenerationConfig.from_model_config(config)
    own = getattr(config.get_text_config(), "eos_token_id", None)
    stops = end.stop_ids(generation.eos_token_id, own, tokenizer.eos_token_id)
    generation.eos_token_id = stops or None
    # where it is true, transformers 4 would take config.json's token instead
    generation._from_model_config = False
    # not save_pretrained, which refuses settings that published models have
    path.write_text(generation.to_json_string(use_diff=True))
