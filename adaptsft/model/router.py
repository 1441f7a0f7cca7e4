"""The routers of a mixture of experts: their load-balancing loss, and how they load the experts.

transformers' `load_balancing_loss_func`, over the tokens of a whole step: with T tokens (padding is
none), L routers and E experts

    aux = E sum_e F_e P_e,   F_e = C_e / (L T),   P_e = S_e / (L T),

where C_e counts how often expert e is among the top k of a router's softmax, and S_e sums that
softmax. F has no gradient, so that of a micro-batch is linear in its own S once C is known for the
step: with one micro-batch C is summed over ranks between forward and backward, with several a
forward without gradient counts it first. The sum over micro-batches and ranks is then the loss of
the step, however it is split.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptsft.config.schema import TrainConfig
from adaptsft.data.collator import Batch
from adaptsft.distributed.ranks import world_size
from adaptsft.errors import require
from adaptsft.model.modules import class_name

# by what name transformers' classes hold their coefficient, as the configuration gives it
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
FUNCTION = "load_balancing_loss_func"
PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


@dataclasses.dataclass
class Router:
    """One of them."""

    index: int  # of its logits in what it returns
    balanced: bool  # whether it is in the load-balancing loss of transformers
    # of the last forward: S fp32 [E], differentiable, and C and the loads, fp32 [E]. A place for
    # each, not a list for all: its length would be a constant of every layer's compiled graph.
    found: tuple[Tensor, Tensor, Tensor] | None = None


class Routers:
    """What records the routers of a model in training. Of a model without experts it does
    nothing.

    In training, between `begin` and `end` of a forward, hooks add up what each router does with the
    tokens that are real. Evaluation records nothing.
    """

    def __init__(self, model: PreTrainedModel, train: TrainConfig, normalizer: str = "all"):
        """`normalizer`: objective.normalizer. Raises ConfigError where train.router_aux_loss cannot
        be had, or not beside what changes the size of the gradient."""
        setting = train.router_aux_loss
        found = _routers(model)
        self.all = [router for _, router in found]
        self.layers = len(found)
        self.balanced = sum(router.balanced for router in self.all)
        self.experts = _experts([module for module, _ in found])
        self.counted = self.experts > 0
        self.has_loss = self.counted and self.balanced > 0 and _has_loss(model)
        own = next((getattr(model, name) for name in COEFFICIENTS if hasattr(model, name)), 0.0)
        chosen = own if setting is None else setting
        require(
            setting is None or setting == 0 or self.has_loss,
            f"train.router_aux_loss={setting}: transformers has no load-balancing loss for "
            f"{class_name(model)}; leave it out",
        )
        self.coefficient = float(chosen or 0.0) if self.has_loss else 0.0
        for key, value, wanted in (
            ("train.loss_reduction", train.loss_reduction, "step"),
            ("objective.normalizer", normalizer, "all"),
        ):
            require(
                self.coefficient == 0 or value == wanted,
                f"{key}={value} changes the size of the gradient, and with it the weight of the "
                f"routers' load-balancing loss ({self.coefficient:g}): set "
                f"train.router_aux_loss=0, or {key}={wanted}",
            )
        self.top_k = getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1
        self.tokens = 0  # of the step, over all ranks
        self.real: Tensor | None = None  # bool [tokens of the micro-batch]; None: not recording
        self.open = False  # a recomputed forward (activation checkpointing) adds nothing
        self.probabilities: Tensor | None = None  # fp32 [E]: S of the micro-batch, differentiable
        self.sums: Tensor | None = None  # fp64 [size], of this rank's micro-batches so far
        self.share: Tensor | None = None  # fp32 [E]: F of the whole step, once it is known
        self.seed: tuple[int, int] | None = None  # of the dropout of the next micro-batch
        self.scale: Tensor | float = 1.0
        for module, router in found if self.counted else []:
            module.register_forward_hook(functools.partial(self._record, router))

    @property
    def size(self) -> int:
        """Of the sums of a step: loads [L, E], then C [E] and S [E]."""
        return (self.layers + 2) * self.experts if self.counted else 0

    def __str__(self) -> str:
        if not self.counted:
            return "not known in this model: no load-balancing loss, and no loads are recorded"
        text = f"{self.layers}, over {self.experts} experts each"
        if self.coefficient:
            return f"{text}; load-balancing loss times {self.coefficient:g}"
        return f"{text}; no load-balancing loss" + ("" if self.has_loss else " in transformers")

    def start_step(
        self, model: Any, micro_batches: list[Batch], tokens: int, seed: int, scale: Tensor | float
    ) -> None:
        """Before the first forward of a step of `tokens` tokens over all ranks: with several
        micro-batches, the forward that counts. `seed`: of this step's dropout on this rank;
        `scale`: of the loss beside the coefficient."""
        self.tokens, self.scale = tokens, scale
        self.sums = self.share = self.seed = None
        if not self.coefficient or len(micro_batches) == 1:
            return
        self.seed = (seed, 0)
        with torch.no_grad():
            for batch in micro_batches:
                model.route(batch)
        self.share = self._reduced_share()
        self.sums, self.seed = None, (seed, 0)

    def begin(self, training: bool, batch: Batch) -> None:
        """Before the decoder's forward."""
        recording = training and self.counted
        self.real = _real(batch) if recording else None
        self.open, self.probabilities = recording, None
        self.forget()
        if recording and self.seed is not None:  # both forwards drop the same
            torch.manual_seed(hash(self.seed))
            self.seed = (self.seed[0], self.seed[1] + 1)

    def end(self) -> None:
        """After the decoder's forward."""
        if not self.open:
            return
        self.open = False
        probabilities, chosen, loads = self._found()
        self.forget()
        self.probabilities = probabilities.sum(0)
        parts = [loads.flatten(), chosen.sum(0), self.probabilities.detach()]
        sums = torch.cat([part.double() for part in parts])
        self.sums = sums if self.sums is None else self.sums + sums

    def add_loss(self, loss: Tensor) -> Tensor:
        """The loss of the micro-batch whose forward was the last one, with its part of the
        load-balancing loss."""
        if not self.coefficient:
            return loss
        if self.share is None:
            self.share = self._reduced_share()
        assert self.probabilities is not None
        part = (self.share * self.probabilities).sum() / (self.balanced * self.tokens)
        return loss + part * (self.coefficient * self.experts) * self.scale

    def loss_of_recorded(self, tokens: int) -> Tensor:
        """The load-balancing loss, before its weight, of the one forward of `tokens` tokens that
        was recorded."""
        probabilities, chosen, _ = (part.sum(0) for part in self._found())
        return self.experts * (probabilities @ chosen) / (self.balanced * tokens) ** 2

    def forget(self) -> None:
        """What was recorded of the last forward."""
        for router in self.all:
            router.found = None

    def _found(self) -> tuple[Tensor, ...]:
        """What the last forward has recorded, [L, E] each."""
        found = [router.found for router in self.all if router.found]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def write(self, place: Tensor) -> None:
        """The sums of this rank in the step, fp64 [size], for `RouterFigures`."""
        if self.sums is not None:
            place.copy_(self.sums)

    def _reduced_share(self) -> Tensor:
        assert self.sums is not None
        chosen = self.sums[-2 * self.experts : -self.experts].clone()
        if world_size() > 1:
            dist.all_reduce(chosen)
        return (chosen / (self.balanced * self.tokens)).float()

    def _record(self, router: Router, module: nn.Module, inputs: Any, output: Any) -> None:
        # a recomputed forward does what the first one did; generation between steps is no training
        if self.real is None or not (self.open or module.training):
            return
        logits = output[router.index] if isinstance(output, tuple) else output
        logits = logits.reshape(-1, self.experts).float()
        probabilities = (logits if self.coefficient else logits.detach()).softmax(-1)
        real = self.real.float()[:, None]
        sums = (probabilities * real).sum(0)
        with torch.no_grad():
            chosen = _count(probabilities.topk(self.top_k).indices, probabilities, real)
            taken = _taken(output, len(logits))
            loads = chosen if taken is None else _count(taken, probabilities, real)
        if not router.balanced:
            sums, chosen = torch.zeros_like(sums), torch.zeros_like(chosen)
        if self.open:
            router.found = (sums, chosen, loads)


