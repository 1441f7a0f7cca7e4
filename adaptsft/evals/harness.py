"""Tasks that lm-eval (EleutherAI's evaluation harness) defines, answered by any of our backends.

Its prompts, few-shot examples, extraction and metrics; our models, resumable answers and ranks.
`TASKS` pins what is ours to choose. Data comes from the hub by name, or from
`data_dir`/ORGANISATION/NAME, a copy of the hub's folder (`hf download NAME --repo-type dataset
--local-dir data_dir/NAME`); then nothing is fetched. A task of your own is the path of an lm-eval
YAML file, its data where that says.
"""

import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch.distributed as dist
from tqdm import tqdm

from adaptsft.distributed.ranks import raise_on_all_ranks
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.backends import Backend, Request, Sampling
from adaptsft.evals.samples import Samples, digest, seed_of

try:
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ConfigError(
        f"tasks of lm-eval need {error.name}: pip install 'adaptsft[harness]'"
    ) from None

T = TypeVar("T")
WRAPPED = "adaptsft_wrapped"
FEWSHOT_SEED = 1234  # lm-eval's own default


@dataclass(frozen=True)
class Pin:
    # folder of lm_eval/tasks with its YAML files: indexing all of them takes a quarter of a minute
    files: str
    dataset: str  # on the hub
    num_fewshot: int | None = None  # None: as the task's file says


# The paper names benchmarks, not settings. The numbers of examples are those of the first Open LLM
# Leaderboard (huggingface.co/spaces/HuggingFaceH4/open_llm_leaderboard); MMLU-ProX and OpenBookQA
# are as lm-eval has them (5 with reasoning; none).
TASKS: dict[str, Pin] = {
    "mmlu": Pin("mmlu/default", "cais/mmlu", 5),
    "arc_challenge": Pin("arc", "allenai/ai2_arc", 25),
    "winogrande": Pin("winogrande", "allenai/winogrande", 5),
    "truthfulqa_mc2": Pin("truthfulqa", "truthfulqa/truthful_qa"),
    "openbookqa": Pin("openbookqa", "allenai/openbookqa"),
    **{
        f"mmlu_prox_{language}": Pin(f"mmlu_prox/{language}", "li-lab/MMLU-ProX")
        for language in ("mr", "te", "ne", "sw", "wo", "yo", "zu")
    },
}


@dataclass(frozen=True)
class Evaluation:
    """`metrics`:

    {name: {value, se, n}}, fractions. `rows`: one per item and filter: item_id, prompt, output,
    extracted, gold, scores.

    `rates`: `unparsed`, the share of generated answers in which nothing was found. `data_sha256`:
    of all items, whatever the limit.
    """

    metrics: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]
    rates: dict[str, float]
    n_items: int
    data_sha256: str
    temperature: float | None  # of generated answers; None where likelihoods are compared
    settings: dict[str, Any]  # lm-eval's version, versions of the tasks, numbers of examples


def evaluate(
    name: str,
    backend: Backend | None,
    folder: Path,
    *,
    data_dir: Path | None = None,
    items: int | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 42,
) -> Evaluation:
    """Run a task of TASKS, or of an lm-eval YAML file.

    All ranks call it together, and all get the result.

    Answers are appended to `folder` as they come; those that are there are not asked for again.
    Without a backend all must be there: that is how recorded answers are scored anew. `items`: how
    many the data must have. `limit`: the first ones only, of each subject where the task has
    subjects. `num_fewshot` overrides the pinned number. Raises ConfigError for an unknown task,
    DataError for data that is missing or not what was named.
    """
    loaded = _load(name, data_dir, num_fewshot)
    leaves = loaded["tasks"]
    for task in leaves.values():
        task.set_fewshot_seed(FEWSHOT_SEED)
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        if (
            len(filters := task.get_config("filter_list") or []) > 1
        ):  # each has figures of its own, under the same names
            listed = ", ".join(filter_["name"] for filter_ in filters)
            raise ConfigError(
                f"{name}: reads its answers in several ways ({listed}): keep one of them in its "
                "filter_list"
            )
    found = sum(len(task.eval_docs) for task in leaves.values())
    if items is not None and found != items:
        raise DataError(
            f"{name}: the data has {found} items, the task names {items}: another version of it?"
        )
    model = Model(name, backend, folder, seed)
    results = lm_eval.evaluate(model, loaded, limit=limit, bootstrap_iters=1000)
    assert (
        results is not None
    )  # it is None on other ranks of lm-eval's own, of which there are none: see Model
    rows = [_row(leaf, sample) for leaf in leaves for sample in results["samples"][leaf]]
    summary = (
        results["groups"][name]
        if name in results.get("groups", {})
        else results["results"][next(iter(leaves))]
    )
    n = sum(results["n-samples"][leaf]["effective"] for leaf in leaves)
    temperatures = [
        _sampling(task.get_config("generation_kwargs") or {}).temperature
        for task in leaves.values()
    ]
    unparsed = [row["extracted"] == ["[invalid]"] for row in rows if row["generated"]]
    return Evaluation(
        metrics=_metrics(summary, n),
        rows=rows,
        rates={"unparsed": sum(unparsed) / len(unparsed)} if unparsed else {},
        n_items=n,
        data_sha256=digest(
            [
                [leaf, [dict(document) for document in leaves[leaf].eval_docs]]
                for leaf in sorted(leaves)
            ]
        ),
        temperature=temperatures[0] if unparsed else None,
        settings={
            "lm_eval": lm_eval.__version__,
            "versions": {leaf: results["versions"].get(leaf) for leaf in leaves},
            "num_fewshot": {leaf: results["n-shot"].get(leaf) for leaf in leaves},
        },
    )


