"""First stage: every prompt of a task is answered, and the answers are on disk.

A run that was killed continues where it stopped when it is started again.
"""

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.distributed.ranks import (
    process_group,
    raise_on_all_ranks,
    rank,
    rank0_first,
    world_size,
)
from adaptsft.errors import ConfigError
from adaptsft.evals import samples
from adaptsft.evals.asking import ask_for_missing
from adaptsft.evals.backends.registry import open_backend
from adaptsft.evals.backends.replay import Replay
from adaptsft.evals.data import Item, Items, load_items
from adaptsft.evals.folder_lock import backend_identity, locked
from adaptsft.evals.graders.grading import require_packages
from adaptsft.evals.prompts import messages_of
from adaptsft.evals.protocol import Backend, Output, Request, Sampling
from adaptsft.evals.samples import Samples, digest
from adaptsft.evals.tasks import Task, load_task, to_dict

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What the command line asks for; None is what the task's file has."""

    out: Path
    data_dir: Path | None = None
    temperatures: tuple[float, ...] | None = None
    n: int | None = None  # samples per item, where the temperature is above 0
    limit: int | None = None  # only the first items
    max_tokens: int | None = None
    seed: int = 42  # the paper's
    retry_errors: bool = False  # ask again for answers that were recorded with an error


def run_command(options: argparse.Namespace) -> int:
    """`python -m adaptsft.evals generate`."""
    answer(options)
    return 0


def answer(options: argparse.Namespace) -> list[Path]:
    """Generate what a command line asks for, on all ranks; returns the folders on rank 0."""
    tasks = [load_task(name) for name in options.tasks.split(",") if name]
    grades = hasattr(options, "allow_code_exec")  # `run`, which scores what it has generated
    if grades:
        require_packages(grader for task in tasks for grader in task.graders)
    code = [task.name for task in tasks if "code" in task.graders]
    if code and grades and not options.allow_code_exec:
        raise ConfigError(
            f"--tasks {', '.join(code)}: the answers are programs, and grading runs them: add "
            "--allow-code-exec to permit it"
        )
    plan = Plan(
        options.out,
        options.data_dir,
        options.temperature,
        options.n,
        options.limit,
        options.max_tokens,
        options.seed,
        options.retry_errors,
    )
    with process_group("cpu"):
        backend = raise_on_all_ranks(lambda: open_backend(options.backend, options))
        folders = generate(tasks, backend, plan)
        return folders if rank() == 0 else []


def generate(tasks: list[Task], backend: Backend, plan: Plan) -> list[Path]:
    """The folders of the answers. All ranks call it together. Raises UserError on all of them."""
    harness = [task.name for task in tasks if task.runner == "harness"]
    if harness and (plan.temperatures, plan.n, plan.max_tokens) != (None, None, None):
        raise ConfigError(
            f"{', '.join(harness)}: lm-eval's task decides how it decodes: leave out "
            "--temperature, --n and --max-tokens"
        )
    # the data of all tasks before any compute is spent
    loaded = {
        task.name: rank0_first(lambda task=task: load_items(task, plan.data_dir))
        for task in tasks
        if task.runner == "generate"
    }
    folders: list[Path] = []
    asked: dict[str, float] = {}
    for task in tasks:
        if task.runner == "harness":
            folders.append(plan.out / task.name / "harness")
            asked |= _by_harness(task, backend, plan, folders[-1])
            continue
        for temperature in plan.temperatures or (task.decoding.temperature,):
            folders.append(plan.out / task.name / mode(temperature))
            wanted = _by_prompt(task, loaded[task.name], backend, plan, temperature, folders[-1])
            asked |= {key: max(n, asked.get(key, 0)) for key, n in wanted.items()}
    if isinstance(backend, Replay) and rank() == 0 and (unused := backend.unused(asked)):
        print(unused, file=sys.stderr)
    return folders


