"""Stand-ins for everything that a recipe names, where it looks for it: a tiny random model of the
same architecture under the model's name on the hub, generated training data in the layout that
python -m benchmarks.paper.prepare writes, tasks of four items, and answers in the layout of
recorded ones. The recipes stay as they are, apart from the size of a step (`STEPS`). None of it
says anything about a real model.
"""

import argparse
import dataclasses
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from adaptsft.config.resolve import load_config
from adaptsft.evals.data import load_items
from adaptsft.evals.tasks import Task, load_task, to_dict
from adaptsft.model.tiny import CHATML, SAMPLE_TEXT, bpe_tokenizer, make_tiny_model
from benchmarks.paper.reproduce.stages import Choices
from benchmarks.paper.reproduce.table import (
    BASE,
    FAMILIES,
    Job,
    Table,
    data_files,
    hub_name,
    tasks_of,
)

STEPS = [
    "train.max_steps=3",
    "train.global_batch_size=8",
    "train.micro_batch_size=1",
    "train.device=cpu",
    "log.trackers=[]",
]
ITEMS, SAMPLES, POINTS = 4, 2, 2  # of a task, of an item, of a sweep
CONVERSATIONS = ("figfont", "magpie", "evol")  # data sets whose records hold messages
# Qwen2.5's own says who it is where nobody else does: another prompt than the paper's
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
Record = dict[str, Any]


def prepare(
    name: str,
    table: Table,
    model: str,
    asked: list[Job],
    out: Path,
    options: argparse.Namespace,
    overrides: list[str],
) -> tuple[list[Job], Choices]:
    """Write the stand-ins below `out`, and go there: the working directory is from now on where the
    recipes find them."""
    place = out / "stand_ins"
    asked = [
        job for job in asked if not job.key or job.value in _few(table.sweep[job.objective].values)
    ]
    harness = all(load_task(column.task).runner == "harness" for column in table.columns.values())
    stand_in_model(place, hub_name(name, model))
    for job in asked:
        training_data(place, job, 40)
    tasks(place, table)
    for job in [Job(model, BASE), *asked]:
        answers(place, table, job)
    for job in asked if table.against else []:
        judgements(place, job, table.against)
    os.chdir(place)
    steps = [*STEPS, f"data.cache_dir={place / 'cache'}", *overrides]
    # lm-eval asks for likelihoods, which no recording has: there the tiny model answers itself
    replayed = () if harness else ("--replay", str(place / "outputs" / "{job}.jsonl"))
    replayed += () if table.against else ("--workers", "1")
    judge = ("--backend", "replay", "--replay", str(place / "outputs" / "{job}.annotations.json"))
    backend, data_dir = "hf" if harness else "replay", None if harness else place / "items"
    code = any("code" in load_task(column.task).graders for column in table.columns.values())
    return asked, Choices(
        1, backend, options.strict, data_dir, code, judge, tuple(steps), replayed, place / "tasks"
    )


def _few(values: list[float]) -> list[float]:
    return [values[round(i * (len(values) - 1) / (POINTS - 1))] for i in range(POINTS)]


def stand_in_model(place: Path, hub: str, seed: int = 0) -> None:
    """A random model of the architecture, of 32 hidden units and one layer; a chat template where
    the original has one."""
    _, arch = FAMILIES[hub.split("/")[0]]
    if not (place / hub / "model.safetensors").is_file():
        tokenizer = bpe_tokenizer(SAMPLE_TEXT, chat_template=QWEN if arch == "qwen2" else None)
        make_tiny_model(
            place / hub, arch, tokenizer=tokenizer, hidden=32, layers=1, heads=2, seed=seed
        )