def _load(name: str, data_dir: Path | None, num_fewshot: int | None) -> Any:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigError(f"harness task {name}: no such file")
        return TaskManager(include_defaults=False).load(name)
    if name not in TASKS:
        raise ConfigError(
            f"harness task {name!r}: choose one of {', '.join(TASKS)}, or name an lm-eval YAML file"
        )
    pin = TASKS[name]
    overrides: dict[str, Any] = {}
    shots = pin.num_fewshot if num_fewshot is None else num_fewshot
    if shots is not None:
        overrides["num_fewshot"] = shots
    if data_dir is not None:
        local = data_dir / pin.dataset
        if not local.is_dir():
            fetch = f"hf download {pin.dataset} --repo-type dataset --local-dir {local}"
            raise DataError(
                f"{name}: {local} is not there; fetch it with `{fetch}`, or leave out --data-dir"
            )
        overrides |= {"dataset_path": str(local), "dataset_kwargs": {"cache_dir": _cache(local)}}
    files = Path(lm_eval.__file__).parent / "tasks" / pin.files
    with tempfile.TemporaryDirectory() as folder:
        # A group of one, in a file: its member takes the overrides and hands them down to the last
        # subject. (Given as a dict, the group's own keys would be handed down too:
        # TaskManager._load_spec of lm-eval 0.4.13.)
        kind = (
            "group"
            if name in TaskManager(include_defaults=False, include_path=str(files)).all_groups
            else "task"
        )
        (Path(folder) / "wrapped.yaml").write_text(
            json.dumps({"group": WRAPPED, "task": [{kind: name, **overrides}]})
        )
        try:
            loaded = TaskManager(include_defaults=False, include_path=[str(files), folder]).load(
                WRAPPED
            )
        except Exception as error:  # whatever `datasets` and the hub's client raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            where = f"{data_dir / pin.dataset}" if data_dir else f"the hub's {pin.dataset}"
            raise DataError(f"{name}: {where} cannot be loaded: {reason}") from None
    del loaded["groups"][WRAPPED], loaded["group_map"][WRAPPED]
    return loaded


def _cache(folder: Path) -> str:
    """A cache of its own for the files of a folder as they are now.

    In the shared one `datasets` (5.2) tells local folders that have a README apart by their name
    and that README, not by their data: it would give the items of a file that has changed since, or
    of another folder of the same name.
    """
    files = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.resolve().rglob("*"))
        if path.is_file()
    ]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"adaptsft-{digest(files)[:16]}")


def _metrics(summary: dict[str, Any], n: int) -> dict[str, dict[str, float]]:
    """lm-eval's "acc,none" and "acc_stderr,none" -> acc: {value, se, n}."""
    metrics = {}
    for key, value in summary.items():
        metric, _, used = key.partition(",")
        if used and not metric.endswith("_stderr"):
            error = summary.get(f"{metric}_stderr,{used}")
            metrics[metric] = {
                "value": float(value),
                "se": float(error) if isinstance(error, int | float) else math.nan,
                "n": n,
            }
    return metrics


def _row(leaf: str, sample: dict[str, Any]) -> dict[str, Any]:
    generated = isinstance(sample["resps"][0][0], str)
    return {
        "item_id": f"{leaf}/{sample['doc_id']}",
        "prompt": sample["arguments"][0][0],
        "generated": generated,
        "output": sample["resps"][0][0]
        if generated
        else [answers[0] for answers in sample["resps"]],
        "extracted": sample["filtered_resps"],
        "gold": sample["target"],
        "scores": {
            metric: float(sample[metric])
            for metric in sample["metrics"]
            if isinstance(sample[metric], Real)
        },
    }


