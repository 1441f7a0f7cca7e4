"""The objective for a training loop: its loss, its statistics over all ranks, and its steps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adaptsft.config.schema import ControllerConfig, ObjectiveConfig
from adaptsft.controllers.base import Progress
from adaptsft.controllers.figures import figures_of
from adaptsft.controllers.moved_objective import MovedObjective, check_made_of
from adaptsft.controllers.optimizer_hooks import OptimizerHooks, device_of
from adaptsft.controllers.schedules import LearningRate
from adaptsft.controllers.settings import settings_of
from adaptsft.errors import ConfigError, require, warn
from adaptsft.objectives.loss import check_given, loss_of_hidden, loss_of_logps, share_of
from adaptsft.objectives.state import initial_state
from adaptsft.statistics.origins import TokenOrigins, origins_of, same_shape
from adaptsft.statistics.step import Origins, SourceStatistics, StepStatistics
from adaptsft_kernels import TokenOutputs


class AdaptiveObjective(MovedObjective):
    """An objective that follows what the model already knows, in a training loop of your own:

        objective = AdaptiveObjective("auto", total_steps=len(batches), optimizer=optimizer)
        for x, y in batches:
            loss, tokens = objective.loss(model(x), head.weight, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            objective.step()

    `loss` may be called several times in a step. What it counts of the target tokens is summed over
    ranks in `step`, and moves the objective to the next one, the same on every rank. The host waits
    for the device only where `loss` looks for the targets.
    """

    def __init__(
        self,
        objective: str | Callable[..., Any] | Mapping[str, Any] | ObjectiveConfig = "auto",
        *,
        controller: str | Mapping[str, Any] | ControllerConfig | None = None,
        total_steps: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        sources: int | Sequence[str] = 1,
        exempt: Sequence[int] = (),
        device: torch.device | str | None = None,
        process_group: dist.ProcessGroup | None = None,
        measured: SourceStatistics | None = None,
    ):
        """objective: a name of docs/objectives.md or docs/controllers.md; the keys of the group
        `objective` of the configuration, such as {"name": "alpha", "alpha": 0.3}; or a function
        whose parameters name what it reads, [n] each, such as lambda logp: -logp.exp().
        controller: a name, or the keys of its group, such as {"name": "linear", "end": 2.0}.

        total_steps: optimizer steps of the run, which every controller needs. optimizer: see
        `attach`. sources: how many parts of the data a controller tells apart, or their names.
        exempt: ids of tokens that keep NLL, such as those that end a turn. device: of the model;
        default: the optimizer's, else the accelerator's. process_group: the ranks that see
        different data; default: all. measured: what the base model makes of the data, if known.

        Raises ConfigError for a name, key, value or combination that cannot be.
        """
        self.settings, config, function = settings_of(objective, controller)
        if isinstance(sources, int):
            sources = [f"source {number}" for number in range(sources)]
        self.names = list(sources)
        require(len(self.names) > 0, f"sources={sources}: at least one is needed")
        require(
            config.name == "fixed" or (total_steps or 0) > 0,
            f"controller.name={config.name} with total_steps={total_steps}: it moves the objective "
            "over the run; give the number of optimizer steps",
        )
        self.total_steps, self.group = total_steps, process_group
        self.device = device_of(device, optimizer)
        if len(exempt):
            ids = torch.tensor(exempt, device=self.device)
            function = dataclasses.replace(function, exempt=ids)
        first = initial_state(self.settings, len(self.names), self.device)
        super().__init__(function, first, config, measured)
        self.statistics = StepStatistics(len(self.names), self.device)
        self.steps_done = 0
        self.used: dict[str, Tensor] = {}  # what the step before used
        self._counted = self._reduced = False
        self._unknown: set[str] = set()  # statistics that some loss of the step did not give
        self._stepped = 0  # the optimizer, since the last `step`: 2 after a loss, 1 before one
        self._hooks: OptimizerHooks | None = None
        if optimizer is not None:
            self.attach(optimizer)

    def loss(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        num_tokens: float | Tensor | None = None,
        source: Tensor | None = None,
        sequence: Tensor | None = None,
        token_weight: Tensor | None = None,
        reference: Any = None,
        ignore_index: int = -100,
        **settings: Any,
    ) -> tuple[Tensor, TokenOutputs]:
        """The loss of a linear head, which never holds the logits, and the statistics of its target
        tokens; differentiable with respect to hidden, weight and bias.

        hidden [..., D] and weight [V, D]; targets int64 [...]: the token that each hidden state
        predicts (`next_tokens` shifts labels), or ignore_index where there is none. The sum over
        targets is divided by num_tokens, by default their number in this call. For a loss that no
        split into ranks and micro-batches changes, give the number of the whole step, divided by
        the number of ranks where gradients are averaged over them, as DDP and FSDP2 do.

        source: int64, of each target or of each row of targets [B, L]. sequence: int64, ascending,
        of each target; by default each row of targets [B, L] is a sequence. token_weight (fp32) and
        reference (a Reference, for objectives that read the base model) are of each target.
        `settings` are those of `adaptsft_kernels.linear_objective`: bias, softcap, logit_scale,
        implementation, logits_dtype, chunk_size.

        Tokens are counted where gradients are on; a loss that is computed again (activation
        checkpointing around it) counts them twice. Under FSDP2 call it in the forward of a module
        that has gathered its weights: a sharded one (DTensor) is refused.
        """
        same_shape(targets, hidden=hidden[..., 0])
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):  # as a linear layer would
            hidden, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (hidden, weight))
        chosen = (targets.flatten() != ignore_index).nonzero().squeeze(1)
        origins = self._origins(
            targets,
            chosen,
            source=source,
            sequence=sequence,
            token_weight=token_weight,
            reference=reference,
        )
        loss, tokens, kept = loss_of_hidden(
            hidden.flatten(0, -2),
            weight,
            targets.flatten()[chosen],
            self.function,
            self.state,
            source=origins.source,
            sequence=origins.sequence,
            token_weight=origins.token_weight,
            reference=origins.reference,
            target_idx=chosen,
            scale=share_of(num_tokens, chosen),
            **settings,
        )
        if torch.is_grad_enabled():
            self.count(tokens, kept, origins)
            self._unknown |= {"sequence_nll"} if origins.sequence is None else set()
        return loss, tokens

    def loss_from_logps(
        self,
        logps: Tensor,
        *,
        mask: Tensor | None = None,
        entropy: Tensor | None = None,
        collision: Tensor | None = None,
        top1: Tensor | None = None,
        targets: Tensor | None = None,
        num_tokens: float | Tensor | None = None,
        source: Tensor | None = None,
        sequence: Tensor | None = None,
        token_weight: Tensor | None = None,
        reference: Any = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, TokenOutputs]:
        """As `loss`, from log p of the targets, [...], that other code has computed: the gradient
        goes through `logps`. With reduction="none" the loss is that of each target, [...], 0 where
        there is none, and num_tokens means nothing.

        mask bool [...]: which of them are targets (default: all). entropy H (nats), collision sum_i
        p_i^2 and top1 (no other token is likelier than the target), [...], are for objectives and
        controllers that read them; one that reads what is not given raises ValueError. The
        objective of auto reads collision. targets, their ids, are needed where some are exempt.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction={reduction!r}: choose mean or none")
        given = {"entropy": entropy, "collision": collision, "top1": top1}
        same_shape(logps, mask=mask, targets=targets, **given)
        every = torch.ones_like(logps, dtype=torch.bool) if mask is None else mask.bool()
        chosen = every.flatten().nonzero().squeeze(1)
        origins = self._origins(
            every,
            chosen,
            source=source,
            sequence=sequence,
            token_weight=token_weight,
            reference=reference,
        )
        dtypes = {"entropy": torch.float32, "collision": torch.float32, "top1": torch.bool}
        known = {
            name: value.detach().flatten()[chosen].to(dtypes[name])
            for name, value in given.items()
            if value is not None
        }
        loss, tokens, kept = loss_of_logps(
            logps.flatten()[chosen],
            self.function,
            self.state,
            source=origins.source,
            targets=None if targets is None else targets.flatten()[chosen],
            token_weight=origins.token_weight,
            sequence=origins.sequence,
            reference=origins.reference,
            **known,
        )
        if torch.is_grad_enabled():
            self.count(tokens, kept, origins)
            self._unknown |= given.keys() - known.keys()
            self._unknown |= {"sequence_nll"} if origins.sequence is None else set()
        if reduction == "none":
            each = torch.zeros(every.shape, dtype=loss.dtype, device=loss.device)
            return each.view(-1).index_put((chosen,), loss).view(every.shape), tokens
        return loss.sum() * share_of(num_tokens, chosen), tokens

    def _origins(self, places: Tensor, chosen: Tensor, **given: Any) -> TokenOrigins:
        found = origins_of(places, chosen, **given)
        check_given(self.function, found.sequence, found.reference)
        return found

    def count(self, tokens: TokenOutputs, kept: Tensor, origins: Origins) -> None:
        """Add target tokens to the statistics of the step; `kept` bool [n]: those that the
        objective keeps. `loss` has done it."""
        if self._reduced:
            raise RuntimeError("a loss after all_reduce() and before step(): it would not count")
        if not self._counted:  # until then the statistics are those of the step before, to be read
            self.statistics.reset()
            self._unknown.clear()
        self.statistics.add(tokens, kept, origins)
        self._counted = True

    def all_reduce(self) -> None:
        """Sum the statistics of the step over ranks. `step` does it, where it was not done."""
        if not self._reduced:
            self.statistics.all_reduce(self.group)
        self._reduced = True

    def step(
        self, *, skipped: Tensor | bool | None = None, progress: Progress | None = None
    ) -> None:
        """The optimizer has stepped: move the objective to the next step. A collective call.

        skipped (0-d or a bool, the same on all ranks): the weights stayed as they were, and what
        was measured must not move the objective; by default, if the loss was not finite. Schedules
        go on by the clock. progress: where the run is in the next step, for a controller
        that follows the learning rate; by default the number of the step alone.
        """
        if not self._counted:
            raise RuntimeError(
                "objective.step() without a loss since the last one: it needs objective.loss(…) "
                "with gradients on"
            )
        if self.controller is not None and self.controller.scales_lr and self._hooks is None:
            raise RuntimeError(
                f"controller {self.config.name} scales the learning rate: give optimizer=, or call "
                "objective.attach(optimizer)"
            )
        if self._hooks is not None and skipped is None and not self._stepped:
            raise RuntimeError(
                "objective.step() without a step of the optimizer: call it once for each, not for "
                "each micro-batch; of one that was skipped (GradScaler), step(skipped=True)"
            )
        self.all_reduce()
        if skipped is None:
            skipped = 1.0 - self.statistics.column("loss").sum().isfinite().float()
        skipped = torch.as_tensor(skipped, device=self.device)
        progress = progress or self._next()
        self.used = self.moved()
        self.update(self.statistics, skipped, progress, self._unknown)
        self.steps_done = progress.step
        self._between_steps()

    def _between_steps(self) -> None:
        self._counted = self._reduced = False
        self._stepped = 0

    def _next(self) -> Progress:
        done, steps = self.steps_done + 1, self.total_steps or 1
        if isinstance(self.controller, LearningRate):
            raise ConfigError(
                "controller.name=lr follows the learning rate: give step(progress=Progress(step, "
                "steps, lr, warming)), lr that of the next step as a share of its peak"
            )
        if self.controller is not None and done > steps:
            warn(f"step {done} of total_steps={steps}: the objective stays as it is at the end")
        return Progress(done, steps, lr=1.0, warming=False)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on every step of this optimizer is taken at its learning rate times `lr_scale`,
        where the controller scales it, and two with no `step` of the objective between them are an
        error (OptimizerHooks). The one before is left; a second one is yours to scale."""
        self.detach()
        self._hooks = OptimizerHooks(optimizer, lambda: self.lr_scale, self._optimizer_steps)

    def detach(self) -> None:
        """Leave the optimizer alone again."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None

    def _optimizer_steps(self) -> None:
        if self._stepped == 2:
            raise RuntimeError(
                "the optimizer has stepped twice without objective.step(): call it after every step"
            )
        self._stepped = 1 + self._counted  # torch itself steps to make an optimizer's state

    def metrics(self) -> dict[str, float]:
        """Of the last step, over all ranks: means over the target tokens (`loss`, `nll` in nats,
        `mean_p`, `weight`), their number `tokens`, and what was moved, as the step used it
        (`alpha`, `lr_scale`, …); of several sources also `NAME/alpha`. Waits for the device."""
        if self._counted:
            raise RuntimeError(
                "objective.metrics() between a loss and its step: call it after step"
            )
        return figures_of(self.statistics, self.names, self.used)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings: what `load_state_dict` continues from, to the bit. The same
        on every rank, after `step`."""
        tensors = {name: value.clone() for name, value in self.tensors().items()}
        return {"steps_done": self.steps_done, "made_of": self._made_of(), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, with nothing counted. Raises CheckpointError where it is of
        another objective (of a function: of another name), controller, run or number of sources."""
        check_made_of(state["made_of"], self._made_of())
        self.load_tensors(state["tensors"])
        self.steps_done = state["steps_done"]
        self._between_steps()

    def _made_of(self) -> dict[str, str]:
        """What must be as it was for a saved state to mean the same."""
        exempt = self.function.exempt
        return {
            "objective": repr(self.settings),
            "controller": repr(self.config),
            "sources": ", ".join(self.names),
            "exempt": str([] if exempt is None else exempt.tolist()),
            "total_steps": str(self.total_steps),
        }
