"""Closed loops: alpha or a threshold from what the statistics say. docs/controllers.md explains each with its use.

Constants follow the state's row shape [sources + 1]. Conditions on the progress are decided on the host, those on statistics on
the device (torch.where), so that nothing waits.
"""

import math

import torch
from torch import Tensor

from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.statistics.step import (
    BINS,
    LOGIT_RANGE,
    SourceStatistics,
    bin_centres,
    histogram_quantile,
)


def ramp(x: Tensor, low: float, high: float) -> Tensor:
    """0 below low, 1 above high, straight between."""
    return ((x - low) / (high - low)).clamp(0.0, 1.0)


def towards(value: Tensor, goal: Tensor, step: float) -> Tensor:
    """`value` moved towards `goal` by at most `step`."""
    return value + (goal - value).clamp(-step, step)


def ema(old: Tensor, new: Tensor, decay: float) -> Tensor:
    """decay * old + (1 - decay) * new; the new value where there is no old one (NaN)."""
    return torch.where(old.isnan(), new, decay * old + (1.0 - decay) * new)


def calibrated(
    state: State, seen: SourceStatistics, value: Tensor, moment: Progress, window: float
) -> State:
    """`measured`: the mean of `value` over the tokens of the first `window` of the steps, frozen then; of a source that had none in
    them, over those of the first step that it has some in. Where the base model's own statistics were given, `tokens` is infinite and
    nothing is added to them."""
    tokens = state["tokens"] + seen.tokens
    mean = state["measured"] + (value - state["measured"]) * seen.tokens / tokens
    if moment.progress <= window:
        return state | {"measured": mean, "tokens": tokens}
    late = state["tokens"] == 0
    return state | {
        "measured": torch.where(late, mean, state["measured"]),
        "tokens": torch.where(late, tokens, state["tokens"]),
    }


def uncalibrated(rows: int, device: torch.device, base: Tensor | None) -> State:
    """What `calibrated` starts from: nothing, or the base model's `base` [rows]."""
    if base is not None:
        return {"measured": base, "tokens": torch.full_like(base, math.inf)}
    return {"measured": full(rows, 0.0, device), "tokens": full(rows, 0.0, device)}


def ready(state: State, moment: Progress, window: float) -> Tensor:
    """bool [rows]: is `measured` known?"""
    return (
        state["tokens"].isinf()
        if moment.progress <= window
        else torch.ones_like(state["tokens"], dtype=torch.bool)
    )


def after_window(state: State) -> Tensor:
    """bool [rows]: has the rule that follows the window been applied? `anchored` is the source's own memory of it: in the step that ends
    the window a source may have no token, or the step may be skipped."""
    return state["anchored"] > 0


@register("anchored_concentration")
class AnchoredConcentration(Controller):
    """C1. s = p^(A c), A = high (1 - u) + low u, u = clip((b - .3) / .5, 0, 1), b = the base model's share of tokens with p < .2.

    Until b is known (`window`, or controller.base_stats) A = 1, which is DEFT.
    """

    objective = "concentration"
    high: float = 2.0
    low: float = 0.1
    window: float = 0.05

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        state = uncalibrated(rows, device, None if base is None else base.low)
        return state | {
            "alpha": torch.where(state["tokens"].isinf(), self.amplitude(state["measured"]), 1.0)
        }

    def amplitude(self, share: Tensor) -> Tensor:
        return self.high + (self.low - self.high) * ramp(share, 0.3, 0.8)

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        state = calibrated(state, seen, seen.low, moment, self.window)
        return state | {
            "alpha": torch.where(
                ready(state, moment, self.window), self.amplitude(state["measured"]), 1.0
            )
        }


@register("half_gate")
class HalfGate(Controller):
    """C2. alpha = clip(gate / n, low, high): the median sequence of the base model, n nats per token, has the weight exp(-gate).

    gate = 1 is TALR with tau frozen at the base. The running median (EMA) may lower alpha at once, and raise it by at most `rise` per
    1 % of the steps. Until n is known (`window`, or controller.base_stats) alpha = low.
    """

    gate: float = 1.0
    low: float = 0.05
    high: float = 3.0
    rise: float = 0.02
    decay: float = 0.9
    window: float = 0.05

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        state = uncalibrated(rows, device, None if base is None else base.sequence_nll)
        alpha = torch.where(state["tokens"].isinf(), self.of(state["measured"]), self.low)
        return state | {
            "alpha": alpha,
            "running": torch.full_like(alpha, math.nan),
            "anchored": torch.zeros_like(alpha),
        }

    def of(self, nll: Tensor) -> Tensor:
        return (self.gate / nll.clamp(min=1e-6)).clamp(self.low, self.high)

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        state = calibrated(state, seen, seen.sequence_nll, moment, self.window)
        running = ema(state["running"], seen.sequence_nll, self.decay)
        if moment.progress <= self.window:
            return state | {
                "running": running,
                "alpha": torch.where(state["tokens"].isinf(), self.of(state["measured"]), self.low),
            }
        before = torch.where(
            after_window(state),
            state["alpha"],
            torch.maximum(state["alpha"], self.of(state["measured"])),
        )
        alpha = torch.minimum(self.of(running), before + self.rise * 100 / moment.steps)
        return state | {"running": running, "alpha": alpha, "anchored": torch.ones_like(alpha)}