def _by_prompt(
    task: Task, items: Items, backend: Backend, plan: Plan, temperature: float, folder: Path
) -> dict[str, float]:
    """{item: how many samples of it were asked for}"""
    sampling = task.sampling(temperature, plan.max_tokens)
    chosen, n = items.items[: plan.limit], planned(task, plan, temperature)
    asked = {
        "schema_version": SCHEMA_VERSION,
        "task": to_dict(task),
        "data": items.facts(),
        "backend": backend.identity,
        "params": dataclasses.asdict(sampling) | {"stop": list(sampling.stop)},
        "seed": plan.seed,
        "n": n,
        "item_ids": [item.id for item in chosen],
    }
    label = f"{task.name} {mode(temperature)}"
    with locked(folder, asked, chosen):
        requests = raise_on_all_ranks(lambda: requests_of(chosen, task, backend, n, plan.seed))
        # all ranks have read before one writes: each must find the same samples missing
        have = raise_on_all_ranks(lambda: Samples(folder, rank()))
        raise_on_all_ranks(
            lambda: _answer(have, requests, backend, sampling, label, plan.retry_errors)
        )
    return dict.fromkeys((item.id for item in chosen), n)


def _by_harness(task: Task, backend: Backend, plan: Plan, folder: Path) -> dict[str, float]:
    """{item: how many samples of it were asked for}, the latter being lm-eval's to say."""
    from adaptsft.evals.harness.evaluate import evaluate  # lm-eval is optional, and slow to import

    asked = {
        "schema_version": SCHEMA_VERSION,
        "task": to_dict(task),
        "data": {"dir": plan.data_dir and str(plan.data_dir.resolve()), "limit": plan.limit},
        "backend": backend.identity,
        "params": {},
        "seed": plan.seed,
        "n": 1,
    }
    with locked(folder, asked, []):
        found = evaluate(
            task.harness_task,
            backend,
            folder,
            data_dir=plan.data_dir,
            items=task.items,
            limit=plan.limit,
            seed=plan.seed,
            retry_errors=plan.retry_errors,
        )
    return {record["item_id"]: math.inf for record in found.records}


def mode(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T{temperature:g}"


def requests_of(
    items: list[Item], task: Task, backend: Backend, n: int, seed: int
) -> list[Request]:
    """One request per item and sample, in the order of the items."""
    requests = []
    for item in items:
        messages = messages_of(task.prompt, item.fields)
        text = messages[-1]["content"] if task.prompt.raw else backend.render(messages)
        if task.prompt.start:
            if text is None:
                raise ConfigError(
                    f"{task.name}: a chat server cannot continue an answer that is begun for it: "
                    "use --template chatml or another"
                )
            text += task.prompt.start
        requests += [
            Request(item.id, i, samples.seed_of(seed, task.name, item.id, i), messages, text)
            for i in range(n)
        ]
    return requests


def planned(task: Task, plan: Plan, temperature: float) -> int:
    """Samples per item. Greedy answers are the same every time: one is enough."""
    return 1 if temperature == 0 else plan.n or task.decoding.n


def _answer(
    have: Samples,
    requests: list[Request],
    backend: Backend,
    sampling: Sampling,
    label: str,
    retry_errors: bool,
) -> None:
    """Generate and record this rank's share of the missing samples."""
    asked = {key_of(request, backend, sampling): request for request in requests}
    mine = ask_for_missing(
        have,
        asked,
        lambda batch: backend.generate(batch, sampling),
        _record,
        batch_size=backend.batch_size,
        label=label,
        retry_errors=retry_errors,
        length=lambda request: len(request.text or str(request.messages)),
        rank=rank(),
        world=world_size(),
    )
    failed = [have.records[key] for key in mine if have.records[key].get("error")]
    if failed:
        print(
            f"{label}: {len(failed)} of {len(mine)} answers were recorded with an error, the first "
            f"is item {failed[0]['item_id']}: {failed[0]['error']}. --retry-errors asks again",
            file=sys.stderr,
        )


def key_of(request: Request, backend: Backend, sampling: Sampling) -> str:
    return digest(
        backend_identity(backend.identity),
        _prompt(request),
        dataclasses.asdict(sampling),
        request.seed,
        request.item_id,
        request.sample,
    )


def _prompt(request: Request) -> Any:
    return request.messages if request.text is None else request.text


def _record(request: Request, output: Output) -> dict[str, Any]:
    prompt = _prompt(request)
    return {
        "item_id": request.item_id,
        "sample": request.sample,
        "seed": request.seed,
        "prompt_sha": digest(prompt),
        "prompt": prompt,
        **output._asdict(),
        "output": output.text,
    }
