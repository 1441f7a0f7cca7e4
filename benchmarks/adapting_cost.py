"""What adapting costs per step, whatever the model:

- `added_milliseconds`: moving the objective under controller.name=auto, over leaving it fixed. In
  adaptsft.train that is all, since the statistics are gathered whatever the controller.
- `loops`: in a loop of one's own, AdaptiveObjective("auto") (its loss, its statistics of the
  target tokens, its step) over NLL by the same kernel without any of it. The head is small, so that
  the difference, which does not depend on it, is not lost in the noise.

    python benchmarks/adapting_cost.py            # writes benchmarks/results/adapting_cost.json

Divide by the time of your step.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from adaptsft import AdaptiveObjective
from adaptsft.config.schema import ControllerConfig, ObjectiveConfig, TrainConfig
from adaptsft.controllers.moved_objective import MovedObjective
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import NLL
from adaptsft.objectives.state import initial_state
from adaptsft.statistics.step import StepStatistics
from adaptsft.training.environment import environment
from adaptsft.training.optim import progress_at
from adaptsft_kernels import linear_objective

RESULT = Path(__file__).parent / "results" / "adapting_cost.json"
STEPS, ROUNDS, SOURCES = 200, 21, 4
TOKENS, WIDTH, VOCABULARY, LOOP_STEPS = (256, 4096), 32, 256, 10


def moving(name: str, device: torch.device) -> Callable[[int], None]:
    """One update of an objective under this controller."""
    state = initial_state(ObjectiveConfig(), SOURCES, device)
    objective = MovedObjective(REGISTRY["concentration"], state, ControllerConfig(name=name))
    found, skip = StepStatistics(SOURCES, device), torch.zeros((), device=device)
    found.buffer.fill_(1.0)

    def step(done: int) -> None:
        objective.update(found, skip, progress_at(done, STEPS + 1, TrainConfig()))

    return step


def looping(adaptive: bool, tokens: int, device: torch.device) -> Callable[[int], None]:
    """Loss and backward of a head on this many targets in 16 sequences."""
    torch.manual_seed(0)
    hidden = torch.randn(16, tokens // 16, WIDTH, device=device, requires_grad=True)
    weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH, device=device))
    targets = torch.randint(0, VOCABULARY, (16, tokens // 16), device=device)
    optimizer = torch.optim.AdamW([weight], fused=True)
    objective = AdaptiveObjective("auto", total_steps=1 << 20, optimizer=optimizer, device=device)

    def step(done: int) -> None:
        if adaptive:
            loss, _ = objective.loss(hidden, weight, targets)
        else:
            loss, _ = linear_objective(
                hidden.flatten(0, 1), weight, targets.flatten(), NLL, scale=1 / tokens
            )
        loss.backward()
        if adaptive:
            objective.step(skipped=False)  # without the optimizer's own

    return step


def milliseconds(step: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Mean over `steps` of one call, the device's work included."""
    began = time.perf_counter()
    for done in range(1, steps + 1):
        step(done)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - began) / steps


def compared(
    kinds: Mapping[str, Callable[[], Callable[[int], None]]], steps: int, device: torch.device
) -> tuple[dict[str, float], float]:
    """Medians of the two kinds over ROUNDS, interleaved, and of the second less the first."""
    rounds = [
        {name: milliseconds(make(), steps, device) for name, make in kinds.items()}
        for _ in range(ROUNDS)
    ]
    first, second = kinds
    added = statistics.median(one[second] - one[first] for one in rounds)
    return {name: statistics.median(one[name] for one in rounds) for name in kinds}, added


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result")
    out = parser.parse_args().out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    movers = {name: partial(moving, name, device) for name in ("fixed", "auto")}
    times, moved = compared(movers, STEPS, device)
    loops = []
    for tokens in TOKENS:
        kinds = {
            "nll": partial(looping, False, tokens, device),
            "auto": partial(looping, True, tokens, device),
        }
        loop_times, added = compared(kinds, LOOP_STEPS, device)
        loops.append({"tokens": tokens, "milliseconds": loop_times, "added_milliseconds": added})
    result = {
        "environment": environment(),
        "sources": SOURCES,
        "milliseconds": times,
        "added_milliseconds": moved,
        "loops": loops,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"moving the objective under auto: {moved:.3f} ms a step")
    for loop in loops:
        added = loop["added_milliseconds"]
        print(f"AdaptiveObjective over NLL, {loop['tokens']} tokens: {added:.3f} ms a step")
    print(out)


if __name__ == "__main__":
    sys.exit(main())
