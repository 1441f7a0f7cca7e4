"""What the sandbox is given to run, and what its messages mean."""

import json
from typing import Any

from adaptsft.evals.code import values
from adaptsft.evals.code.problems import Problem

# bytes of JSON; a test whose expected output is larger is not run, and is counted in the results
LARGEST_OUTPUT = 16 * 2**20


def encode_job(
    code: str,
    problem: Problem,
    inputs: list[list[Any]],
    limits: list[list[float]],
    load_limits: list[float],
) -> bytes:
    """JSON for child.run_job.

    For each group of tests: its inputs, a limit for each of them, and one for loading the code, in
    seconds of CPU.
    """
    groups = [
        {
            "inputs": [[values.encode(item) for item in arguments] for arguments in group],
            "limits": seconds,
            "load_limit": load,
        }
        for group, seconds, load in zip(inputs, limits, load_limits, strict=True)
    ]
    job = {
        "code": code,
        "entry_point": problem.entry_point,
        "groups": groups,
        "most": LARGEST_OUTPUT,
    }
    return json.dumps(job).encode()


def failure(message: dict[str, Any]) -> str | None:
    """Why a test did not return, in the words of a (hostile) message, or None."""
    if message.get("timeout"):
        return "timeout"
    if "error" in message:
        return f"raised {str(message['error'])[:200]}"
    return None if isinstance(message.get("value"), str) else "output too large"
