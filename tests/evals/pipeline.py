"""What the tests of the three stages share: the commands, and what they leave in folders."""

import json
from pathlib import Path

from adaptsft.evals import samples
from adaptsft.evals.__main__ import main
from tests.conftest import REPO

SCHEMA = json.loads((REPO / "adaptsft" / "evals" / "result.schema.json").read_text())
# the gold is B; what the two graders make of an answer: m1 takes the box first, the paper's never
BOTH, NEITHER, M1_ALONE = "\\boxed{B}", "\\boxed{A}", "\\boxed{B} The answer is A."


def evals(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def samples_of(folder: Path) -> dict[str, dict]:
    return samples.Samples(folder, -1).records


def results_of(out: Path) -> dict[str, dict]:
    return {
        str(path.parent.relative_to(out)): json.loads(path.read_text())
        for path in sorted(out.rglob("result.json"))
    }