class Model(LM):
    """Our backend as lm-eval's model.

    lm-eval sees one rank: on every rank it builds all requests and scores all answers, and the
    answering alone is split, here. (Its own splitting pads the ranks with answers that are
    counted.)
    """

    def __init__(self, task: str, backend: Backend | None, folder: Path, seed: int) -> None:
        super().__init__()
        self.task, self.backend, self.folder, self.seed = task, backend, folder, seed

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        def ask(backend: Backend, pairs: Sequence[Any]) -> list[Any]:
            return [
                [found.logprob, found.greedy]
                for found in backend.loglikelihood([(pair[1], pair[2]) for pair in pairs])
            ]

        answers = self._answers([("loglikelihood", *request.args) for request in requests], ask)
        return [(logprob, greedy) for logprob, greedy in answers]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise ConfigError(
            f"harness task {self.task}: asks for the perplexity of whole documents, which is not "
            "offered here"
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        def ask(backend: Backend, asked: Sequence[Any]) -> list[Any]:
            requests = [
                Request(
                    item,
                    sample,
                    seed_of(self.seed, self.task, item, sample),
                    [{"role": "user", "content": text}],
                    text,
                )
                for _, text, _, item, sample in asked
            ]
            settings = {_sampling(question[2]) for question in asked}
            if len(settings) > 1:
                raise ConfigError(
                    f"harness task {self.task}: its subtasks decode differently; run them one by "
                    "one"
                )
            return [output.text for output in backend.generate(requests, *settings)]

        seen: dict[str, int] = {}
        asked = []
        for request in requests:  # the n-th time that an item comes it is its n-th sample
            item = f"{request.task_name}/{request.doc_id}"
            asked.append(("generate", *request.args, item, seen.setdefault(item, 0)))
            seen[item] += 1
        return self._answers(asked, ask)

    def _answers(
        self, asked: list[tuple], ask: Callable[[Backend, Sequence[Any]], list[Any]]
    ) -> list[Any]:
        """The answer to each question (kind, prompt, …): those that are in the folder, and this
        rank's share of the others.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [digest(*question) for question in asked]

        def read() -> Samples:
            have = Samples(self.folder, rank)
            if absent := len(set(keys) - set(have.rows)) if self.backend is None else 0:
                raise DataError(
                    f"{self.folder}: {absent} of {len(keys)} answers to {self.task} are missing: "
                    "run generate first"
                )
            return have

        def add() -> None:
            if self.backend is None:
                return
            missing = {
                key: question
                for key, question in zip(keys, asked, strict=True)
                if key not in have.rows
            }
            # the longest prompts first: memory runs out at once or never
            mine = sorted(missing.items(), key=lambda pair: -len(pair[1][1]))[rank::world]
            with tqdm(
                total=len(mine),
                desc=f"{self.task} {asked[0][0]}",
                unit="answer",
                disable=rank != 0,
                mininterval=1.0,
            ) as bar:
                for start in range(0, len(mine), self.backend.batch_size):
                    batch = mine[start : start + self.backend.batch_size]
                    answers = ask(self.backend, [question for _, question in batch])
                    have.add(
                        [
                            {"key": key, "answer": answer}
                            for (key, _), answer in zip(batch, answers, strict=True)
                        ]
                    )
                    bar.update(len(batch))

        have = _together(read)  # all have read before any writes: their shares must fit together
        _together(add)
        rows = have.rows if world == 1 else Samples(self.folder, rank).rows
        return [rows[key]["answer"] for key in keys]


def _together(work: Callable[[], T]) -> T:
    """A UserError on one rank is raised on all of them."""
    return raise_on_all_ranks(work) if dist.is_initialized() else work()


def _sampling(wanted: dict[str, Any]) -> Sampling:
    """lm-eval's generation_kwargs; greedy unless do_sample is set, as there."""
    stop = wanted.get("until") or []
    return Sampling(
        temperature=float(wanted.get("temperature") or 0) if wanted.get("do_sample") else 0.0,
        top_p=float(wanted.get("top_p") or 1),
        max_tokens=int(wanted.get("max_gen_toks") or 256),
        stop=tuple([stop] if isinstance(stop, str) else stop),
    )


logging.getLogger("lm_eval").setLevel(
    logging.ERROR
)  # its notes on every task would bury the progress line
