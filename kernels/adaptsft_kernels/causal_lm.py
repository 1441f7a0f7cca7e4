"""The fused loss inside the forward of a causal language model of transformers: there DDP sees the
call, FSDP2 has gathered the head, and a Trainer takes the loss as it takes any model's."""

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adaptsft_kernels.linear_objective import Objective, linear_objective

Model = TypeVar("Model", bound=nn.Module)

# the names of the soft cap of the logits in Gemma, RecurrentGemma and xLSTM
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def head_settings(config: Any) -> dict[str, Any]:
    """softcap and logit_scale of `linear_objective`, by what the text configuration of a model of
    transformers says under the names known here."""
    scale = _first_set(config, "logit_scale", "lm_head_multiplier")
    scale = scale or 1.0 / (_first_set(config, "logits_scaling") or 1.0)
    return {"softcap": _first_set(config, *SOFT_CAPS), "logit_scale": scale}


def _first_set(config: Any, *names: str) -> float | None:
    """The first of these settings that the model has, and that is not zero."""
    return next((value for name in names if (value := getattr(config, name, None))), None)


def add_fused_loss(model: Model, objective: Objective, state: Any = None) -> Model:
    """The same model. Its forward, in training and with labels, now returns {"loss": loss}, and no
    logits; without labels, or in evaluation, what it returned before.

    loss: the objective summed over the target tokens, divided by num_items_in_batch (what a Trainer
    gives; else their number in this call). labels int64 [B, L] are not shifted; shift_labels, which
    some collators give beside or instead of them, are. objective and state are those of
    `linear_objective`. Under autocast the head computes in its dtype, as a linear layer does.

    Call it before DDP or accelerate wrap the model: it runs the model once, on two tokens, to see
    how logits come from the head. Raises ValueError where `linear_objective` would compute other
    ones, for a mixture of experts that adds a loss of its router, and in the forward for a head
    that carries an adapter, or is sharded where it is read (a unit of its own in FSDP2).
    """
    base: Any = model
    if hasattr(base, "peft_config"):
        base = base.get_base_model()
    settings, plain = _tried_settings(base), base.forward

    @functools.wraps(plain)  # a Trainer reads the names of its inputs
    def forward(
        *arguments: Any,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        targets = shift_labels
        if labels is not None and shift_labels is None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        if targets is None or not base.training:
            given: dict[str, Any] = {"labels": labels, "shift_labels": shift_labels}
            given |= {"num_items_in_batch": num_items_in_batch}
            return plain(*arguments, **inputs, **{k: x for k, x in given.items() if x is not None})
        inputs["use_cache"] = False
        hidden = base.base_model(*arguments, **inputs).last_hidden_state
        head = base.get_output_embeddings()
        if hasattr(head, "base_layer"):
            raise ValueError("the head carries an adapter, which the fused loss does not see")
        head(hidden[:, :0])  # FSDP2 learns that its unit [norm, head] has run (torch < 2.13)
        targets = targets.flatten()
        count = targets.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        loss, _ = linear_objective(
            hidden.flatten(0, 1).to(head.weight.dtype),
            head.weight,
            targets,
            objective,
            state,
            bias=head.bias,
            scale=1 / torch.as_tensor(count, device=hidden.device).clamp(min=1),
            **settings,
        )
        return {"loss": loss}

    base.forward = forward
    return model


def _tried_settings(model: Any) -> dict[str, Any]:
    """`head_settings` of the model, which are tried on what its head returns. Raises ValueError."""
    config, seen = model.config.get_text_config(), {}
    if getattr(config, "output_router_logits", False):
        raise ValueError("config.output_router_logits adds a loss that the fused one leaves out")
    settings = head_settings(config)
    softcap, scale = settings["softcap"], settings["logit_scale"]
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.update(logits=output.float())
    )
    try:
        with torch.no_grad():
            ids = torch.tensor([[1, 2]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    expected = scale * seen["logits"]
    if softcap:
        expected = softcap * torch.tanh(expected / softcap)
    wrong = torch.linalg.vector_norm(logits - expected) > 0.02 * torch.linalg.vector_norm(logits)
    if not logits.is_meta and wrong:
        raise ValueError(
            f"{type(model).__name__} makes other logits of what its head returns than by "
            f"softcap={softcap} and logit_scale={scale}: call linear_objective yourself"
        )
    return settings
