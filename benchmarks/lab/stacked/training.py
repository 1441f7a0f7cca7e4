"""Many runs of adaptsft.train at once: the same samplers, objectives, controllers, statistics and
optimizer, on a stacked model."""

import dataclasses
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from adaptsft.config.schema import Config, TrainConfig
from adaptsft.controllers.moved_objective import MovedObjective
from adaptsft.data.sampler import BatchSampler
from adaptsft.errors import NonFiniteError, require
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import build_objective, exempt_ids
from adaptsft.objectives.state import ObjectiveState, initial_state, per_token, with_exempt_tokens
from adaptsft.statistics.step import COLUMNS, StepStatistics
from adaptsft.training.normalizer import LossNormalizer
from adaptsft.training.optim import learning_rate, progress_at
from adaptsft_kernels import TokenOutputs, TokenStatistics
from benchmarks.lab.stacked.examples import Examples, Step
from benchmarks.lab.stacked.model import StackedLlama, Weights, stacked, take
from benchmarks.lab.stacked.tokens import token_statistics

NLL, P = COLUMNS.index("nll"), COLUMNS.index("p")
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class StackedRun:
    """One of the runs: its configuration, its data, and the weights that it starts from."""

    config: Config
    examples: Examples
    weights: dict[str, Tensor]
    tokenizer: Any


class Running:
    """A run between its steps. `first` is its first source among those of all runs."""

    def __init__(self, run: StackedRun, first: int):
        self.config, self.examples, self.first = run.config, run.examples, first
        self.sources = len(run.examples.names)
        self.sampler = BatchSampler(run.examples, run.config, 1)  # type: ignore[arg-type]
        objective, ends = run.config.objective, [run.tokenizer.eos_token_id]
        function = build_objective(objective)
        if ids := exempt_ids(objective, run.tokenizer, ends):
            function = dataclasses.replace(function, exempt=torch.tensor(ids))
        require(
            "reference" not in function.needs,
            f"objective.name={objective.name} reads the base model, which the lab's fast mode does "
            "not measure; run it without --fast",
        )
        state = initial_state(objective, self.sources, CPU)
        self.objective = MovedObjective(function, state, run.config.controller)
        self.statistics = StepStatistics(self.sources, CPU)
        self.normalizer = LossNormalizer(run.config)
        self.lines: list[dict[str, Any]] = []

    def line(self, step: int) -> dict[str, Any]:
        """What metrics.jsonl says of a step, as far as the lab reads it."""
        table, state = self.statistics.table.numpy(), self.objective.state

        def of(sums: Any, source: slice) -> dict[str, float | None]:
            means = {"nll": sums[NLL], "mean_p": sums[P]}.items()
            keys = ("alpha", "floor", "lower")
            moved = {key: float(getattr(state, key)[source].mean()) for key in keys}
            return {key: float(v / sums[0]) if sums[0] else None for key, v in means} | moved

        known: dict[str, Any] = {"step": step} | of(table.sum(0), slice(None))
        if (scale := self.objective.lr_scale) is not None:
            known["lr_scale"] = float(scale)
        if self.sources > 1:
            names = enumerate(self.examples.names)
            known["sources"] = {name: of(table[i], slice(i, i + 1)) for i, name in names}
        return known


