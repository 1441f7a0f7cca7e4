"""The verdict on one program: its outputs on all tests, compared with those expected."""

import json
import math
from contextlib import closing
from typing import Any

from adaptsft.errors import UserError
from adaptsft.evals.code import oracle, sandbox, values
from adaptsft.evals.code.expected import Expected
from adaptsft.evals.code.job import encode_job, failure
from adaptsft.evals.code.problems import Problem

# Limits of evalplus 0.3.1 (evalplus/config.py, untrusted_check), in seconds; of CPU here, so that a
# busy machine does not change verdicts.
TEST_SECONDS, TIMES_REFERENCE, ALL_TESTS_SECONDS = 1.0, 4.0, 60.0
# An output may take this many bytes, and four times what the expected one takes; one that takes
# more is not equal to it.
SLACK = 2**16


def judge(problem: Problem, expected: Expected, solution: str) -> dict[str, Any]:
    """Runs one solution on all tests, until the first that it fails.

    Returns task_id; base and plus: "pass" or "fail"; reason: why not, or None; test: number of the
    failed test (base first), or None; timeout: whether time was the reason; untested: tests left
    out because their expected output is too large.
    """
    split = len(problem.base)
    groups = [
        [i for i in indices if expected.outputs[i] is not None]
        for indices in (range(split), range(split, len(expected.outputs)))
    ]
    order = [i for group in groups for i in group]
    tests = [*problem.base, *problem.plus]
    limits = {i: max(TEST_SECONDS, TIMES_REFERENCE * expected.seconds[i]) for i in order}
    budgets = [_budget(group, expected, limits) for group in groups]
    inputs = [[tests[i] for i in group] for group in groups]
    job = encode_job(
        solution, problem, inputs, [[limits[i] for i in group] for group in groups], budgets
    )
    cpu = math.ceil(sum(budgets))
    texts = {i: expected.outputs[i] or "" for i in order}
    passed, atol, reason = 0, problem.atol, None
    try:
        most = [4 * len(texts[i]) + SLACK for i in order]
        with closing(sandbox.run(job, most, sandbox.Limits(cpu=cpu, wall=10.0 * cpu))) as messages:
            for index, message in zip(order, messages, strict=True):
                if passed == len(groups[0]):
                    atol = problem.atol
                reason = failure(message)
                if reason is None:
                    wanted = values.decode(json.loads(texts[index]))
                    out = _decoded(message["value"])
                    atol = oracle.tolerance(atol, wanted)
                    if not oracle.is_right(problem, tests[index], out, wanted, atol):
                        reason = "wrong answer"
                if reason is not None:
                    break
                passed += 1
    except sandbox.RunError as error:
        reason = str(error)
    except sandbox.SandboxError as error:
        raise UserError(
            f"{problem.task_id}: the sandbox did not start: {error}; nothing of this was counted. "
            "Try fewer --workers"
        ) from None
    return {
        "task_id": problem.task_id,
        "base": "pass" if passed >= len(groups[0]) else "fail",
        "plus": "pass" if passed == len(order) and reason is None else "fail",
        "reason": reason,
        "test": order[passed] if reason is not None and passed < len(order) else None,
        "timeout": reason == "timeout",
        "untested": len(expected.outputs) - len(order),
    }


def _budget(group: list[int], expected: Expected, limits: dict[int, float]) -> float:
    """Seconds of CPU for a group of tests, of which 3 are for starting."""
    reference = sum(expected.seconds[i] for i in group)
    most = max(ALL_TESTS_SECONDS, TIMES_REFERENCE * reference)
    return min(most, sum(limits[i] for i in group)) + 3


def _decoded(text: str) -> Any:
    try:
        return values.decode(json.loads(text))
    # nothing that values.encode writes: it was forged, or a number or a nesting is out of range
    except Exception:
        return values.Opaque("undecodable")
