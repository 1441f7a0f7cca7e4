"""Which of lm-eval's tasks are used, and how each is loaded."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.harness.library import TaskManager, lm_eval
from adaptsft.evals.samples import digest

_WRAPPED = "adaptsft_wrapped"
_FEWSHOT_SEED = 1234  # lm-eval's own default


@dataclass(frozen=True)
class Pin:
    """What this repository chooses of a task of lm-eval."""

    files: str  # folder of lm_eval/tasks with its YAML files: indexing all folders takes 15 seconds
    dataset: str  # on the hub
    num_fewshot: int | None = None  # None: the number in the task's file
    # what our graders read of an item, beside the answer; None: they do not read this task
    fields: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def _choices(item: dict[str, Any]) -> dict[str, Any]:
    """MMLU-ProX: up to ten options in the question's language, of which the last are null."""
    texts = (item[f"option_{number}"] for number in range(10))
    options = {letter: text for letter, text in zip("ABCDEFGHIJ", texts, strict=True) if text}
    return {"options": options, "gold": item["answer"]}


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
        f"mmlu_prox_{language}": Pin(f"mmlu_prox/{language}", "li-lab/MMLU-ProX", fields=_choices)
        for language in ("mr", "te", "ne", "sw", "wo", "yo", "zu")
    },
}


def load(name: str, data_dir: Path | None, num_fewshot: int | None) -> Any:
    """What TaskManager.load gives for a task of TASKS or an lm-eval YAML file, ready to evaluate.

    Raises ConfigError for a task that is unknown or extracts answers in several ways, DataError for
    data that cannot be loaded.
    """
    loaded = _load(name, data_dir, num_fewshot)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(_FEWSHOT_SEED)
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        filters = task.get_config("filter_list") or []
        if len(filters) > 1:  # each has metrics of its own, under the same names
            listed = ", ".join(filter_["name"] for filter_ in filters)
            raise ConfigError(
                f"{name}: reads its answers in several ways ({listed}): keep one of them in its "
                "filter_list"
            )
    return loaded


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
    files = str(Path(lm_eval.__file__).parent / "tasks" / pin.files)
    known = TaskManager(include_defaults=False, include_path=files)
    kind = "group" if name in known.all_groups else "task"
    # A group of one, in a file: its member takes the overrides and hands them down to the last
    # subject. (Given as a dict, the group's own keys would be handed down too:
    # TaskManager._load_spec of lm-eval 0.4.13.)
    group = {"group": _WRAPPED, "task": [{kind: name, **overrides}]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "wrapped.yaml").write_text(json.dumps(group))
        try:
            manager = TaskManager(include_defaults=False, include_path=[files, folder])
            loaded = manager.load(_WRAPPED)
        except Exception as error:  # `datasets` and the hub's client raise many kinds
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            where = f"{data_dir / pin.dataset}" if data_dir else f"the hub's {pin.dataset}"
            raise DataError(f"{name}: {where} cannot be loaded: {reason}") from None
    del loaded["groups"][_WRAPPED], loaded["group_map"][_WRAPPED]
    return loaded


def _cache(folder: Path) -> str:
    """A cache of its own for the files of a folder as they are now.

    In the shared one `datasets` (5.2) distinguishes local folders that have a README by their name
    and that README, not by their data: it would give the items of a file that has changed since, or
    of another folder of the same name.
    """
    files = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.resolve().rglob("*"))
        if path.is_file()
    ]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"adaptsft-{digest(files)[:16]}")