def train_stacked(
    model: StackedLlama, runs: Sequence[StackedRun]
) -> list[tuple[dict[str, Tensor], list[dict[str, Any]]]]:
    """Train all runs; returns of each the weights, and the lines of its metrics. All must have the
    same `train` group. Raises NonFiniteError where a loss is not finite: adaptsft.train would skip
    that step."""
    # those of one objective stand together, so that it is evaluated once for all of them
    order = sorted(range(len(runs)), key=lambda i: repr(runs[i].config.objective))
    running: list[Running] = []
    for i in order:
        running.append(Running(runs[i], sum(run.sources for run in running)))
    train = runs[0].config.train
    weights = stacked([runs[i].weights for i in order])
    optimizer = build_optimizer(weights, train)
    table = StepStatistics(sum(run.sources for run in running), CPU)
    for step in range(train.max_steps):
        tokens = Step(running, step)
        hidden = model.hidden(weights, tokens.inputs)
        seen = hidden.gather(1, tokens.index[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = model.head(weights, seen)
        logits.backward(gradient_of_logits(logits, running, tokens, table))
        clip(weights, train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, train.max_steps, train)
        scaled_step(optimizer, weights, [run.objective.lr_scale for run in running])
        progress, skipped = progress_at(step + 1, train.max_steps, train), torch.zeros(())
        for run in running:
            run.lines.append(run.line(step + 1))
            run.objective.update(run.statistics, skipped, progress)
    trained = {i: (take(weights, place), running[place].lines) for place, i in enumerate(order)}
    return [trained[i] for i in range(len(runs))]


@torch.no_grad()
def gradient_of_logits(
    logits: Tensor, running: Sequence[Running], tokens: Step, table: StepStatistics
) -> Tensor:
    """weight (p_i - delta_iy) / the run's target tokens, [R, n, V]; leaves the step's statistics in
    every run."""
    runs, n, _ = logits.shape
    wanted = sorted(set().union(*(run.objective.function.needs for run in running)))
    statistics, dz = token_statistics(
        logits.flatten(0, 1), tokens.all_targets.flatten(), wanted, tokens.sequence
    )
    states = [run.objective.state for run in running]
    state = ObjectiveState(*(torch.cat(fields) for fields in zip(*states, strict=True)))
    parts, begin = [], 0
    for _, of in groupby(running, key=lambda run: repr(run.config.objective)):
        same = list(of)
        span = slice(begin * n, (begin + len(same)) * n)
        part = TokenStatistics(*(part_of(field, span) for field in statistics))
        parts.append(evaluate(same[0].objective.function, part, state, tokens, span))
        begin += len(same)
    loss, weight, kept = map(torch.cat, zip(*parts, strict=True))
    valid = tokens.valid.flatten()
    outputs = TokenOutputs(*(field[valid] for field in (*statistics[:6], loss, weight)))
    table.reset()
    table.add(outputs, kept[valid], tokens)
    if not bool(table.table.isfinite().all()):
        raise NonFiniteError(
            "a run of the stack had a loss that is not finite, which adaptsft.train skips and the "
            "lab's fast mode does not; run these without --fast"
        )
    scale = torch.empty(runs)
    for place, run in enumerate(running):
        run.statistics.table.copy_(table.table[run.first : run.first + run.sources])
        correction = run.normalizer.correction(run.statistics, run.objective.state)
        scale[place] = correction / tokens.count[place]
    factor = (weight * valid).view(runs, n) * scale[:, None]
    return dz.view_as(logits).mul_(factor[..., None])


def part_of(field: Any, span: slice) -> Any:
    """Of a field of TokenStatistics; those on request may be absent."""
    return None if field is None else field[span]


def evaluate(
    function: Objective, part: TokenStatistics, state: ObjectiveState, tokens: Step, span: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, weight and `kept` of the tokens in `span`, [n] each."""
    source, targets = tokens.own_source.flatten()[span], tokens.all_targets.flatten()[span]
    state, source = with_exempt_tokens(state, source, targets, function.exempt)
    own = per_token(state, source)
    loss, weight = function(part, own)
    return loss, weight, function.keep(part, own)


def build_optimizer(weights: Weights, train: TrainConfig) -> torch.optim.AdamW:
    """That of adaptsft.training.optim, whose matrices have one more dimension here."""
    matrices = [weight for weight in weights.values() if weight.ndim >= 3]
    vectors = [weight for weight in weights.values() if weight.ndim < 3]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (train.betas[0], train.betas[1])
    return torch.optim.AdamW(groups, lr=train.lr, betas=betas, eps=train.eps, fused=True)


@torch.no_grad()
def scaled_step(
    optimizer: torch.optim.AdamW, weights: Weights, scales: Sequence[Tensor | None]
) -> None:
    """The optimizer's step, in every run shortened by its scale, if any."""
    before = {}
    if any(scale is not None for scale in scales):
        before = {name: weight.clone() for name, weight in weights.items()}
    optimizer.step()
    optimizer.zero_grad()
    factor = torch.stack([torch.ones(()) if scale is None else scale for scale in scales])
    for name, old in before.items():
        weights[name].copy_(old.lerp(weights[name], factor.view(-1, *[1] * (old.ndim - 1))))


@torch.no_grad()
def clip(weights: Weights, max_norm: float) -> None:
    """Clip the norm of every run's gradient to max_norm (0: never)."""
    gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    factor = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    if max_norm > 0:
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))
