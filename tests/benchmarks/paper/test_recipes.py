"""The recipes of configs/paper: each one trains a tiny model of the same architecture as it stands,
and none of their options is dead."""

import dataclasses
import json
import math
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from adaptsft import train as trainer
from adaptsft.config.load import _parse_file
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, all_keys
from adaptsft.errors import UserError
from benchmarks.paper.reproduce import small
from benchmarks.paper.reproduce.table import RECIPES, Job

EVERY = sorted(
    path
    for path in RECIPES.glob("*/*.yaml")
    if path.parent.name != "parts" and path.name != "table.yaml"
)


# In every test run one per template and kind of objective; all of them, and the effect of every
# option, by `make nightly`.
FEW = [
    "table2/qwen2.5-math-1.5b_threshold",
    "table3/llama-3.2-3b_nll",
    "table4/qwen2.5-1.5b_neg_p",
    "table8/qwen2.5-3b_auto",
    "fig3/qwen2.5-math-1.5b_bottom_log1mp",
]


# Another value of each key that a recipe sets, to see that it changes what a run records.
# Modules that read every key, to merge, explain or check it.
CHECKS = {f"adaptsft.config.{name}" for name in ("load", "reference", "resolve", "schema")}
OTHER: dict[str, Any] = {
    "data.path": "elsewhere.jsonl",
    "data.sources": [{"path": "elsewhere.jsonl"}],
    "data.max_length": 24,
    "data.template": {"chat": "plain", "plain": "chat"},
    "data.prompt_template": "Q: {prompt} A: ",
    "model.path": "elsewhere",
    "train.lr": 1e-2,
    "train.weight_decay": 100.0,
    "train.warmup_ratio": 0.9,
    "train.global_batch_size": 16,
    "objective.name": "focal",
    "objective.base": "focal",
    "objective.alpha": 3.0,
    "objective.lower": 0.002,
    "objective.lower_quantile": 0.9,
    "objective.upper_quantile": 0.9,
    "controller.name": "fixed",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES).with_suffix(""))


