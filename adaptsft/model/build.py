"""From a Hugging Face model to one that this loop trains: built on meta, sharded, filled from safetensors slice by slice.

No rank ever holds the whole model. The loss path is a method of the model, `token_loss`, so that FSDP2 unshards the head inside it
and the fused loss reads a plain full weight (reading a sharded head outside would silently drop the other ranks' gradient).
"""

import functools
import math
import re
import types
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.data.collator import Batch
from adaptsft.distributed.ranks import raise_on_all_ranks
from adaptsft.errors import ConfigError
from adaptsft.model import attention
from adaptsft.model.load import load_weights
from adaptsft.model.pretrained import Pretrained
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import NLL
from adaptsft.objectives.state import ObjectiveState, per_token, with_exempt_tokens
from adaptsft_kernels import TokenOutputs, choose_implementation, linear_objective

# What build_model returns: a PreTrainedModel that fully_shard has made an FSDPModule, with token_loss as one more method. No type says so.
ShardedModel = Any


def build_model(
    config: ModelConfig,
    train: TrainConfig,
    pretrained: Pretrained,
    mesh: DeviceMesh,
    device: torch.device,
) -> ShardedModel:
    """The sharded model with its pretrained weights (in model.param_dtype, compute in model.compute_dtype).

    Gradients and AdamW's moments take the dtype of the parameters, model.param_dtype.
    """
    dtype = compute_dtype(config, device)
    backend = raise_on_all_ranks(
        lambda: attention.choose(
            config.attention, device, dtype, pretrained.config.get_text_config()
        )
    )
    if train.compile and train.activation_checkpointing != "none" and backend == "sdpa":
        raise ConfigError(
            "train.compile=true has no effect beside train.activation_checkpointing where attention runs by sdpa: turn one off"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            pretrained.config,
            attn_implementation=attention.SEAM[backend],
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
        )
    model.config.use_cache = False
    if config.param_dtype == "bf16":
        for parameter in model.parameters():  # not the buffers: rotary frequencies stay fp32
            parameter.data = parameter.data.to(torch.bfloat16)
    freeze(model, config.freeze)
    for block in blocks(model):
        prepare_block(block, train)
    model.attention_backend = backend
    model.token_loss = types.MethodType(token_loss, model)
    model.loss_settings = raise_on_all_ranks(lambda: loss_settings(train, dtype, device))
    shard(model, mesh, dtype)
    register_fsdp_forward_method(model, "token_loss")
    model.to_empty(device=device)
    restore_buffers(model)
    raise_on_all_ranks(lambda: load_weights(model, pretrained.folder, pretrained.new_tokens))
    tied = head_of(model).weight is embedding_of(model).weight
    assert tied == bool(pretrained.config.get_text_config().tie_word_embeddings), (
        "the tie of head and embeddings was lost"
    )
    return model.train()


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    name = (
        config.compute_dtype
        if config.compute_dtype != "auto"
        else ("bf16" if device.type == "cuda" else "fp32")
    )
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def loss_settings(train: TrainConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The choices that linear_objective is called with. Raises ConfigError where they cannot run here."""
    try:
        choose_implementation(train.loss_implementation, device, dtype)
    except ValueError as error:
        raise ConfigError(f"train.loss_implementation: {error}") from None
    if train.loss_logits == "bf16" and dtype != torch.bfloat16:
        raise ConfigError(
            "train.loss_logits=bf16 needs model.compute_dtype=bf16, which auto is on a GPU alone; use fp32"
        )
    return {
        "implementation": train.loss_implementation,
        "logits_dtype": torch.bfloat16 if train.loss_logits == "bf16" else None,
        "chunk_size": train.loss_chunk,
    }


def token_loss(
    self: PreTrainedModel,
    batch: Batch,
    objective: Objective,
    state: ObjectiveState | None,
    scale: Tensor | float,
) -> tuple[Tensor, TokenOutputs, Tensor]:
    """Loss of the target tokens of a micro-batch, times `scale`; their statistics; and which of them
    the objective keeps, bool [n]. Bound to the model as its method.

    Only the hidden states that predict a target token reach the head; the logits are never held whole.
    """
    hidden = self.base_model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        documents=batch.documents,
        use_cache=False,
    ).last_hidden_state
    head = head_of(self)
    head(
        hidden[:, :0]
    )  # no rows: FSDP learns that its group [norm, head] has run, and does not leave it half open (torch < 2.13)
    settings = self.config.get_text_config()
    # Cohere multiplies its logits by logit_scale, Granite divides by logits_scaling; check_fused_loss_matches_model catches what is not known here
    logit_scale = getattr(settings, "logit_scale", None) or 1.0 / (
        getattr(settings, "logits_scaling", None) or 1.0
    )
    source = batch.source
    if state is not None:
        state, source = with_exempt_tokens(state, source, batch.targets, objective.exempt)
    loss, tokens = linear_objective(
        hidden.flatten(0, 1),
        head.weight,
        batch.targets,
        objective,
        state,
        source=source,
        sequence=batch.sequence,
        target_idx=batch.target_idx,
        bias=head.bias,
        softcap=getattr(settings, "final_logit_softcapping", None),
        logit_scale=logit_scale,
        scale=scale,
        **cast(dict[str, Any], self.loss_settings),
    )
    kept = objective.keep(tokens, None if state is None else per_token(state, source))
    return loss, tokens, kept


def head_of(model: PreTrainedModel) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, model.get_input_embeddings())


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers: the modules that transformers itself never splits over devices."""
    names = set(model._no_split_modules or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise ConfigError(
            f"{type(model).__name__} does not name its decoder layers (_no_split_modules), so it cannot be sharded"
        )
    return found


def freeze(model: nn.Module, patterns: list[str]) -> None:
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


def prepare_block(block: nn.Module, train: TrainConfig) -> None:
    """Activation checkpointing, then compilation, of the forward alone: FSDP's hooks stay outside and parameter names as they are."""
    if train.activation_checkpointing != "none":
        kwargs: dict[str, Any] = {"use_reentrant": False}
        if train.activation_checkpointing == "per_op":
            kwargs["context_fn"] = functools.partial(
                create_selective_checkpoint_contexts, _keep_matrix_products
            )
        block.forward = functools.partial(checkpoint, block.forward, **kwargs)
    if train.compile:
        block.forward = torch.compile(block.forward)


def _keep_matrix_products(context, op, *args, **kwargs) -> CheckpointPolicy:
    name = str(op)
    kept = any(
        part in name
        for part in ("aten.mm", "aten.addmm", "aten.bmm", "attention", "flash_attn", "varlen_attn")
    )
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def shard(model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """One FSDP2 group per decoder layer, one for the final norm and the head (with the embedding where they are tied), one for the rest.

    Gradients are summed, not averaged: the loss is already divided by the tokens of the whole step. A divide factor of 1 alone would
    use PREMUL_SUM, which gloo lacks and NCCL gets wrong in bf16 (pytorch#190745), hence the forced plain sum.
    """
    cast_to = None if dtype == torch.float32 == next(model.parameters()).dtype else dtype
    policy = MixedPrecisionPolicy(param_dtype=cast_to, reduce_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    base, head, embedding = model.base_model, head_of(model), embedding_of(model)
    norm = next(
        (
            getattr(base, name)
            for name in ("norm", "final_layernorm", "ln_f")
            if hasattr(base, name)
        ),
        None,
    )
    # the head's own forward is never called: its group is unsharded by the forward of the norm beside it, and stays so until backward
    top: list[nn.Module] = [norm] if norm is not None else []
    top += [embedding, head] if head.weight is embedding.weight else [head]
    if norm is not None:
        fully_shard(top, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    # the root must not cast its inputs: control and scale are fp32
    fully_shard(
        model,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(
            policy.param_dtype, policy.reduce_dtype, cast_forward_inputs=False
        ),
    )
    for module in fsdp_modules(model):
        if mesh.size() > 1:  # given a factor, FSDP2 copies a single rank's gradients to divide them
            module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def restore_buffers(model: PreTrainedModel) -> None:
    """Recompute the buffers that no file holds (rotary frequencies, embedding scales): `to_empty` left garbage in them."""
    for module in model.modules():
        names = [
            name
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set
        ]
        if not names:
            continue
        for parameter in module.parameters(recurse=False):
            cast(
                Any, parameter
            )._is_hf_initialized = (
                True  # transformers then leaves it alone; it is read from the files next
            )
        floating = [
            module.get_buffer(name) for name in names if module.get_buffer(name).is_floating_point()
        ]
        for buffer in floating:
            buffer.fill_(float("nan"))
        model._init_weights(module)
        if len(floating) < len(names) or any(bool(buffer.isnan().any()) for buffer in floating):
            raise ConfigError(
                f"{type(module).__name__} of {type(model).__name__} has a buffer ({', '.join(names)}) that transformers does not rebuild"
            )


def reshard(model: nn.Module) -> None:
    """After a forward without backward: groups that stay unsharded until backward would leave the optimizer a wrong view of the weights."""
    for module in fsdp_modules(model):
        module.reshard()


@torch.no_grad()
def check_fused_loss_matches_model(model: ShardedModel, batch: Batch, count: int = 256) -> None:
    """Compare log p of a few targets by `token_loss` with the model's own forward: whatever its head does must be what we differentiate.

    Raises ConfigError for a model whose logits are not softcap(scale * (hidden @ weight + bias)). All ranks call it together.
    """
    model.eval()  # no dropout: both ways must see the same hidden states
    with torch.compiler.set_stance("force_eager"):  # not worth compiling for
        _, tokens, _ = model.token_loss(batch, NLL, None, 1.0)
        row, column = (
            batch.target_idx[:count] // batch.ids.shape[1],
            batch.target_idx[:count] % batch.ids.shape[1],
        )
        columns = torch.cat(
            [column, column.new_zeros(1)]
        ).unique()  # logits of these only; a rank without a token takes part with one
        output = model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            documents=batch.documents,
            use_cache=False,
            logits_to_keep=columns,
        )
    logits = output.logits[row, torch.searchsorted(columns, column)]
    own = logits.float().log_softmax(-1).gather(1, batch.targets[:count, None]).squeeze(1)
    model.train()
    reshard(model)
    error = float((own - tokens.logp[:count]).abs().mean()) if len(own) else 0.0

    def check() -> None:
        if math.isnan(error):
            raise ConfigError(
                f"{model.name_or_path}: the model gives log p = NaN on the first batch; are its weights finite?"
            )
        if error > (1e-3 if logits.dtype == torch.float32 else 0.1):
            raise ConfigError(
                f"{type(model).__name__}: its logits are not those of a linear head with an optional bias, scale and soft cap "
                f"(mean difference of log p: {error:.3g} nats), so the fused loss cannot train it"
            )

    raise_on_all_ranks(check)
