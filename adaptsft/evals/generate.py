"""First stage: every prompt of a task is answered, and the answers are on disk.

Killed and started again it goes on where it was.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptsft.distributed.ranks import raise_on_all_ranks, rank, rank0_first, world_size
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.evals import samples
from adaptsft.evals.backends import Backend, Request, Sampling
from adaptsft.evals.data import Item, Items, load_items
from adaptsft.evals.prompts import messages_of
from adaptsft.evals.samples import Samples, digest
from adaptsft.evals.tasks import Task, to_dict
from adaptsft.files import lock

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What is asked of the tasks beyond what their files say; None leaves it to them."""

    out: Path
    data_dir: Path | None = None
    temperatures: tuple[float, ...] | None = None
    n: int | None = None  # samples per item, where the temperature is above 0
    limit: int | None = None  # only the first items
    max_tokens: int | None = None
    seed: int = 42  # the paper's


def generate(tasks: list[Task], backend: Backend, plan: Plan) -> None:
    """All ranks call it together. Raises UserError on all of them."""
    own = [task for task in tasks if task.runner == "generate"]
    harness = [task.name for task in tasks if task.runner == "harness"]
    if harness and (
        plan.temperatures is not None or plan.n is not None or plan.max_tokens is not None
    ):
        raise ConfigError(
            f"{', '.join(harness)}: lm-eval's task decides how it decodes: leave out "
            "--temperature, --n and --max-tokens"
        )
    loaded = {
        task.name: rank0_first(lambda task=task: load_items(task, plan.data_dir)) for task in own
    }  # before compute is spent
    for task in tasks:
        if task.runner == "harness":
            _by_harness(task, backend, plan)
        else:
            for temperature in plan.temperatures or (task.decoding.temperature,):
                _by_prompt(task, loaded[task.name], backend, plan, temperature)


def _by_prompt(task: Task, items: Items, backend: Backend, plan: Plan, temperature: float) -> None:
    folder, sampling = (
        plan.out / task.name / mode(temperature),
        task.sampling(temperature, plan.max_tokens),
    )
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
    with _claimed(folder, asked, chosen):
        requests = raise_on_all_ranks(lambda: requests_of(chosen, task, backend, n, plan.seed))
        have = raise_on_all_ranks(
            lambda: Samples(folder, rank())
        )  # all have read before any writes: their shares must fit together
        raise_on_all_ranks(
            lambda: _answer(have, requests, backend, sampling, f"{task.name} {mode(temperature)}")
        )


def _by_harness(task: Task, backend: Backend, plan: Plan) -> None:
    from adaptsft.evals import harness

    folder = plan.out / task.name / "harness"
    asked = {
        "schema_version": SCHEMA_VERSION,
        "task": to_dict(task),
        "data": {"dir": plan.data_dir and str(plan.data_dir), "limit": plan.limit},
        "backend": backend.identity,
        "params": {},
        "seed": plan.seed,
        "n": 1,
    }
    with _claimed(folder, asked, []):
        harness.evaluate(
            task.harness_task, backend, folder, data_dir=plan.data_dir, items=task.items, limit=plan.limit, seed=plan.seed
        )  # fmt: skip


def mode(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T{temperature:g}"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
                    f"{task.name}: a chat server cannot go on from the answer's given start: use "
                    "--template chatml or another"
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


@contextmanager
def _claimed(folder: Path, asked: dict[str, Any], items: list[Item]) -> Iterator[None]:
    """The folder is locked, and run.json says what is asked and, afterwards, that it is done.

    All ranks enter it together.

    Raises ConfigError where the folder holds samples of something else.
    """
    held = rank0_first(lambda: _claim(folder, asked, items) if rank() == 0 else None)
    try:
        yield
        if held is not None:
            samples.write_json(
                folder / "run.json", samples.read_json(folder / "run.json") | {"finished": now()}
            )
    finally:
        if held is not None:
            held.close()


def _claim(folder: Path, asked: dict[str, Any], items: list[Item]) -> Any:
    deciding = _deciding(asked)
    asked = asked | {"fingerprint": digest(deciding), "started": now(), "finished": None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder)
        if (folder / "run.json").is_file():
            before = samples.read_json(folder / "run.json")
            if before["fingerprint"] != asked["fingerprint"]:
                different = (
                    ", ".join(_differences(_deciding(before), deciding))
                    or "another version of adaptsft"
                )
                raise ConfigError(
                    f"--out {folder}: holds samples of something else ({different}): name another "
                    "--out, or delete it"
                )
            asked["started"] = before["started"]
        samples.write_lines(folder / "items.jsonl", (item._asdict() for item in items))
        samples.write_json(folder / "run.json", asked)
    except OSError as error:
        raise CheckpointError(f"--out {folder}: cannot be written: {error}") from None
    return held


def _deciding(asked: dict[str, Any]) -> dict[str, Any]:
    """What samples depend on; how many are wanted, and how they are graded, may change."""
    task = {key: asked["task"][key] for key in ("name", "version", "prompt", "harness_task")}
    deciding = {key: asked[key] for key in ("schema_version", "params", "seed")}
    return deciding | {
        "task": task,
        "data": asked["data"].get("sha256"),
        "backend": _answerer(asked["backend"]),
    }


def _answerer(identity: dict[str, Any]) -> dict[str, Any]:
    """The weights are known by their hash where there is one: a folder may be moved."""
    names = () if identity["revision"] is None else ("model", "objective")
    return {key: value for key, value in identity.items() if key not in names}


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text
            for key in new
            for text in _differences(old.get(key), new[key], f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    return text if len(text := str(value)) <= 40 else text[:37] + "…"


def _answer(
    have: Samples, requests: list[Request], backend: Backend, sampling: Sampling, label: str
) -> None:
    """This rank's share of what is missing."""
    keys = [key_of(request, backend, sampling) for request in requests]
    missing = [
        (request, key) for request, key in zip(requests, keys, strict=True) if key not in have.rows
    ]
    # the longest first: memory runs out at once or not at all, and the last batches are the fast
    # ones
    mine = sorted(missing, key=lambda pair: -len(pair[0].text or str(pair[0].messages)))[
        rank() :: world_size()
    ]
    bar = tqdm(
        total=len(requests), initial=len(requests) - len(missing), desc=label, unit="answer",
        disable=rank() != 0, smoothing=0.1, mininterval=1.0,
    )  # fmt: skip
    with bar:
        for start in range(0, len(mine), backend.batch_size):
            batch = mine[start : start + backend.batch_size]
            outputs = backend.generate([request for request, _ in batch], sampling)
            try:
                have.add(
                    [
                        _row(request, key, output)
                        for (request, key), output in zip(batch, outputs, strict=True)
                    ]
                )
            except OSError as error:
                raise CheckpointError(
                    f"{have.file}: cannot be written: {error}. What is in it stays: the same "
                    "command goes on"
                ) from None
            bar.update(min(len(batch) * world_size(), bar.total - bar.n))


def key_of(request: Request, backend: Backend, sampling: Sampling) -> str:
    prompt = request.messages if request.text is None else request.text
    return digest(
        _answerer(backend.identity),
        prompt,
        dataclasses.asdict(sampling),
        request.seed,
        request.item_id,
        request.sample,
    )


def _row(request: Request, key: str, output: Any) -> dict[str, Any]:
    prompt = request.messages if request.text is None else request.text
    row = {"key": key, "item_id": request.item_id, "sample": request.sample, "seed": request.seed}
    return (
        row
        | {"prompt_sha": digest(prompt), "prompt": prompt, **output._asdict()}
        | {"output": output.text}
    )
