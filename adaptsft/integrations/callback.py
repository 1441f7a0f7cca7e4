"""What any trainer of the transformers family needs of an adaptive objective: a callback that makes
it, moves it after every optimizer step, and saves it with the trainer's checkpoints."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.controllers.settings import settings_of
from adaptsft.errors import CheckpointError


class ObjectiveCallback(TrainerCallback, ExportableState):
    """Holds `objective`, an AdaptiveObjective, from the beginning of training on. Its state lies in
    `trainer_state.json` of every checkpoint, under `stateful_callbacks`."""

    def __init__(
        self, objective: Any = "auto", *, controller: Any = None, exempt: Sequence[int] = ()
    ):
        """As those of AdaptiveObjective. Raises ConfigError."""
        settings_of(objective, controller)  # refused now, not when training starts
        self.named, self.controller, self.exempt = objective, controller, exempt
        self.objective: AdaptiveObjective | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.objective is not None:  # a training before that was interrupted
            self.objective.detach()
        optimizer = given["optimizer"]
        self.objective = AdaptiveObjective(
            self.named,
            controller=self.controller,
            total_steps=state.max_steps,
            optimizer=getattr(optimizer, "optimizer", optimizer),  # inside that of accelerate
            exempt=self.exempt,
            device=args.device,
        )
        name = type(self).__name__
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(name)
            if not saved or not saved["attributes"]["objective"]:
                raise CheckpointError(
                    f"the checkpoint of step {state.global_step} holds no state of an adaptive "
                    "objective: it was saved by another trainer; start anew, or train on from its "
                    "model"
                )
            self.objective.load_state_dict(decoded(saved["attributes"]["objective"]))
        state.stateful_callbacks[name] = self.state()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        assert self.objective is not None
        skipped = None
        if getattr(given["optimizer"], "step_was_skipped", False):  # fp16: the gradient overflowed
            skipped = torch.ones((), device=self.objective.device)
        self.objective.step(skipped=skipped)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        assert self.objective is not None
        self.objective.detach()

    def state(self) -> dict[str, Any]:
        """What transformers writes as JSON."""
        saved = None if self.objective is None else encoded(self.objective.state_dict())
        return {"args": {}, "attributes": {"objective": saved}}

    def metrics(self) -> dict[str, float]:
        """Figures of the last step for a log, over all ranks. `loss` there is the trainer's own."""
        assert self.objective is not None
        found = self.objective.metrics()
        return {name: value for name, value in found.items() if name not in ("loss", "tokens")}


def encoded(state: dict[str, Any]) -> dict[str, Any]:
    """The state_dict of an objective as JSON holds it, to the bit: fp32 and fp64 are exact there,
    NaN too in Python's dialect."""
    tensors = {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "values": value.tolist()}
        for name, value in state["tensors"].items()
    }
    return state | {"tensors": tensors}


def decoded(saved: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        name: torch.tensor(value["values"], dtype=getattr(torch, value["dtype"]))
        for name, value in saved["tensors"].items()
    }
    return saved | {"tensors": tensors}
