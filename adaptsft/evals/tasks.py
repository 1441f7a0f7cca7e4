"""Tasks: a pinned YAML file each, in adaptsft/evals/tasks.

A new evaluation is one more such file, there or anywhere else. It holds where the data is and its
sha256, the prompt, how to decode, the graders and what to report; the dataclasses below are its
keys. `extends: NAME` starts from another task; `columns`, `sources` and other lists replace those
of that task as a whole.
"""

import argparse
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptsft.errors import ConfigError, did_you_mean
from adaptsft.evals.graders.registry import GRADERS, Option
from adaptsft.evals.protocol import Sampling
from adaptsft.evals.readers import GENERATORS, READERS

FOLDER = Path(__file__).parent / "tasks"
# metrics of those that are no GRADERS
OTHER_WRITES = {"code": ("base", "plus"), "judge": ("win_rate", "lc_win_rate")}
_OF_SAMPLES = re.compile(r"/(?:pass@\d+|paper_rounding)$")
CHOICES = "mmlu_prox_"  # the tasks of lm-eval whose answers mcq-robust reads as well


@dataclass
class Source:
    """Where items come from: a file under --data-dir, a data set on the hub, or a generator.

    A task uses the first of its sources that is available.
    """

    file: str = ""  # path under --data-dir
    hub: str = ""  # name on the hub
    subset: str | None = None
    split: str = "test"
    hub_file: str = ""  # a single file of `hub`, where that has no splits
    revision: str | None = None
    generator: str = ""  # a key of readers.GENERATORS
    key: str = ""  # of the list wanted, in a JSON object of lists
    reader: str = "fields"  # a key of readers.READERS: what makes an item of a record
    fields: dict[str, str] = field(default_factory=dict)  # {our field: theirs}
    # of the file, or of the items where there is no file; null: the data could not be fetched
    sha256: str | None = None
    verified: bool = False  # sha256 and items were checked against the published data
    origin: str = ""  # where it was published
    licence: str = ""


@dataclass
class Prompt:
    system: str = ""
    user: str = "{question}"  # {name} stands for a field of the item
    start: str = ""  # the answer's beginning: follows the rendered prompt, not part of the output
    raw: bool = False  # the model continues `user` itself, without any template


@dataclass
class Decoding:
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: list[str] = field(default_factory=list)
    n: int = 1  # samples per item


@dataclass
class Task:
    name: str = ""
    title: str = ""
    group: str = ""  # a table of the report
    version: int = 1
    runner: str = "generate"  # or "harness": lm-eval runs `harness_task`
    harness_task: str = ""
    sources: list[Source] = field(default_factory=list)
    items: int = 0  # how many there must be
    prompt: Prompt = field(default_factory=Prompt)
    decoding: Decoding = field(default_factory=Decoding)
    # optional keys that graders read, such as units: strict, for every item
    grading: dict[str, Any] = field(default_factory=dict)
    # keys of GRADERS, "code" or "judge"; with `harness` those beside lm-eval's own
    graders: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)  # {header in tables: metric}
    gated: bool = False  # access must be requested from the owners
    # what is unknown about the published protocol, or differs from it
    notes: list[str] = field(default_factory=list)

    def sampling(self, temperature: float, max_tokens: int | None = None) -> Sampling:
        decoding = self.decoding
        return Sampling(
            temperature, decoding.top_p, max_tokens or decoding.max_tokens, tuple(decoding.stop)
        )


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def load_task(name: str) -> Task:
    """A task by its name or by the path of its YAML file.

    Raises ConfigError for one that is unknown, misspelt or incomplete.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"--tasks {name}: no such task{_hint(name)}")
    task = from_dict(_read(path), str(path))
    task.name = path.stem
    if problem := _problem(task):
        raise ConfigError(f"{path}: {problem}")
    return task


def _hint(name: str) -> str:
    return did_you_mean(name, names()) or "; `python -m adaptsft.evals tasks` lists them"


def from_dict(values: Any, origin: str) -> Task:
    """A task from its keys, as `to_dict` writes them.

    Raises ConfigError, naming `origin` and the key.
    """
    try:
        return cast(Task, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Task), values)))
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{origin}: {str(error).splitlines()[0]} (key {error.full_key or '?'})"
        ) from None


def to_dict(task: Task) -> dict[str, Any]:
    return asdict(task)


def _read(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """The keys of a file, and of those that it extends. `above`: the files that extend it."""
    try:
        values = OmegaConf.create(yaml.safe_load(path.read_text()) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    base = values.pop("extends", None)
    if base is None:
        return values
    below = path.with_name(f"{base}.yaml")
    below = below if below.is_file() else FOLDER / f"{base}.yaml"
    above = (*above, path.resolve())
    if not below.is_file():
        raise ConfigError(f"{path}: extends: {base}: no such task{_hint(str(base))}")
    if below.resolve() in above:
        raise ConfigError(f"{path}: extends: {base}: which is itself, or extends this file")
    inherited = _read(below, above)
    if "columns" in values:  # a mapping would be merged: two tasks would fill one column
        inherited.pop("columns", None)
    return OmegaConf.merge(inherited, values)


def _problem(task: Task) -> str | None:
    """What is wrong with a task's keys, or None."""
    if task.runner not in ("generate", "harness"):
        return f"runner: {task.runner}: choose generate or harness"
    if not (task.title and task.group and task.columns):
        return "title, group and columns are needed: they make the tables"
    if task.items <= 0:
        return "items: how many items the data must have"
    if twice := [grader for grader in task.graders if task.graders.count(grader) > 1]:
        return f"graders: {twice[0]} is there twice"
    if task.runner == "harness":
        return _harness_problem(task)
    if not task.sources:
        return "sources: where the items come from"
    if not task.graders:
        return "graders: what grades the answers"
    if problem := _graders_problem(task) or _decoding_problem(task.decoding):
        return problem
    return next(filter(None, map(_source_problem, task.sources)), None)


