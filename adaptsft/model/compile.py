"""torch.compile of the decoder layers: whether, and so that a run compiles once.

All layers of a kind share one compiled graph: the code is the same, their weights are inputs. What
differs from step to step must not be a constant of it. Packs have a constant shape
(`collator.ConstantShape`); the number of documents and the length that sizes the attention kernels'
grid are dynamic sizes (`mark_dynamic`), which no generated kernel depends on, only attention reads
them. So the code that runs is a function of the batch's shape alone, not of what came before, and a
resumed run repeats it to the bit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._triton import has_triton
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedModel

from adaptsft.config.schema import TrainConfig
from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError, reason_of
from adaptsft.model.experts import has_experts
from adaptsft.model.mixers import mixers
from adaptsft.model.modules import blocks, class_name
from adaptsft.model.router import Routers, recording

# which experts a token is sent to: recomputed by other kernels, as compilers may make them, a near
# tie could turn, and gradients would be those of experts that the token has never seen
CHOICES = ("aten.topk",)
# operators whose results train.activation_checkpointing=per_op keeps, beside those
MATRIX_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "scaled_mm", "grouped_mm")
MATRIX_PRODUCTS += ("attention", "flash_attn", "varlen_attn")
TRACED_TOKENS = 256  # of the pack that tells whether layers can be compiled
# Of layers, each kind of which is compiled on its own (with a window and without, say), that auto
# compiles: every one takes a good part of a minute.
KINDS = 8
# Graphs of a function: kinds, shapes, training and evaluation. torch would go back to eager at 8.
GRAPHS = 256
# of torch._dynamo.config: a recomputed forward need not record its routers again
REPLAYS = "skip_fwd_side_effects_in_bwd_under_checkpoint"


class Compilation(NamedTuple):
    """What train.compile has become."""

    on: bool
    reason: str = ""  # why it is off
    # layers are traced as a whole, or it is an error; sdpa, eager attention and mixers break it
    whole: bool = False
    dynamic: bool = False  # batches are padded, each to its own length
    kinds: int = 0  # of layers, where they are traced as a whole

    def __str__(self) -> str:
        if not self.on:
            return f"off ({self.reason})"
        return f"on, {self.kinds} kind{'s'[: self.kinds > 1]} of layer" if self.whole else "on"


def choose_compilation(
    model: PreTrainedModel,
    train: TrainConfig,
    backend: str,
    device: torch.device,
    packing: bool,
    routers: Routers | None = None,
) -> Compilation:
    """Whether the layers of `model`, which is on meta, are to be compiled; with what its `routers`
    record, if it has any.

    Raises ConfigError where train.compile=true cannot work.
    """
    recomputed, asked = train.activation_checkpointing != "none", _setting(train) == "true"
    breaks = _outside_graphs(model, backend)
    if asked and breaks and recomputed:
        raise ConfigError(
            "train.compile=true has no effect beside train.activation_checkpointing where "
            f"{breaks}: turn one off"
        )
    reason = "" if asked else _reason_against(train, breaks, device, packing)
    if reason:
        return Compilation(False, reason)
    whole = backend in ("flash", "varlen") and not breaks
    kinds, problem = _trace(model, train, routers) if whole else (0, "")
    if problem and asked:
        raise ConfigError(
            f"train.compile=true: the layers of {class_name(model)} cannot be traced as a whole: "
            f"{problem}; set train.compile=false"
        )
    if problem:
        return Compilation(False, f"auto: its layers cannot be traced as a whole: {problem}")
    if kinds > KINDS and not asked:
        return Compilation(False, f"auto, with {kinds} kinds of layers, each to be compiled")
    return Compilation(True, "", whole, not packing, kinds)


def _setting(train: TrainConfig) -> str:
    """auto, true or false; YAML has booleans, and text in quotes."""
    return str(train.compile).lower()


def _outside_graphs(model: PreTrainedModel, backend: str) -> str:
    """What runs outside of graphs; or ""."""
    if backend == "sdpa":
        return "attention runs by sdpa"
    if any(mixers(block) for block in blocks(model)):
        return "recurrent or convolution layers run outside of graphs"
    return ""


def _reason_against(train: TrainConfig, breaks: str, device: torch.device, packing: bool) -> str:
    """Why train.compile is off where it is not asked for; "" where it is on."""
    if _setting(train) == "false":
        return "train.compile=false"
    if device.type != "cuda":
        return f"auto, on {device.type}"
    if not packing:
        return "auto, with data.packing=false, where shapes change from batch to batch"
    if breaks:
        return f"auto: {breaks}, in calls that depend on the lengths of the documents"
    if not has_triton():
        return "auto, without Triton or a GPU that it generates code for"
    return ""


def _trace(model: PreTrainedModel, train: TrainConfig, routers: Routers | None) -> tuple[int, str]:
    """(graphs of all decoder layers, why one cannot be traced as a whole; "" if all can): a forward
    of the model on meta, seconds, instead of an error after the weights have been loaded."""
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    prepare = functools.partial(torch.compile, backend=count, fullgraph=True, dynamic=False)
    forwards = {block: block.__dict__.get("forward") for block in blocks(model)}
    ids = torch.zeros(1, TRACED_TOKENS, dtype=torch.int64, device="meta")
    context: Any = getattr(model, "context", None)
    tokens = TRACED_TOKENS * (context.size if context else 1)
    offsets = torch.tensor([0, 100, tokens], dtype=torch.int32)
    documents = Documents.build(offsets, with_buckets=False).to(ids.device)
    documents = documents._replace(context=context)
    mark_dynamic(documents)
    try:
        for block in forwards:
            prepare_block(block, train, prepare)
        limits = {"recompile_limit": GRAPHS, REPLAYS: True}
        with torch._dynamo.config.patch(limits), recording(routers, ids):
            model.base_model(input_ids=ids, position_ids=ids, documents=documents, use_cache=False)
    except Exception as error:  # of dynamo, or of code of the model's own
        return len(graphs), reason_of(error).splitlines()[0]
    finally:
        for block, forward in forwards.items():
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward
        torch._dynamo.reset()
    return len(graphs), ""


def mark_dynamic(documents: Documents) -> None:
    """Of what changes from batch to batch, compiled layers make inputs."""
    for tensor in (documents.cu_seqlens, documents.longest):
        torch._dynamo.mark_dynamic(tensor, 0)


def compiler(compilation: Compilation, train: TrainConfig) -> Callable[..., Any] | None:
    """What `prepare_block` is given; None where layers are not compiled."""
    if not compilation.on:
        return None
    torch._dynamo.config.recompile_limit = GRAPHS
    setattr(torch._dynamo.config, REPLAYS, True)
    options = {"deterministic": True} if train.deterministic else None
    return functools.partial(
        torch.compile,
        fullgraph=compilation.whole,
        dynamic=compilation.dynamic,
        options=options,
    )


def prepare_block(
    block: nn.Module, train: TrainConfig, compile: Callable[..., Any] | None = None
) -> None:
    """Activation checkpointing, then compilation, of the forward alone: FSDP's hooks stay outside
    and parameter names as they are."""
    if train.activation_checkpointing != "none":
        kwargs: dict[str, Any] = {"use_reentrant": False}
        policy: Callable[..., CheckpointPolicy] | None = None
        if train.activation_checkpointing == "per_op":
            policy = _keep_matrix_products
        elif compile is not None and has_experts(block):
            policy = _keep_choices
        if policy is not None:
            kwargs["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
        block.forward = functools.partial(checkpoint, block.forward, **kwargs)
    if compile is not None:
        block.forward = compile(block.forward)


def _keep_matrix_products(context, op, *args, **kwargs) -> CheckpointPolicy:
    kept = any(part in str(op) for part in (*MATRIX_PRODUCTS, *CHOICES))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_choices(context, op, *args, **kwargs) -> CheckpointPolicy:
    kept = any(part in str(op) for part in CHOICES)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.MUST_RECOMPUTE