@register("retained_mass")
class RetainedMass(Controller):
    """C3. alpha solves E[p^alpha (1 - p)] = share * E[1 - p]: so much of NLL's gradient is kept. From the histogram of p, by a table.

    The histogram is an EMA; alpha starts at low and moves by at most `step` per step.
    """

    share: float = 0.3
    low: float = 0.02
    high: float = 1.0
    decay: float = 0.95
    step: float = 0.02

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        histogram = torch.full((rows, BINS), math.nan, dtype=torch.float64, device=device)
        return {
            "alpha": full(rows, self.low, device),
            "histogram": histogram if base is None else base.histogram,
        }

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        histogram = ema(state["histogram"], seen.histogram, self.decay)
        return {
            "alpha": towards(state["alpha"], self.solve(histogram), self.step),
            "histogram": histogram,
        }

    def solve(self, histogram: Tensor) -> Tensor:
        """alpha [rows] of the histogram [rows, BINS], on a grid of 128 values: the retained mass falls as alpha rises."""
        p = bin_centres(histogram.device)
        grid = torch.linspace(self.low, self.high, 128, dtype=torch.float64, device=p.device)
        mass = histogram @ (p ** grid[:, None] * (1 - p)).T
        kept = mass / (histogram @ (1 - p)).clamp(min=1e-12)[:, None]
        index = (
            (kept >= self.share).sum(1).sub(1).clamp(min=0)
        )  # the largest alpha that keeps enough
        return grid[index]


@register("learnability")
class Learnability(Controller):
    """C4. alpha falls as far as tokens that the base model finds unlikely (p < .2) improve before they are trained on.

    g = (slow - fast) / slow, EMAs of their NLL; wanted alpha = low + (ceiling - low) (1 - clip(g / g0, 0, 1)), approached by at most
    `step` per step after `window`. The ceiling falls from high to low as the NLL of tokens with base p > .5 rises by `damage` nats above
    where it was. Needs controller.base_logp, and a single epoch: the second measures memory.
    """

    needs_base_logp = True
    low: float = 0.05
    high: float = 1.0
    g0: float = 0.1
    fast: float = 0.9
    slow: float = 0.97
    step: float = 0.15
    window: float = 0.08
    damage: float = 0.5

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        unknown = {
            key: full(rows, math.nan, device) for key in ("fast", "slow", "known", "known_first")
        }
        return unknown | {"alpha": full(rows, self.low, device)}

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        new, known = seen.base_low_tokens > 0, seen.base_high_tokens > 0
        fast = torch.where(new, ema(state["fast"], seen.base_low_nll, self.fast), state["fast"])
        slow = torch.where(new, ema(state["slow"], seen.base_low_nll, self.slow), state["slow"])
        first = torch.where(
            known & state["known_first"].isnan(), seen.base_high_nll, state["known_first"]
        )
        known_now = torch.where(
            known, ema(state["known"], seen.base_high_nll, self.fast), state["known"]
        )
        memory = {"fast": fast, "slow": slow, "known": known_now, "known_first": first}
        if moment.progress <= self.window:
            return memory | {"alpha": state["alpha"]}
        # a source without low tokens has nothing to learn (g = 0), one without high tokens nothing to damage
        g = ((slow - fast) / slow.clamp(min=1e-3)).nan_to_num(0.0)
        ceiling = self.high - (self.high - self.low) * ramp(
            (known_now - first).nan_to_num(0.0), 0.0, self.damage
        )
        wanted = self.low + (ceiling - self.low) * (1 - ramp(g, 0.0, self.g0))
        return memory | {"alpha": towards(state["alpha"], wanted, self.step)}


