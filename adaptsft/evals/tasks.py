"""Tasks: a pinned YAML file each, in adaptsft/evals/tasks.

A new evaluation is one more such file, there or anywhere else. It holds where the data is and its
sha256, the prompt, how to decode, the graders and what to report; the dataclasses below are its
keys. `extends: NAME` starts from another task; `columns`, `sources` and other lists replace those
of that task as a whole.
"""

import argparse
import difflib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptsft.errors import ConfigError
from adaptsft.evals.graders.registry import GRADERS
from adaptsft.evals.protocol import Sampling
from adaptsft.evals.readers import GENERATORS, READERS

FOLDER = Path(__file__).parent / "tasks"
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
    # keys of GRADERS, "code" or "judge"; with `harness` those beside lm-eval's own
    # optional keys that graders read, such as units: strict, for every item
    grading: dict[str, Any] = field(default_factory=dict)
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
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "`python -m adaptsft.evals tasks` lists them"
        raise ConfigError(f"--tasks {name}: no such task; {hint}")
    task = from_dict(_read(path), str(path))
    task.name = path.stem
    if problem := _problem(task):
        raise ConfigError(f"{path}: {problem}")
    return task


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


def _read(path: Path) -> Any:
    try:
        values = OmegaConf.create(yaml.safe_load(path.read_text()) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    base = values.pop("extends", None)
    if base is None:
        return values
    below = path.with_name(f"{base}.yaml")
    inherited = _read(below if below.is_file() else FOLDER / f"{base}.yaml")
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
    if task.runner == "harness":
        return _harness_problem(task)
    if not task.sources:
        return "sources: where the items come from"
    if not task.graders:
        return "graders: what grades the answers"
    known = (*GRADERS, "code", "judge")
    for grader in task.graders:
        if grader not in known:
            return f"graders: {grader}: choose from {', '.join(known)}"
    optional: dict[str, tuple[str, ...]] = {}
    for grader in task.graders:
        optional |= GRADERS[grader].optional if grader in GRADERS else {}
    for key, value in task.grading.items():
        if key not in optional:
            known = ", ".join(optional) or "nothing more"
            return f"grading: {key}: no grader of the task reads it; they read {known}"
        if optional[key] and value not in optional[key]:
            return f"grading: {key}: {value}: choose {' or '.join(optional[key])}"
    if task.decoding.n < 1 or task.decoding.temperature < 0:
        return "decoding: n must be at least 1 and temperature at least 0"
    return next(filter(None, map(_source_problem, task.sources)), None)


def _harness_problem(task: Task) -> str | None:
    if not task.harness_task:
        return "harness_task: the lm-eval task that this runs"
    if task.graders and not task.harness_task.startswith(CHOICES):
        return (
            f"graders: {', '.join(task.graders)}: lm-eval grades its tasks itself; only those of "
            f"{CHOICES}* are read by a grader of ours too"
        )
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
    print(f"{'task':24} {'items':>6}  {'data':9} {'graders':28} title")
    for name in names():
        task = load_task(name)
        state = "verified" if any(source.verified for source in task.sources) else "unverified"
        state = "gated" if task.gated else state
        own = [f"lm-eval {task.harness_task}"] if task.runner == "harness" else []
        graders = ", ".join([*own, *task.graders])
        print(f"{name:24} {task.items:6}  {state:9} {graders:28} {task.title}")
    print(f"\n{LEGEND}")
    return 0
