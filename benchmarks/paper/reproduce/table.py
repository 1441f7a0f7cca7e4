"""What a table or figure of the paper consists of: configs/paper/TABLE/table.yaml, its recipes, and
the numbers that the paper prints."""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.errors import ConfigError
from benchmarks.lab import settings

REPO = Path(__file__).resolve().parents[3]
RECIPES = REPO / "configs" / "paper"
PAPER = Path(__file__).with_name("paper_results.yaml")
BASE = "base"  # the objective of a model that was not trained
# who published a model -> (format in which its base model is asked, architecture of its tiny
# stand-in)
FAMILIES = {
    "Qwen": ("chatml", "qwen2"),
    "meta-llama": ("llama3", "llama"),
    "deepseek-ai": ("deepseek", "llama"),
}


@dataclass
class Column:
    task: str = ""  # of adaptsft.evals
    metric: str = ""
    base_task: str = ""  # what the untrained model is asked instead
    condition: str = ""  # only of runs under this condition
    models: list[str] = field(default_factory=list)  # only of these


@dataclass
class Sweep:
    key: str = ""
    values: list[float] = field(default_factory=list)


@dataclass
class Table:
    title: str = ""
    models: list[str] = field(default_factory=list)  # as in the names of recipes
    objectives: list[str] = field(default_factory=list)
    # recipes are MODEL_OBJECTIVE_CONDITION then
    conditions: list[str] = field(default_factory=list)
    sweep: dict[str, Sweep] = field(default_factory=dict)  # objective -> the key that is varied
    columns: dict[str, Column] = field(default_factory=dict)  # in the paper's order
    average: str = ""  # header of their mean
    against: str = ""  # the objective whose answers a judge compares the others' with
    likelihood: bool = False  # also measure mean p of the trained models on their training set
    figure: str = ""  # a kind of benchmarks.paper.figures
    results: str = ""  # key of paper_results.yaml
    # arguments of python -m benchmarks.paper.prepare
    prepare: list[str] = field(default_factory=list)
    examples: int = 0  # of the training set
    tokens: int = 0  # of an example, guessed
    # data whose owners must be asked, besides gated models
    gated: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # footnotes


@dataclass(frozen=True)
class Job:
    """One trained model, or the untrained one (objective base)."""

    model: str
    objective: str
    condition: str = ""
    key: str = ""  # what a sweep varies
    value: float = 0.0
    recipe: Path | None = None

    @property
    def name(self) -> str:
        value = f"-{self.value:g}" if self.key else ""
        return f"{self.objective}{value}" + (f"_{self.condition}" if self.condition else "")

    @property
    def arguments(self) -> list[str]:
        """The configuration, without run_dir."""
        return [str(self.recipe)] + ([f"{self.key}={self.value:g}"] if self.key else [])


def names() -> list[str]:
    """All tables, then all figures, each in the paper's order."""
    found = [path.parent.name for path in RECIPES.glob("*/table.yaml")]
    return sorted(
        found, key=lambda name: (not name.startswith("table"), int(re.sub(r"\D", "", name)))
    )


@cache
def read(name: str) -> Table:
    """Raises ConfigError where there is no such table."""
    if name not in names():
        raise ConfigError(f"{name}: no such table or figure; choose one of {', '.join(names())}")
    return settings.read(Table, RECIPES / name / "table.yaml", [])


def recipe(table: str, model: str, objective: str, condition: str = "") -> Path:
    return (
        RECIPES
        / table
        / (f"{model}_{objective}" + (f"_{condition}" if condition else "") + ".yaml")
    )


def model_of(name: str, table: Table, asked: str) -> str:
    """The short name of a model that is asked for by it or by its name on the hub. Raises
    ConfigError."""
    hub = {hub_name(name, model): model for model in table.models}
    if asked.lower() in table.models or asked in hub:
        return hub.get(asked, asked.lower())
    raise ConfigError(
        f"--model {asked}: {name} has "
        f"{', '.join(f'{short} ({long})' for long, short in hub.items())}"
    )


@cache
def hub_name(name: str, model: str) -> str:
    table = read(name)
    first = recipe(name, model, table.objectives[0], (table.conditions or [""])[0])
    return load_config([str(first)]).model.path


def jobs(name: str, table: Table, model: str, objectives: list[str]) -> list[Job]:
    """The trainings of a model, with the adaptive default whatever the objectives. Raises
    ConfigError for an unknown objective."""
    if unknown := [objective for objective in objectives if objective not in table.objectives]:
        raise ConfigError(
            f"--objectives {' '.join(unknown)}: {name} has {', '.join(table.objectives)}"
        )
    found = []
    for objective in [
        o
        for o in table.objectives
        if o in objectives or o in ("auto", table.against) or not objectives
    ]:
        for condition in table.conditions or [""]:
            path = recipe(name, model, objective, condition)
            sweep = table.sweep.get(objective)
            for value in sweep.values if sweep else [0.0]:
                found.append(
                    Job(model, objective, condition, sweep.key if sweep else "", value, path)
                )
    return found


def columns_of(table: Table, job: Job) -> dict[str, Column]:
    """The columns that a job fills. The untrained model, which knows no condition, fills the first
    condition's."""
    condition = job.condition or (table.conditions or [""])[0]
    return {
        header: column
        for header, column in table.columns.items()
        if (not column.models or job.model in column.models)
        and (not column.condition or column.condition == condition)
    }


def tasks_of(table: Table, job: Job) -> list[str]:
    """The evaluator's tasks that a job is asked."""
    columns = columns_of(table, job).values()
    return list(
        dict.fromkeys(
            (job.objective == BASE and column.base_task) or column.task for column in columns
        )
    )


def billions(hub: str) -> float:
    """The nominal number of parameters, as the model's name has it."""
    match = re.search(r"(\d+(?:\.\d+)?)[bB]\b", hub)
    if match is None:
        raise ConfigError(
            f"model.path={hub}: no number of parameters in the name, so that no estimate can be "
            "made"
        )
    return float(match[1])


def data_files(config: Config) -> list[Path]:
    return [Path(source.path) for source in config.data.sources] or [Path(config.data.path)]


def paper_results(key: str) -> dict[str, Any]:
    """A table of paper_results.yaml: title, columns, rows; empty for a figure."""
    content = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(PAPER)))
    return content[key] if key else {"columns": [], "rows": []}
