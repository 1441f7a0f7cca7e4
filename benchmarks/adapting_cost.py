"""What adapting costs per step: the time of `MovedObjective.update` under controller.name=auto,
beside that under a fixed objective.

    python benchmarks/adapting_cost.py            # writes benchmarks/results/adapting_cost.json

The rest of a step is the same: the statistics are gathered and reduced whatever the controller.
Divide by the time of your step.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from adaptsft.config.schema import ControllerConfig, ObjectiveConfig, TrainConfig
from adaptsft.controllers.moved_objective import MovedObjective
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.state import initial_state
from adaptsft.statistics.step import StepStatistics
from adaptsft.training.environment import environment
from adaptsft.training.optim import progress_at

RESULT = Path(__file__).parent / "results" / "adapting_cost.json"
STEPS, ROUNDS, SOURCES = 200, 21, 4


def milliseconds(name: str, device: torch.device) -> float:
    """Mean over STEPS of one call, the device's work included."""
    state = initial_state(ObjectiveConfig(), SOURCES, device)
    objective = MovedObjective(REGISTRY["concentration"], state, ControllerConfig(name=name))
    found, skip = StepStatistics(SOURCES, device), torch.zeros((), device=device)
    found.buffer.fill_(1.0)
    began = time.perf_counter()
    for done in range(1, STEPS + 1):
        objective.update(found, skip, progress_at(done, STEPS + 1, TrainConfig()))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - began) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result")
    out = parser.parse_args().out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names, rounds = ("fixed", "auto"), []
    for _ in range(ROUNDS):  # interleaved
        rounds.append({name: milliseconds(name, device) for name in names})
    median = {name: statistics.median(one[name] for one in rounds) for name in names}
    added = statistics.median(one["auto"] - one["fixed"] for one in rounds)
    result = {"environment": environment(), "sources": SOURCES}
    result |= {"milliseconds": median, "added_milliseconds": added}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"updating the objective takes {median['fixed']:.3f} ms a step where it is fixed,")
    print(f"{median['auto']:.3f} ms under auto: {added:.3f} ms more ({out})")


if __name__ == "__main__":
    sys.exit(main())