def few_or_nightly(paths: list[Path]) -> list[Any]:
    marks = {path: [] if name_of(path) in FEW else [pytest.mark.nightly] for path in paths}
    return [pytest.param(path, id=name_of(path), marks=marks[path]) for path in paths]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    small.stand_in_model(folder, "Qwen/elsewhere", seed=1)
    (folder / "Qwen" / "elsewhere").rename(folder / "elsewhere")
    rows = [{"prompt": f"Say {number}.", "completion": "No."} for number in range(512)]
    (folder / "elsewhere.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def stand_ins(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Path], None]:
    """Puts model and data where a recipe looks for them, relative to what is then the working
    directory."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))  # of the cache of tokenised data

    def put(recipe: Path) -> None:
        config = load_config([str(recipe)])
        small.stand_in_model(place, config.model.path)
        small.training_data(place, Job("", "", recipe=recipe), 2 * config.train.global_batch_size)

    return put


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the keys that the program reads one by one: neither in bulk, to save or compare
    them, nor to check them."""
    found: set[str] = set()

    def watch(cls: type, prefix: str) -> None:
        types, names = (
            typing.get_type_hints(cls),
            {declared.name for declared in dataclasses.fields(cls)},
        )
        plain = cls.__getattribute__

        def watched(self: Any, name: str) -> Any:
            if name in names:
                asker = sys._getframe(1).f_globals["__name__"]
                if asker.startswith("adaptsft") and asker not in CHECKS:
                    found.add(prefix + name)
            return plain(self, name)

        monkeypatch.setattr(cls, "__getattribute__", watched)
        for name in names:
            if dataclasses.is_dataclass(types[name]):
                watch(typing.cast(type, types[name]), f"{prefix}{name}.")

    watch(Config, "")
    return found


def stated(recipe: Path) -> Iterator[tuple[str, str, Any]]:
    """(file, key, value) of everything that a recipe and its parts state, in the order in which it
    is merged."""
    for origin, values in _parse_file(recipe, ()):
        for name, _, _ in all_keys():
            if (value := OmegaConf.select(values, name)) is not None:
                yield (
                    origin,
                    name,
                    OmegaConf.to_container(value) if OmegaConf.is_config(value) else value,
                )


def restated(recipe: Path) -> list[str]:
    """What is in force without being stated."""
    in_force, found = {name: default for name, _, default in all_keys()}, []
    for origin, name, value in stated(recipe):
        found += [f"{origin}: {name}={value}"] if in_force[name] == value else []
        in_force[name] = value
    return found


def record(recipe: Path, run: Path, *overrides: str) -> list[dict[str, Any]] | str:
    """What a run of a recipe records, but for the clock; or the error that it is refused with."""
    try:
        config = load_config(
            [str(recipe), f"run_dir={run}", "log.trackers=[]", "train.device=cpu", *overrides]
        )
        trainer.train(config)
    except UserError as error:
        return str(error)
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def without_effect(
    recipe: Path, folder: Path, only: set[tuple[str, str]] | None = None
) -> list[str]:
    """The keys whose other value changes nothing that a run records. Those that are `changeable`
    may not, and are not asked."""
    before, found = record(recipe, folder / "as_it_is"), []
    assert isinstance(before, list), before
    may = {name for name, declared, _ in all_keys() if declared.metadata["changeable"]}
    for origin, name, value in stated(recipe):
        if name in may or (only is not None and (origin, name) not in only):
            continue
        other = OTHER[name][value] if isinstance(OTHER[name], dict) else OTHER[name]
        text = json.dumps(other) if isinstance(other, list | str) else f"{other}"
        found += (
            [f"{origin}: {name}"]
            if record(recipe, folder / name, f"{name}={text}") == before
            else []
        )
    return found


def unread(recipe: Path, reads: set[str]) -> list[str]:
    return [f"{origin}: {name}" for origin, name, _ in stated(recipe) if name not in reads]


@pytest.mark.parametrize("path", few_or_nightly(EVERY))
def test_recipe_trains(
    path: Path, stand_ins: Callable[[Path], None], reads: set[str], tmp_path: Path
) -> None:
    """As it stands: two steps of its own batch, every option read."""
    stand_ins(path)
    rows = record(path, tmp_path / "run")
    assert isinstance(rows, list), rows
    assert len(rows) >= 2 and all(math.isfinite(row["loss"] + row["grad_norm"]) for row in rows)
    assert (tmp_path / "run" / "final" / "config.json").is_file()
    assert unread(path, reads) == []


def first_uses() -> dict[Path, set[tuple[str, str]]]:
    """Recipe -> the (file, key) that it is the first to use: the effect of a part's option is
    looked at once."""
    seen: set[tuple[str, str]] = set()
    uses: dict[Path, set[tuple[str, str]]] = {}
    for path in EVERY:
        new = {(origin, name) for origin, name, _ in stated(path)} - seen
        seen |= new
        if {name for _, name in new} != {"run_dir"}:
            uses[path] = new
    return uses


@pytest.mark.nightly
def test_options_have_an_effect(stand_ins: Callable[[Path], None], tmp_path: Path) -> None:
    silent = []
    for path, new in first_uses().items():
        stand_ins(path)
        silent += without_effect(path, tmp_path / name_of(path), new)
    assert not silent, "\n".join(silent)


def test_dead_options_are_caught(
    stand_ins: Callable[[Path], None],
    reads: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An option that is never read, one that says what holds anyhow, and one that is read and
    changes nothing."""
    good = RECIPES / "table4" / "qwen2.5-1.5b_neg_p.yaml"
    stand_ins(good)
    bad = tmp_path / "bad.yaml"
    dead = {
        "eval": {"max_tokens": 128},
        "train": {"lr": 5e-5, "global_batch_size": 64, "max_nonfinite_steps": 7},
    }
    monkeypatch.setitem(OTHER, "train.max_nonfinite_steps", 9)
    bad.write_text(yaml.safe_dump({"extends": str(good), **dead}))
    silent = {(str(bad), name) for name in ("train.max_nonfinite_steps", "train.global_batch_size")}
    assert without_effect(bad, tmp_path / "runs", silent) == [f"{bad}: train.max_nonfinite_steps"]
    assert unread(bad, reads) == [f"{bad}: eval.max_tokens"]
    assert restated(bad) == [f"{bad}: train.lr=5e-05"]


def test_nothing_is_restated() -> None:
    assert [text for path in EVERY for text in restated(path)] == []


def test_settings_of_appendix_c() -> None:
    """Those that the recipes leave to the program's defaults, too."""
    for path in EVERY:
        config = load_config([str(path)])
        train = config.train
        assert (
            train.epochs,
            train.max_steps,
            train.lr_schedule,
            train.warmup_ratio,
            train.lr_min_ratio,
        ) == (1, 0, "cosine", 0.1, 0)
        assert (
            train.betas,
            train.clip_norm,
            config.data.overlong,
            config.data.template != "auto",
        ) == ([0.9, 0.95], 1, "drop", True)
        assert config.objective.normalizer == "all" and not config.objective.unit_mass
        assert config.run_dir == f"runs/paper/{name_of(path)}"
        name, table = path.stem, path.parent.name
        if table != "table8":
            assert train.global_batch_size == 256
            smaller = {"fig5": {"14b": 2e-5, "32b": 1e-5}}.get(table, {}).get(
                name.split("_")[0].split("-")[-1]
            )
            assert train.lr == (
                smaller or (2e-5 if "llama-3.1-8b" in name or "noisy" in name else 5e-5)
            ), path
    sizes = {"qwen2.5-3b": (5e-5, 8), "qwen2.5-7b": (2e-6, 4), "qwen2.5-14b": (1e-6, 2)}
    for model, expected in sizes.items():
        train = load_config([str(RECIPES / "table8" / f"{model}_neg_p.yaml")]).train
        assert (train.lr, train.global_batch_size) == expected