def training_data(place: Path, job: Job, examples: int) -> None:
    """The files that a recipe reads, each of that many sums to be added up."""
    for path in data_files(load_config(job.arguments)):
        records, draw = [], random.Random(str(path))
        for number in range(examples):
            a, b = draw.randrange(1000), draw.randrange(1000)
            prompt, completion = f"Add {a} and {b}.", f"{a} + {b} = {a + b}"
            record: Record = {
                "id": f"{path.stem}-{number}",
                "prompt": prompt,
                "completion": completion,
            }
            if path.stem in CONVERSATIONS:
                system = (
                    [{"role": "system", "content": "You add numbers."}]
                    if path.stem == "figfont"
                    else []
                )
                turns = [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": completion},
                ]
                record = {"id": record["id"], "messages": system + turns}
            records.append(record)
        _write_lines(place / path, records)


def tasks(place: Path, table: Table) -> None:
    """The table's tasks with four items each: everything else is as in adaptsft.evals."""
    jobs = [Job(model, objective) for model in table.models for objective in (BASE, "nll")]
    for task_name in dict.fromkeys(name for job in jobs for name in tasks_of(table, job)):
        task = load_task(task_name)
        if task.runner == "harness":
            task.harness_task, task.graders = str(_harness(place, task)), []
        else:
            family = {"humaneval": "HumanEvalPlus", "mbpp": "MbppPlus"}.get(
                task_name.split("_")[0], ""
            )
            source = dataclasses.replace(
                task.sources[0],
                hub="",
                hub_file="",
                generator="",
                key="",
                sha256=None,
                verified=False,
                origin="generated",
            )
            source.file = f"{family}-{task_name}.jsonl.gz" if family else f"{task_name}.jsonl"
            records = [RECORDS[source.reader](task, number) for number in range(ITEMS)]
            named = [
                {source.fields.get(key, key): value for key, value in record.items()}
                for record in records
            ]
            _write_lines(place / "items" / source.file, named)
            task.sources, task.prompt.start = [source], ""  # a recording holds the whole answer
        task.items, task.decoding.n = ITEMS, min(task.decoding.n, SAMPLES)
        read = {column.metric for column in table.columns.values()} & set(task.graders)
        if read:  # each grader starts processes of its own, and takes seconds
            task.graders = [grader for grader in task.graders if grader in read]
            task.columns = {name: key for name, key in task.columns.items() if key in read}
        path = place / "tasks" / f"{task_name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            yaml.safe_dump(
                {key: value for key, value in to_dict(task).items() if key != "name"},
                sort_keys=False,
            )
        )


def _harness(place: Path, task: Task) -> Path:
    """A task of lm-eval's with the metric that the table reads, on a file."""
    metric = [metric for metric in task.columns.values() if metric not in task.graders][-1]
    records = [
        {
            "question": f"{n} + 1 =",
            "choices": [str(n + 1), "none", "one", "two"],
            "gold": 0,
            "answer": str(n + 1),
        }
        for n in range(ITEMS)
    ]
    file = place / "items" / f"{task.harness_task}.jsonl"
    _write_lines(file, records)
    settings: Record = {
        "task": task.harness_task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
    }
    settings |= {
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metric_list": [{"metric": metric}],
    }
    if metric == "exact_match":
        settings |= {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        }
    else:
        settings |= {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
        }
    path = place / "items" / f"{task.harness_task}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def answers(place: Path, table: Table, job: Job) -> None:
    """outputs/JOB.jsonl: item_id, output; about every second one is right. Items of the same id in
    two tasks have the same answer."""
    draw, records = random.Random(job.name), {}
    for task in (load_task(str(place / "tasks" / f"{name}.yaml")) for name in tasks_of(table, job)):
        for number, item in enumerate(
            [] if task.runner == "harness" else load_items(task, place / "items").items
        ):
            records[item.id] = [
                {"item_id": item.id, "output": answer(task, number, draw.random() < 0.5, job)}
                for _ in range(SAMPLES)
            ]
    _write_lines(
        place / "outputs" / f"{job.name}.jsonl",
        [record for same in records.values() for record in same],
    )