@register("quantile_tracker")
class QuantileTracker(Controller):
    """C5. lower = min(cap, the running q-quantile of p) where the running median of p is above .2; else 0, which masks nothing.

    Acts through soft_threshold: the gate is sigmoid((log p - log lower) / T).
    """

    objective = "soft_threshold"
    moves = ("lower",)
    q: float = 0.1
    cap: float = 0.2
    decay: float = 0.95

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        histogram = torch.full((rows, BINS), math.nan, dtype=torch.float64, device=device)
        if base is not None:
            return {"histogram": base.histogram, "lower": self.of(base.histogram)}
        return {"histogram": histogram, "lower": full(rows, 0.0, device)}

    def of(self, histogram: Tensor) -> Tensor:
        median, low = (
            histogram_quantile(histogram, q, LOGIT_RANGE).sigmoid() for q in (0.5, self.q)
        )
        return torch.where(median > 0.2, low.clamp(max=self.cap), 0.0).nan_to_num(0.0)

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        histogram = ema(state["histogram"], seen.histogram, self.decay)
        return {"histogram": histogram, "lower": self.of(histogram)}


@register("learn_then_lean")
class LearnThenLean(Controller):
    """C6. alpha = 0 while the share of tokens with p < .2 falls, then up by 1 per `rise` of the run, as far as the base model's share
    with p > .5 allows (ceiling = .5 + that share, at most 1); down at the same rate when the share rises again.

    Progress g = (slow - fast) / slow, EMAs of that share; alpha's speed is 1 where g = 0, 0 at g = patience and -1 from 2 patience on
    or where |g| is as large: smooth, so that rounding cannot flip it.
    """

    patience: float = 0.04
    rise: float = 0.15
    fast: float = 0.9
    slow: float = 0.97
    window: float = 0.05

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        unknown = {key: full(rows, math.nan, device) for key in ("fast", "slow")}
        return (
            uncalibrated(rows, device, None if base is None else base.high)
            | unknown
            | {"alpha": full(rows, 0.0, device)}
        )

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        state = calibrated(state, seen, seen.high, moment, self.window)
        fast, slow = (
            ema(state["fast"], seen.low, self.fast),
            ema(state["slow"], seen.low, self.slow),
        )
        state = state | {"fast": fast, "slow": slow}
        if moment.progress <= self.window:
            return state
        g = (slow - fast).abs() / slow.clamp(min=1e-3)
        speed = (1 - g / self.patience).clamp(-1.0, 1.0) / (self.rise * moment.steps)
        ceiling = (0.5 + state["measured"]).clamp(max=1.0)
        return state | {"alpha": torch.minimum((state["alpha"] + speed).clamp(min=0.0), ceiling)}


@register("majority")
class Majority(Controller):
    """C7. s = p^(A c). A = 0 for the first `window` of the run, while h, the share of tokens with p > .5, is measured; then A = 1 where
    h > .5 (the base agrees with most labels: surprises are probably noise), else 0 (they are probably news).

    Then A rises by 1 per `rise` of the run while g < patience, g = (slow - fast) / slow from EMAs of the share with p < .2, and falls as
    fast otherwise; a floor lifts it from 0 to 1 between `floor_from` and `floor_to` of the run. The published lead, as it stands.
    """

    objective = "concentration"
    patience: float = 0.04
    rise: float = 0.15
    fast: float = 0.9
    slow: float = 0.97
    window: float = 0.05
    floor_from: float = 0.4
    floor_to: float = 0.8

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        unknown = {key: full(rows, math.nan, device) for key in ("fast", "slow")}
        state = uncalibrated(rows, device, None if base is None else base.high) | unknown
        alpha = torch.where(state["tokens"].isinf(), (state["measured"] > 0.5).double(), 0.0)
        return state | {"alpha": alpha, "anchored": torch.zeros_like(alpha)}

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        state = calibrated(state, seen, seen.high, moment, self.window)
        fast, slow = (
            ema(state["fast"], seen.low, self.fast),
            ema(state["slow"], seen.low, self.slow),
        )
        state = state | {"fast": fast, "slow": slow}
        if moment.progress <= self.window:
            return state
        before = torch.where(
            after_window(state), state["alpha"], (state["measured"] > 0.5).double()
        )
        g = (slow - fast) / slow.clamp(min=1e-3)
        speed = torch.where(g < self.patience, 1.0, -1.0) / (self.rise * moment.steps)
        floor = min(
            max((moment.progress - self.floor_from) / (self.floor_to - self.floor_from), 0.0), 1.0
        )
        return state | {
            "alpha": (before + speed).clamp(floor, 1.0),
            "anchored": torch.ones_like(before),
        }
