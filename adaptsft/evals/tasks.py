"""Tasks: a pinned YAML file each, in adaptsft/evals/tasks.

A new evaluation is one more such file, there or anywhere else.

A file says where the data is and what it must hash to, the prompt, how to decode, who grades and
what to report; the dataclasses below are its keys. `extends: NAME` starts from another task;
`columns`, `sources` and other lists replace its own as a whole.
"""

import difflib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptsft.errors import ConfigError
from adaptsft.evals.backends import Sampling

FOLDER = Path(__file__).parent / "tasks"


@dataclass
class Source:
    """Where items come from: a file under --data-dir, a data set on the hub, or a generator.

    The first one at hand is used.
    """

    file: str = ""  # path under --data-dir
    hub: str = ""  # name on the hub
    subset: str | None = None
    split: str = "test"
    hub_file: str = ""  # a single file of `hub`, where that is not laid out as splits
    revision: str | None = None
    generator: str = ""  # a key of data.GENERATORS
    key: str = ""  # of the list wanted, in a JSON object of lists
    reader: str = "fields"  # a key of data.READERS: what turns a record into an item
    fields: dict[str, str] = field(default_factory=dict)  # field map, ours: theirs
    # of the file; of the items where they come otherwise. null: nobody could fetch it to hash
    sha256: str | None = None
    verified: bool = False  # sha256 and items were checked against the real data
    origin: str = ""  # where it was published
    licence: str = ""


@dataclass
class Prompt:
    system: str = ""
    user: str = "{question}"  # {name} stands for a field of the item
    # how the answer begins: put after the rendered prompt, and not part of the output
    start: str = ""
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
    # generate: the prompt is answered and graded. harness: lm-eval runs `harness_task`
    runner: str = "generate"
    harness_task: str = ""
    sources: list[Source] = field(default_factory=list)
    items: int = 0  # how many there must be
    prompt: Prompt = field(default_factory=Prompt)
    decoding: Decoding = field(default_factory=Decoding)
    graders: list[str] = field(default_factory=list)  # names in graders.GRADERS, or "code"
    columns: dict[str, str] = field(default_factory=dict)  # header in tables: metric
    gated: bool = False  # the user must ask its owners for it
    notes: list[str] = field(
        default_factory=list
    )  # what is unknown about the published protocol, or differs from it

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
    _check(task, str(path))
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
    if "columns" in values:  # of the other task's none stay: its figures are not this one's
        inherited.pop("columns", None)
    return OmegaConf.merge(inherited, values)


def _check(task: Task, origin: str) -> None:
    from adaptsft.evals.data import GENERATORS, READERS
    from adaptsft.evals.graders import GRADERS

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{origin}: {message}")

    require(task.runner in ("generate", "harness"), f"runner: {task.runner}: generate or harness")
    require(
        bool(task.title and task.group and task.columns),
        "title, group and columns are needed: they make the tables",
    )
    require(task.items > 0, "items: how many items the data must have")
    if task.runner == "harness":
        require(bool(task.harness_task), "harness_task: the lm-eval task that this runs")
        return
    require(bool(task.sources), "sources: where the items come from")
    require(bool(task.graders), "graders: who judges the answers")
    for grader in task.graders:
        require(
            grader in (*GRADERS, "code", "judge"),
            f"graders: {grader}: choose from {', '.join(GRADERS)}, code, judge",
        )
    for source in task.sources:
        require(
            source.reader in READERS, f"reader: {source.reader}: choose one of {', '.join(READERS)}"
        )
        require(
            not source.generator or source.generator in GENERATORS,
            f"generator: {source.generator}: one of {', '.join(GENERATORS)}",
        )
        require(
            bool(source.file or source.hub or source.generator),
            "a source needs file, hub or generator",
        )
        require(source.sha256 is not None or not source.verified, "verified: true needs a sha256")
    require(
        task.decoding.n >= 1 and task.decoding.temperature >= 0,
        "decoding: n must be at least 1 and temperature at least 0",
    )


LEGEND = """verified: the sha256 in the task file is that of the real data. unverified: it could not be fetched when the file was written,
and only the number of items is checked; the hash of what you have is recorded in every result."""


def describe() -> str:
    """What `python -m adaptsft.evals tasks` prints."""
    lines = [f"{'task':24} {'items':>6}  {'data':9} {'graders':28} title"]
    for name in names():
        task = load_task(name)
        state = (
            "gated"
            if task.gated
            else "verified"
            if any(source.verified for source in task.sources)
            else "unverified"
        )
        graders = ", ".join(task.graders) or f"lm-eval {task.harness_task}"
        lines.append(f"{name:24} {task.items:6}  {state:9} {graders:28} {task.title}")
    return "\n".join([*lines, "", LEGEND])