@contextmanager
def recording(routers: Routers | None, ids: Tensor) -> Iterator[None]:
    """The hooks of a forward of ids [B, L] run as in training; what they record is dropped."""
    if routers is None or not routers.counted:
        yield
        return
    routers.real, routers.open = torch.ones_like(ids, dtype=torch.bool).flatten(), True
    try:
        yield
    finally:
        routers.real, routers.open = None, False
        routers.forget()


def _real(batch: Batch) -> Tensor:
    """Which tokens are not padding, bool [B * L]."""
    real = torch.ones_like(batch.ids, dtype=torch.bool) if batch.real is None else batch.real
    return real.flatten()


def _count(experts: Tensor, probabilities: Tensor, real: Tensor) -> Tensor:
    """How often each of E experts is among `experts`, int64 [T, k], of real tokens: fp32 [E], exact
    below 2^24 tokens."""
    return (torch.zeros_like(probabilities).scatter(1, experts, 1.0) * real).sum(0)


def _taken(output: Any, tokens: int) -> Tensor | None:
    """The experts that a router has sent each token to, int64 [T, k], where it returns them: some
    choose by more than their logits."""
    for part in output if isinstance(output, tuple) else ():
        if isinstance(part, Tensor) and part.dtype == torch.int64 and part.shape[:-1] == (tokens,):
            return part
    return None


def _routers(model: PreTrainedModel) -> list[tuple[nn.Module, Router]]:
    """The routers that transformers records, and those of the same model that it does not: tokens
    choose by their ids, not by the logits, in the first layers of DeepSeek-V4."""
    base: Any = model.base_model
    recorder: Any = (getattr(base, "_can_record_outputs", None) or {}).get("router_logits")
    kind = getattr(recorder, "target_class", None)
    if kind is None:
        return []
    within = f".{recorder.layer_name.strip('.')}." if recorder.layer_name else ""
    return [
        (module, Router(recorder.index, balanced=isinstance(module, kind)))
        for name, module in model.named_modules()
        if (isinstance(module, kind) or _is_router(module, kind)) and within in f".{name}."
    ]


def _is_router(module: nn.Module, kind: type) -> bool:
    """Whether the class of a module is another router of the same model than `kind`."""
    names = (class_name(module), kind.__name__)
    return type(module).__module__ == kind.__module__ and all(n.endswith("Router") for n in names)


def _experts(routers: list[nn.Module]) -> int:
    """That all of these choose from, by the last of their matrices; 0 where that does not tell. A
    matrix of one row is a bias (Ernie 4.5)."""
    rows = set()
    for router in routers:
        own = {name: p for name, p in router.named_parameters() if "lora_" not in name}
        sizes = [p.shape[0] for p in own.values() if p.ndim == 2 and len(p) > 1]
        rows.add([0, *sizes][-1])
    return rows.pop() if len(rows) == 1 else 0


def _has_loss(model: PreTrainedModel) -> bool:
    """Whether the loss of its class is the one that most share: two have one of their own."""
    function = getattr(sys.modules[type(model).__module__], FUNCTION, None)
    calls = FUNCTION in inspect.getsource(inspect.unwrap(type(model).forward))
    return calls and list(inspect.signature(function).parameters) == PARAMETERS  # type: ignore
