"""From a Hugging Face model to one that this loop trains: built on meta, sharded, filled from
safetensors slice by slice. No rank ever holds the whole model."""

import re
import types

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel

from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.distributed.ranks import context_group, raise_on_all_ranks
from adaptsft.errors import ConfigError
from adaptsft.model import attention, lora
from adaptsft.model.compile import choose_compilation, compiler, prepare_block
from adaptsft.model.fp8 import check_fp8, convert_to_fp8
from adaptsft.model.fsdp import ShardedModel, restore_buffers, shard_model
from adaptsft.model.language import causal_lm
from adaptsft.model.load import fitted, load_weights
from adaptsft.model.loss import loss_settings, route, token_loss
from adaptsft.model.mixers import keep_documents_apart, leave_outside_graphs, refuse_mixers
from adaptsft.model.modules import blocks, class_name, embedding_of, head_of
from adaptsft.model.pretrained import Pretrained
from adaptsft.model.router import Routers
from adaptsft.model.supported import named_errors, refuse_unsupported
from adaptsft.statistics.base_model import model_fingerprint


def build_model(
    config: ModelConfig,
    train: TrainConfig,
    pretrained: Pretrained,
    mesh: DeviceMesh,
    device: torch.device,
    seed: int = 0,
    packing: bool = True,
    normalizer: str = "all",
) -> ShardedModel:
    """The sharded model with its pretrained weights (in model.param_dtype, compute in
    model.compute_dtype), and with new adapters by `seed` where model.lora asks for them. `packing`
    is data.packing, on which train.compile=auto depends, and with which mixers run on each document
    by itself; `normalizer` is objective.normalizer, which not every router allows. The model's
    `context` is its group of train.context_parallel, `counts` whether this rank is the one of it
    that counts statistics, and `needs_buckets` whether the documents of a batch must have buckets.

    Gradients and AdamW's moments take the dtype of the parameters, model.param_dtype.
    """
    dtype = compute_dtype(config, device)
    text_config = pretrained.config.get_text_config()
    raise_on_all_ranks(lambda: check_fp8(config, device, dtype))
    backend = raise_on_all_ranks(
        lambda: attention.choose(config.attention, device, dtype, text_config)
    )

    def on_meta() -> PreTrainedModel:
        with torch.device("meta"):
            name = attention.HF_ATTENTION_NAMES[backend]
            found = causal_lm(pretrained.config, name, torch.float32, config.trust_remote_code)
        refuse_unsupported(found)
        return found

    model, stored = fitted(on_meta, pretrained.config, pretrained.folder)
    if attention.has_sinks(model):  # which not every version of a back end honours
        backend = raise_on_all_ranks(
            lambda: attention.choose(config.attention, device, dtype, text_config, sinks=True)
        )
        attention.set_implementation(model, attention.HF_ATTENTION_NAMES[backend])
    model.context = context_group(device, train.context_parallel)
    model.counts = model.context is None or model.context.rank == 0
    if config.lora.rank:
        raise_on_all_ranks(lambda: lora.add_adapters(model, config))
        stored = lora.with_base_names(stored, model)
    set_dtypes(model, config, dtype)
    freeze(model, config.freeze)
    model.routers = raise_on_all_ranks(lambda: Routers(model, train, normalizer))
    fp8 = raise_on_all_ranks(lambda: convert_to_fp8(model)) if config.fp8 != "none" else None
    if model.context is not None:
        raise_on_all_ranks(lambda: refuse_mixers(model))
    leave_outside_graphs(model)
    apart = packing and keep_documents_apart(model)
    compilation = raise_on_all_ranks(
        lambda: choose_compilation(model, train, backend, device, packing, model.routers)
    )
    for block in blocks(model):
        prepare_block(block, train, compiler(compilation, train))
    model.attention_backend, model.compute_dtype = backend, dtype
    model.compilation, model.fp8 = compilation, fp8
    model.needs_buckets = backend == "sdpa" or apart
    model.token_loss = types.MethodType(token_loss, model)
    model.route = types.MethodType(route, model)
    model.loss_settings = raise_on_all_ranks(lambda: loss_settings(train, dtype, device))
    tied = head_of(model).weight is embedding_of(model).weight
    shard_model(model, mesh, dtype, reshard=train.reshard != "never")
    for method in ("token_loss", "route"):
        register_fsdp_forward_method(model, method)
    model.to_empty(device=device)
    with named_errors(model, "the initialisation of its buffers"):
        restore_buffers(model)
    raise_on_all_ranks(lambda: load_weights(model, stored, pretrained.new_tokens))
    lora.initialize_adapters(model, seed)
    model.stored = stored
    if not all(parameter.requires_grad for parameter in model.parameters()):
        model.frozen_fingerprint = raise_on_all_ranks(lambda: model_fingerprint(pretrained.folder))
    if tied != (head_of(model).weight is embedding_of(model).weight):
        raise ConfigError(
            f"{class_name(model)} ties its head to its embeddings, and sharding would untie them; "
            "it cannot be trained"
        )
    return model.train()


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    name = config.compute_dtype
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def set_dtypes(model: nn.Module, config: ModelConfig, compute: torch.dtype) -> None:
    """model.param_dtype for all parameters, except that those which adapters leave frozen are never
    updated: they are held as they are computed with. FSDP2 wants one dtype only among the trained
    parameters of a group. Buffers, such as rotary frequencies, stay as they are."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[config.param_dtype]
    base = compute if config.lora.rank else dtype
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype if parameter.requires_grad else base)


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """No gradient for parameters whose name matches a pattern. Raises ConfigError for a pattern
    that matches none, and where none is left to train."""
    for pattern in patterns:
        matched = [
            parameter for name, parameter in model.named_parameters() if re.search(pattern, name)
        ]
        if not matched:
            example = next(iter(model.named_parameters()))[0]
            raise ConfigError(
                f"model.freeze: {pattern!r} matches no parameter; names look like {example}"
            )
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model.freeze: every parameter is frozen, nothing is left to train")
