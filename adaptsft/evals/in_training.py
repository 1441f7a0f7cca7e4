"""Tasks evaluated while a model trains: a few items, greedy or sampled, on the sharded model.

All ranks run in lockstep. The weights are gathered layer by layer for every token that is
generated, so this costs about `max_tokens` forwards per batch: it is for tens of items and short
answers. Nothing that training depends on changes: no random number is drawn from its generators,
and mode, attention and sharding are as before when this returns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from adaptsft.config.schema import DataConfig, EvalConfig
from adaptsft.distributed.ranks import raise_on_all_ranks, rank, world_size
from adaptsft.errors import ConfigError
from adaptsft.evals import result
from adaptsft.evals.backends.decode import decode
from adaptsft.evals.backends.hf import context_window, end_tokens
from adaptsft.evals.data import load_items
from adaptsft.evals.graders.grading import grade_all, require_packages
from adaptsft.evals.graders.registry import GRADERS
from adaptsft.evals.prompts import messages_of
from adaptsft.evals.protocol import Output, Sampling
from adaptsft.evals.renderer import Renderer
from adaptsft.evals.samples import seed_of
from adaptsft.evals.tasks import Task, load_task
from adaptsft.model.attention import attending, needs_eager
from adaptsft.model.fsdp import ShardedModel, evaluating

SHOWN = 3  # answers of each task that are recorded as text
SHOWN_CHARACTERS = 2000  # of such a text


@dataclass(frozen=True)
class HeldOutTask:
    """Prompts as token ids, and what their graders read."""

    task: Task
    fields: list[dict[str, Any]]
    prompts: list[list[int]]
    seeds: list[int]  # of the answers, item by item: as many for each
    sampling: Sampling
    ends: tuple[int, ...]  # tokens that end an answer, beside the model's own


def prepare(settings: EvalConfig, tokenizer: Any, data: DataConfig, seed: int) -> list[HeldOutTask]:
    """The first `limit` items of each task, rendered by the run's own template.

    Raises UserError before anything is trained.
    """
    data_dir = Path(settings.data_dir) if settings.data_dir else None
    prepared = []
    for name in settings.tasks:
        task = load_task(name)
        # programs and judges are left to the finished model
        if task.runner != "generate" or not set(task.graders) <= set(GRADERS):
            raise ConfigError(
                f"eval.tasks: {name} cannot be run in training: use python -m adaptsft.evals run "
                "on the finished model"
            )
        require_packages(task.graders)
        items = load_items(task, data_dir).items[: settings.limit]
        renderer = Renderer(tokenizer, data)
        prompts = []
        for item in items:
            messages = messages_of(task.prompt, item.fields)
            text = messages[-1]["content"] if task.prompt.raw else renderer.text(messages)
            prompts.append(renderer.ids(text + task.prompt.start))
        temperature = 0.0 if settings.samples == 1 else 1.0
        longest = min(settings.max_tokens, task.decoding.max_tokens)
        sampling = task.sampling(temperature, longest)
        sampling = replace(sampling, stop=sampling.stop + renderer.end.strings)
        fields = [item.fields for item in items]
        seeds = [
            seed_of(seed, task.name, item.id, i) for item in items for i in range(settings.samples)
        ]
        prepared.append(HeldOutTask(task, fields, prompts, seeds, sampling, renderer.end.ids))
    return prepared


def evaluate(
    model: ShardedModel,
    tokenizer: Any,
    tasks: list[HeldOutTask],
    batch_size: int = 16,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """The results of each task, the same on all ranks, which call it together.

    {task: {metric: mean over its items, "truncated": share, "samples": SHOWN answers}}; with
    several answers to an item also pass@k, as METRIC/pass@K, and the answers' "entropy". `beat` is
    called after every token: the trainer's watchdog. Rank 0 grades while the others wait.
    """
    results = {}
    with generating(model):
        answers = [answer(model, tokenizer, task, batch_size, beat) for task in tasks]
    for task, outputs in zip(tasks, answers, strict=True):
        graded = partial(_grade, task, outputs, tokenizer) if rank() == 0 else lambda: None
        shared: list[Any] = [raise_on_all_ranks(graded)]
        dist.broadcast_object_list(shared)
        results[task.task.name] = shared[0]
        beat()
    return results


def answer(
    model: ShardedModel,
    tokenizer: Any,
    task: HeldOutTask,
    batch_size: int,
    beat: Callable[[], None],
) -> list[Output]:
    """All outputs, item by item, on every rank.

    Of the answers, rank r gives r, r + world, …; one that has no more repeats another, and drops
    it.
    """
    world, count = world_size(), len(task.seeds)
    of_each = count // len(task.prompts)
    rounds = -(-count // world)
    mine = [i if i < count else rank() % count for i in range(rank(), rounds * world, world)]
    ends = end_tokens(model, tokenizer) | set(task.ends)
    context = context_window(model)
    outputs: list[Output] = []
    for start in range(0, rounds, batch_size):
        batch = mine[start : start + batch_size]
        outputs += decode(
            model,
            tokenizer,
            [task.prompts[i // of_each] for i in batch],
            [task.seeds[i] for i in batch],
            task.sampling,
            ends,
            context=context,
            lockstep=True,
            on_step=beat,
        )
    everyone: list[list[Output]] = [[]] * world
    dist.all_gather_object(everyone, outputs)
    return [everyone[i % world][i // world] for i in range(count)]


def _grade(task: HeldOutTask, outputs: list[Output], tokenizer: Any) -> dict[str, Any]:
    items, of_each = len(task.prompts), len(outputs) // len(task.prompts)
    records = [
        task.fields[i // of_each] | {"response": output.text, "output": output.text}
        for i, output in enumerate(outputs)
    ]
    found: dict[str, Any] = {}
    shown: list[dict[str, Any]] = [
        {
            "prompt": tokenizer.decode(prompt)[-SHOWN_CHARACTERS:],
            "output": output.text[:SHOWN_CHARACTERS],
            "gold": fields.get("gold", fields.get("answer")),
            "scores": {},
        }
        for prompt, fields, output in zip(
            task.prompts[:SHOWN], task.fields, outputs[::of_each], strict=False
        )
    ]
    for name in task.task.graders:
        verdicts = grade_all(name, records, workers=1)
        scores = [result.metrics_of(name, verdict) for verdict in verdicts]
        for metric in scores[0]:
            table = np.array([score[metric] for score in scores], float).reshape(items, of_each)
            found |= {
                name: estimate["value"]
                for name, estimate in result.estimates(metric, table).items()
                if not name.endswith("/paper_rounding")  # of whole benchmarks
            }
        for sample, score in zip(shown, scores[::of_each], strict=False):
            sample["scores"] |= score
    entropy = result.entropy([output._asdict() for output in outputs], items)
    found |= {} if entropy is None else {"entropy": entropy["value"]}
    return found | {
        "truncated": sum(output.finish_reason == "length" for output in outputs) / len(outputs),
        "samples": shown,
    }


@contextmanager
def generating(model: ShardedModel) -> Iterator[None]:
    """The model in a state to generate.

    Without dropout, with cached attention instead of packed documents, and without compilation.
    """
    eager = model.config._attn_implementation == "eager" or needs_eager(model)
    with (
        evaluating(model),
        attending(model, "eager" if eager else "sdpa"),
        torch.compiler.set_stance("force_eager"),
    ):
        yield