def answer(task: Task, number: int, right: bool, job: Job) -> str:
    """A possible answer of a model to item `number` of a task."""
    match task.sources[0].reader:
        case "figfont":
            return WORDS[number if right else number - 1]
        case "alpaca":
            return f"{job.name} says: {number} of {number}."
        case "evalplus":
            program = f"    return x + {number if right else 999}\n"
            return program if task.prompt.raw else f"```python\ndef add_{number}(x):\n{program}```"
        case "choices" | "inline_choices" | "openbookqa":
            return f"The answer is \\boxed{{{'ABCD'[number if right else number - 1]}}}."
        case _:
            return f"Adding gives \\boxed{{{number + 1 if right else 999}}}."


def judgements(place: Path, job: Job, against: str) -> None:
    """outputs/JOB.annotations.json, as AlpacaEval records a judge that is more sure of one answer
    the more there are."""
    outputs = {}
    for name in (job.name, against):  # the first sample of each
        lines = map(json.loads, (place / "outputs" / f"{name}.jsonl").read_text().splitlines())
        outputs[name] = [record["output"] for record in lines][::SAMPLES]
    records = []
    for number in range(ITEMS):
        pair = {
            "instruction": f"Say {number}.",
            "output_1": outputs[against][number],
            "output_2": outputs[job.name][number],
        }
        likeliest = [{"token": "m", "logprob": -0.5 - number}, {"token": "M", "logprob": -1.0}]
        completion = {"logprobs": {"content": [{"top_logprobs": likeliest}]}}
        records.append(pair | {"annotator": "generated", "raw_completion": completion})
    (place / "outputs" / f"{job.name}.annotations.json").write_text(json.dumps(records))


WORDS = ("ONE", "TWO", "THREE", "FOUR")


def _choice(task: Task, number: int) -> Record:
    return {
        "question": f"Which is number {number}?",
        "options": dict(zip("ABCD", WORDS, strict=True)),
        "answer_idx": "ABCD"[number],
    }


def _problem(task: Task, number: int) -> Record:
    name = f"add_{number}"
    prompt = f'def {name}(x):\n    """Add {number} to x."""\n'
    family = "HumanEval" if task.name.startswith("humaneval") else "Mbpp"
    record = {
        "task_id": f"{family}/{9000 + number}",
        "prompt": prompt,
        "canonical_solution": f"    return x + {number}\n",
        "entry_point": name,
    }
    return record | {"base_input": [[1], [2]], "plus_input": [[-5]], "atol": 0}


def _stem(task: Task, number: int) -> Record:
    """The layout of the published tsv, which the evaluator reads from a .jsonl too."""
    listed = " ".join(f"({letter}) {word}" for letter, word in zip("ABCD", WORDS, strict=True))
    return {
        "ID": str(number),
        "Question Stem": f"Which is number {number}?",
        "Choices": listed,
        "Answer Key": "ABCD"[number],
    }


# Reader of a task -> its record, in our names of fields (the task's map turns them into the
# source's).
RECORDS: dict[str, Callable[[Task, int], Record]] = {
    "boxed_solution": lambda task, n: {
        "question": f"What is {n} + 1?",
        "solution": f"It is \\boxed{{{n + 1}}}.",
    },
    "minerva": lambda task, n: {
        "question": f"What is {n} + 1?",
        "solution": f"It is \\boxed{{{n + 1}}}.",
    },
    "final_answer": lambda task, n: {
        "id": n,
        "question": f"What is {n} + 1?",
        "final_answer": [str(n + 1)],
    },
    "answer": lambda task, n: {"question": f"What is {n} + 1?", "answer": n + 1},
    "choices": _choice,
    "openbookqa": _stem,
    "figfont": lambda task, n: {
        "id": str(n),
        "question": f"What word does this say?\n\n{WORDS[n]}",
        "answer": WORDS[n],
    },
    "evalplus": _problem,
    "alpaca": lambda task, n: {
        "instruction": f"Say {n}.",
        "dataset": "generated",
        "output": "A reference.",
    },
}


def _write_lines(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
    )
