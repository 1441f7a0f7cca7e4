"""LoRA: low-rank adapters beside the linear layers of a frozen model (arXiv:2106.09685), in PEFT's
layers and under PEFT's names.

PEFT decides what an adapter is, computes with it and merges it. Here is what a sharded model needs
besides: which weights are whose, a start that no number of ranks changes, and the tensors of an
adapter folder.
"""

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adaptsft.config.schema import ModelConfig
from adaptsft.errors import ConfigError, did_you_mean, require_installed
from adaptsft.model.load import Stored
from adaptsft.model.modules import head_of

ADAPTER = "default"  # PEFT's name for an adapter that needs none
WEIGHTS_FILE = "adapter_model.safetensors"


def add_adapters(model: PreTrainedModel, config: ModelConfig) -> None:
    """Freeze the model and put adapters beside the linear layers that model.lora.target_modules
    names, on meta. Raises ConfigError."""
    require_installed("peft", "lora", f"model.lora.rank={config.lora.rank}")
    import peft

    lora, targets = config.lora, config.lora.target_modules
    local = Path(config.path).is_dir()
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(Path(config.path).absolute()) if local else config.path,
        revision=config.revision,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )
    there = _linear_layers(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a tied head, which is refused below
            peft.inject_adapter_in_model(settings, model, ADAPTER, low_cpu_mem_usage=True)
    except ValueError as error:  # nothing matches, or what matches is not a layer that PEFT adapts
        raise ConfigError(
            f"model.lora.target_modules={targets}: {str(error).splitlines()[0]} There are "
            f"{_listed(model, there)}"
        ) from None
    _check_targets(model, targets, there)


def _check_targets(model: PreTrainedModel, targets: str | list[str], there: list[str]) -> None:
    """Every name has found something, and nothing but linear layers below the head. PEFT passes
    over a name that finds nothing as long as another does."""
    from peft.tuners.lora import Linear

    key = f"model.lora.target_modules={targets}"
    choose = f"choose among {_listed(model, there)}"
    found = dict(adapted_layers(model))
    for wanted in targets if isinstance(targets, list) else []:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in found):
            raise ConfigError(
                f"{key}: {wanted!r} is no linear layer{did_you_mean(wanted, there)}; {choose}"
            )
    for name, layer in found.items():
        if layer is head_of(model):
            raise ConfigError(
                f"{key}: {name} is the model's head, which cannot carry an adapter, as the fused "
                f"loss reads its own weight; {choose}"
            )
        if not isinstance(layer, Linear):
            kind = type(layer.get_base_layer()).__name__
            raise ConfigError(
                f"{key}: {name} ({kind}) cannot carry an adapter, only linear layers can; {choose}"
            )


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """The last parts of their names, each once, without the head's."""
    layers = (
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head_of(model)
    )
    return list(dict.fromkeys(name.rpartition(".")[2] for name in layers))


def _listed(model: nn.Module, there: list[str]) -> str:
    stacked = any("experts" in name and p.ndim == 3 for name, p in model.named_parameters())
    note = " (the matrices of its experts are stacked, and carry no adapter)" if stacked else ""
    return f"{', '.join(there)}{note}"


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, PEFT's layer) of each layer with an adapter."""
    if has_adapters(model):
        from peft.tuners.lora import LoraLayer

        yield from ((n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer))


def with_base_names(stored: Stored, model: nn.Module) -> Stored:
    """`stored` of a model, under the names that its tensors have beside adapters: those of an
    adapted layer are its base layer's."""
    layers = {name for name, _ in adapted_layers(model)}

    def beside(name: str) -> str:
        layer, _, last = name.rpartition(".")
        return f"{layer}.base_layer.{last}" if layer in layers else name

    def renamed(names: dict[str, str]) -> dict[str, str]:
        return {beside(name): other for name, other in names.items()}

    names = stored.names
    computed = [
        dataclasses.replace(of, targets={key: beside(name) for key, name in of.targets.items()})
        for of in names.computed
    ]
    names = names._replace(
        stored=renamed(names.stored), exported=renamed(names.exported), computed=computed
    )
    return Stored(stored.files, names)


@torch.no_grad()
def initialize_adapters(model: nn.Module, seed: int) -> None:
    """PEFT's default start, the same on any number of ranks: A uniform within 1 / sqrt(its width)
    (Kaiming, a = sqrt 5), B zero, and DoRA's magnitudes the norms of the loaded weights."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        whole = torch.empty(a.shape)
        nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
        _fill(a, whole)
        b.zero_()
        if ADAPTER in layer.lora_magnitude_vector:
            weight = full(layer.get_base_layer().weight).float()
            weight = weight.T if layer.fan_in_fan_out else weight  # [out, in]
            _fill(layer.lora_magnitude_vector[ADAPTER].weight, torch.linalg.norm(weight, dim=1))


def _fill(target: Tensor, whole: Tensor) -> None:
    """Copy a tensor that every rank has into the shards of `target`."""
    whole = whole.to(target.device, target.dtype)
    if isinstance(target, DTensor):
        mesh, placements = target.device_mesh, target.placements
        whole = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    target.copy_(whole)


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor; all ranks call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """fp32: the weight of an adapted layer and its adapter, as PEFT merges them. All ranks call it
    together."""
    whole = {f"layer.{name}": full(p).float() for name, p in layer.named_parameters()}
    return torch.func.functional_call(_Merged(layer), whole, ())


class _Merged(nn.Module):
    """What PEFT would make of a layer's weight, without changing the layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        weight = self.layer.get_base_layer().weight
        if variant := self.layer.lora_variant.get(ADAPTER):  # DoRA
            return variant.merge_safe(self.layer, ADAPTER, weight)
        return weight + self.layer.get_delta_weight(ADAPTER)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors, sharded, under the names that PEFT gives them in files."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(
        model, model.state_dict(), adapter_name=ADAPTER, save_embedding_layers=False
    )
    layers = _names_in_files(model)
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".lora_")
        # as PeftModel names them, which has the model two levels further down
        renamed[f"base_model.model.{layers[layer]}.lora_{part}"] = tensor
    return renamed


def _names_in_files(model: nn.Module) -> dict[str, str]:
    """Name of each adapted layer -> its name in the model that an adapter is loaded beside: of a
    language model that is part of a multimodal one, in the whole."""
    whole = cast(Any, model).stored.names.whole
    names = {name: whole.get(f"{name}.weight") for name, _ in adapted_layers(model)}
    return {
        name: (other or f"{name}.weight").removesuffix(".weight") for name, other in names.items()
    }


def base_name(model: nn.Module) -> str:
    return cast(Any, model).peft_config[ADAPTER].base_model_name_or_path


def write_adapter_config(folder: Path, model: nn.Module) -> None:
    settings = copy.deepcopy(cast(Any, model).peft_config[ADAPTER])
    settings.inference_mode = True
    if cast(Any, model).stored.names.whole:  # short names may match its other parts as well
        settings.target_modules = sorted(_names_in_files(model).values())
    elif not isinstance(settings.target_modules, str):  # a set, in another order each time
        settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(folder)
