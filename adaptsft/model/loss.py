"""The loss of a micro-batch, as a method of the model.

It is a method, `token_loss`, so that FSDP2 unshards the head inside it and the fused loss reads a
plain full weight: reading a sharded head outside would silently drop the other ranks' gradient.
"""

from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adaptsft.config.schema import TrainConfig
from adaptsft.data.collator import Batch
from adaptsft.distributed.ranks import ContextGroup
from adaptsft.errors import ConfigError
from adaptsft.model.compile import mark_dynamic
from adaptsft.model.context_parallel import longest_position, part_of, whole
from adaptsft.model.modules import head_of
from adaptsft.objectives.base import Objective
from adaptsft.objectives.loss import loss_of_hidden
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenOutputs, choose_implementation
from adaptsft_kernels.causal_lm import head_settings


def loss_settings(train: TrainConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The choices that linear_objective is called with. Raises ConfigError where they cannot run
    here."""
    try:
        choose_implementation(train.loss_implementation, device, dtype)
    except ValueError as error:
        raise ConfigError(f"train.loss_implementation: {error}") from None
    if train.loss_logits == "bf16" and dtype != torch.bfloat16:
        raise ConfigError(
            "train.loss_logits=bf16 needs model.compute_dtype=bf16, which auto is on a GPU alone; "
            "use fp32"
        )
    return {
        "implementation": train.loss_implementation,
        "logits_dtype": torch.bfloat16 if train.loss_logits == "bf16" else None,
        "chunk_size": train.loss_chunk,
        # the loop differentiates the loss as it is, unless each micro-batch is averaged by itself
        "unit_upstream": train.loss_reduction == "step",
    }


def token_loss(
    self: PreTrainedModel,
    batch: Batch,
    objective: Objective,
    state: ObjectiveState | None,
    scale: Tensor | float,
) -> tuple[Tensor, TokenOutputs, Tensor]:
    """Loss of the target tokens of a micro-batch, times `scale`; their statistics; and which of
    them the objective keeps, bool [n]. Bound to the model as its method.

    Only the hidden states that predict a target token reach the head; the logits are never held
    whole. With train.context_parallel the loss is that of this rank's targets, to be summed over
    ranks; statistics and kept tokens are those of all.
    """
    all_of, context = batch, cast(ContextGroup | None, self.context)
    hidden, batch = _decoded(self, batch)
    head = head_of(self)
    loss, tokens, kept = loss_of_hidden(
        hidden.flatten(0, 1),
        head.weight,
        batch.targets,
        objective,
        state,
        source=batch.source,
        sequence=batch.sequence,
        token_weight=batch.token_weight,
        reference=batch.reference,
        target_idx=batch.target_idx,
        bias=head.bias,
        **head_settings(self.config.get_text_config()),  # others, `check_first_batch` catches
        scale=scale,
        **cast(dict[str, Any], self.loss_settings),
    )
    if context is not None:
        tokens, kept = whole(tokens, kept, all_of, context)
    return loss, tokens, kept


def route(self: PreTrainedModel, batch: Batch) -> None:
    """A forward up to the head, for what `routers` record. Bound to the model as its method."""
    _decoded(self, batch)


def _decoded(model: Any, batch: Batch) -> tuple[Tensor, Batch]:
    """The last hidden states of this rank's part of the batch, [B, L, D] in the dtype of the head,
    and that part: all of it but with train.context_parallel."""
    positions = batch.positions
    if model.context is not None:
        batch = part_of(batch, model.context)
    model.routers.begin(model.training, batch)
    with longest_position(model, positions) if model.context is not None else nullcontext():
        hidden = model.base_model(**_inputs(model, batch)).last_hidden_state
    model.routers.end()
    head = head_of(model)
    hidden = hidden.to(head.weight.dtype)  # some models end in fp32 whatever they compute in
    # an empty input: FSDP learns that its group [norm, head] has run, and does not leave it half
    # open (torch < 2.13)
    head(hidden[:, :0])
    return hidden, batch


def _inputs(model: Any, batch: Batch) -> dict[str, Any]:
    inputs = {"input_ids": batch.ids, "use_cache": False}
    if model.attention_backend == "eager":  # nothing that a model may not know
        return inputs
    if model.compilation.on:
        mark_dynamic(batch.documents)
    return inputs | {"position_ids": batch.positions, "documents": batch.documents}