def _graders_problem(task: Task) -> str | None:
    known = (*GRADERS, *OTHER_WRITES)
    optional: dict[str, Option] = {}
    metrics: list[str] = []
    for grader in task.graders:
        if grader not in known:
            return f"graders: {grader}: choose from {', '.join(known)}"
        if grader in GRADERS:
            optional |= GRADERS[grader].optional
            metrics += GRADERS[grader].metrics
        else:
            metrics += OTHER_WRITES[grader]
    for column, metric in task.columns.items():
        if _OF_SAMPLES.sub("", metric) not in metrics:
            return (
                f"columns: {column}: {metric}: no grader of the task gives it"
                f"{did_you_mean(metric, metrics)}; they give {', '.join(metrics)}, and with "
                "several samples METRIC/pass@K and METRIC/paper_rounding"
            )
    for key, value in task.grading.items():
        if key not in optional:
            readable = ", ".join(optional) or "nothing more"
            return f"grading: {key}: no grader of the task reads it; they read {readable}"
        if wanted := optional[key].problem(value):
            return f"grading: {key}: {value}: it must be {wanted}"
    return None


def _decoding_problem(decoding: Decoding) -> str | None:
    for key, right, wanted in (
        ("n", decoding.n >= 1, "1 or more"),
        ("temperature", 0 <= decoding.temperature < math.inf, "0 (greedy) or above"),
        ("max_tokens", decoding.max_tokens >= 1, "1 or more"),
        ("top_p", 0 < decoding.top_p <= 1, "above 0 and at most 1"),
    ):
        if not right:
            return f"decoding: {key}: {getattr(decoding, key)}: it must be {wanted}"
    return None


def _harness_problem(task: Task) -> str | None:
    if not task.harness_task:
        return "harness_task: the lm-eval task that this runs"
    if task.graders and not task.harness_task.startswith(CHOICES):
        return (
            f"graders: {', '.join(task.graders)}: lm-eval grades its tasks itself; only those of "
            f"{CHOICES}* are read by a grader of ours too"
        )
    if task.grading:
        return f"grading: {', '.join(task.grading)}: no grader of these tasks reads more"
    if set(task.graders) - {"mcq-robust"}:
        return f"graders: {', '.join(task.graders)}: only mcq-robust reads these tasks"
    return None


def _source_problem(source: Source) -> str | None:
    if source.reader not in READERS:
        return f"reader: {source.reader}: choose one of {', '.join(READERS)}"
    if source.generator and source.generator not in GENERATORS:
        return f"generator: {source.generator}: choose one of {', '.join(GENERATORS)}"
    if not (source.file or source.hub or source.generator):
        return "a source needs file, hub or generator"
    if source.verified and source.sha256 is None:
        return "verified: true needs a sha256"
    return None


LEGEND = """\
verified: the sha256 in the task file is that of the published data. unverified: the data could not
be fetched when the file was written, and only the number of items is checked; the hash of what you
have is recorded in every result."""


def list_tasks(options: argparse.Namespace) -> int:
    """`python -m adaptsft.evals tasks`."""
    rows = [("task", "items", "data", "graders", "title")]
    for name in names():
        task = load_task(name)
        state = "verified" if any(source.verified for source in task.sources) else "unverified"
        state = "gated" if task.gated else state
        own = [f"lm-eval {task.harness_task}"] if task.runner == "harness" else []
        graders = ", ".join([*own, *task.graders])
        rows.append((name, str(task.items), state, graders, task.title))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, items, state, graders, title in rows:
        print(f"{name:{wide[0]}} {items:>{wide[1]}}  {state:{wide[2]}} {graders:{wide[3]}} {title}")
    print(f"\n{LEGEND}")
    return 0
