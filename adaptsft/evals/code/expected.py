"""Expected outputs: what a data set's own solution returns, run once in the sandbox and cached."""

import gzip
import hashlib
import json
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.errors import UserError
from adaptsft.evals.code import sandbox
from adaptsft.evals.code.job import LARGEST_OUTPUT, encode_job, failure
from adaptsft.evals.code.problems import Problem


@dataclass(frozen=True)
class Expected:
    """What the reference solution returned, test by test, base then plus."""

    outputs: list[str | None]  # JSON (values.py); None where it is too large
    seconds: list[float]  # of CPU


def expected_outputs(problem: Problem, folder: Path) -> Expected:
    """From the cache in `folder`, or by running the reference solution.

    A damaged file, or one of other code or another Python, is made again.
    """
    tests = [problem.base, problem.plus]
    limits = [[60.0] * len(group) for group in tests]
    job = encode_job(problem.reference, problem, tests, limits, [60.0, 60.0])
    files = ("child.py", "system_calls.py", "values.py")
    rules = b"".join(sandbox.CHILD.with_name(name).read_bytes() for name in files)
    key = hashlib.sha256(job + rules + f"{sys.version} {sandbox.ENVIRONMENT}".encode()).hexdigest()
    path = folder / f"{problem.task_id.replace('/', '_')}.json.gz"
    content = _read(path)
    if content is not None and content["key"] == key:
        return Expected(content["outputs"], content["seconds"])
    found = _run(problem, job)
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, {"key": key, "outputs": found.outputs, "seconds": found.seconds})
    return found


def _run(problem: Problem, job: bytes) -> Expected:
    count = len(problem.base) + len(problem.plus)
    limits = sandbox.Limits(memory=2**34, cpu=600, wall=6000.0)
    outputs: list[str | None] = []
    seconds: list[float] = []
    try:
        for message in sandbox.run(job, [LARGEST_OUTPUT] * count, limits):
            reason = failure(message)
            if reason is not None and "large" not in message:
                raise sandbox.RunError(reason)
            outputs.append(message.get("value"))
            seconds.append(round(float(message["t"]), 6))
    except (sandbox.RunError, sandbox.SandboxError) as error:
        raise UserError(
            f"{problem.task_id}: the data set's own solution failed at test {len(outputs)} of "
            f"{count}: {error}; without its outputs nothing can be graded. Is there enough memory?"
        ) from None
    return Expected(outputs, seconds)


def _write(path: Path, content: dict[str, Any]) -> None:
    """A line with the sha256 of the JSON, then the JSON."""
    text = json.dumps(content).encode()
    digest = hashlib.sha256(text).hexdigest().encode()
    partial = path.with_suffix(f".{os.getpid()}.tmp")  # other processes may write the same file
    partial.write_bytes(gzip.compress(digest + b"\n" + text, compresslevel=1))
    partial.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a cache file. None where it is absent or damaged."""
    try:
        digest, _, text = gzip.decompress(path.read_bytes()).partition(b"\n")
    except (FileNotFoundError, EOFError, zlib.error, gzip.BadGzipFile):
        return None
    return json.loads(text) if hashlib.sha256(text).hexdigest().encode() == digest else None
