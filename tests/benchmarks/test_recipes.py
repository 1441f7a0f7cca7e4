"""The recipes of configs/paper: each one trains a tiny model of the same architecture as it stands, and none of their options is dead."""

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

from adaptsft import diagnose, train as trainer
from adaptsft.config.load import _parse_file
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, DataConfig, all_keys
from adaptsft.errors import UserError
from adaptsft.evals.__main__ import main as evaluate
from adaptsft.evals.tasks import load_task
from benchmarks.paper import reproduce, reproduce_small, reproduce_stages, reproduce_table
from benchmarks.paper.reproduce_table import BASE, RECIPES, Job, hub_name, jobs, paper_results, read

EVERY = sorted(
    path
    for path in RECIPES.glob("*/*.yaml")
    if path.parent.name != "parts" and path.name != "table.yaml"
)
# In every test run one per template and kind of objective; all of them, and the effect of every option, by `make nightly`.
FEW = [
    "table2/qwen2.5-math-1.5b_threshold",
    "table3/llama-3.2-3b_nll",
    "table4/qwen2.5-1.5b_neg_p",
    "table8/qwen2.5-3b_auto",
    "fig3/qwen2.5-math-1.5b_bottom_log1mp",
]
# Another value of each key that a recipe sets, to see that it changes what a run records.
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
    reproduce_small.stand_in_model(folder, "Qwen/elsewhere", seed=1)
    (folder / "Qwen" / "elsewhere").rename(folder / "elsewhere")
    rows = [{"prompt": f"Say {number}.", "completion": "No."} for number in range(512)]
    (folder / "elsewhere.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def stand_ins(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Path], None]:
    """Puts model and data where a recipe looks for them, relative to what is then the working directory."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))  # of the cache of tokenised data

    def put(recipe: Path) -> None:
        config = load_config([str(recipe)])
        reproduce_small.stand_in_model(place, config.model.path)
        reproduce_small.training_data(
            place, Job("", "", recipe=recipe), 2 * config.train.global_batch_size
        )

    return put


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the keys that the program reads one by one: neither in bulk, to save or compare them, nor to check them."""
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
                if asker.startswith("adaptsft") and asker not in (
                    "adaptsft.config",
                    "adaptsft.config.resolve",
                    "adaptsft.config.strict",
                ):
                    found.add(prefix + name)
            return plain(self, name)

        monkeypatch.setattr(cls, "__getattribute__", watched)
        for name in names:
            if dataclasses.is_dataclass(types[name]):
                watch(typing.cast(type, types[name]), f"{prefix}{name}.")

    watch(Config, "")
    return found


def said(recipe: Path) -> Iterator[tuple[str, str, Any]]:
    """(file, key, value) of everything that a recipe and the parts it is made of say, in the order in which it is merged."""
    for origin, values in _parse_file(recipe, ()):
        for name, _, _ in all_keys():
            if (value := OmegaConf.select(values, name)) is not None:
                yield (
                    origin,
                    name,
                    OmegaConf.to_container(value) if OmegaConf.is_config(value) else value,
                )


def restated(recipe: Path) -> list[str]:
    """What is in force without being said."""
    in_force, found = {name: default for name, _, default in all_keys()}, []
    for origin, name, value in said(recipe):
        found += [f"{origin}: {name}={value}"] if in_force[name] == value else []
        in_force[name] = value
    return found


def record(recipe: Path, run: Path, *overrides: str) -> list[dict[str, Any]] | str:
    """What a run of a recipe records, but for the clock; or the error that it is refused with."""
    try:
        config = load_config(
            [str(recipe), f"run_dir={run}", "log.tensorboard=false", "train.device=cpu", *overrides]
        )
        trainer.train(config)
    except UserError as error:
        return str(error)
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def without_effect(
    recipe: Path, folder: Path, only: set[tuple[str, str]] | None = None
) -> list[str]:
    """The keys whose other value changes nothing that a run records. Those that are `changeable` may not, and are not asked."""
    before, found = record(recipe, folder / "as_it_is"), []
    assert isinstance(before, list), before
    may = {name for name, declared, _ in all_keys() if declared.metadata["changeable"]}
    for origin, name, value in said(recipe):
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
    return [f"{origin}: {name}" for origin, name, _ in said(recipe) if name not in reads]


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
    """Recipe -> the (file, key) that it is the first to use: the effect of a part's option is looked at once."""
    seen: set[tuple[str, str]] = set()
    uses: dict[Path, set[tuple[str, str]]] = {}
    for path in EVERY:
        new = {(origin, name) for origin, name, _ in said(path)} - seen
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
    """An option that is never read, one that says what holds anyhow, and one that is read and changes nothing."""
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


def test_tables_name_their_recipes_tasks_and_results() -> None:
    """Every recipe belongs to a table, and every column to a task's metric and the paper's column."""
    found = set()
    for name in reproduce_table.names():
        table, content = read(name), paper_results(read(name).results)
        assert set(table.objectives) >= {"auto", *table.sweep}
        found |= {job.recipe for model in table.models for job in jobs(name, table, model, [])}
        for column in table.columns.values():
            for task in filter(None, (column.task, column.base_task)):
                assert (
                    column.metric.split("/")[0] in load_task(task).columns.values()
                    or column.metric == "jw_paper"
                )
        if table.results:
            assert content["columns"] == [
                *table.columns,
                *([table.average] if table.average else []),
            ]
            assert {row["model"] for row in content["rows"]} == set(table.models)
            assert {row["objective"] for row in content["rows"]} <= {BASE, *table.objectives}
        for model in table.models:
            assert reproduce_table.model_of(name, table, hub_name(name, model)) == model
    assert found == set(EVERY)


def test_printed_averages() -> None:
    """Exactly the rows marked as errata disagree with the mean of their columns, by more than the rounding of what is printed."""
    wrong, marked, count = set(), set(), 0
    for key, content in yaml.safe_load(reproduce_table.PAPER.read_text()).items():
        for row in content["rows"]:
            assert len(row["values"]) == len(content["columns"]), (key, row)
            if not content["columns"][-1].startswith("Avg"):
                assert "erratum" not in row
                continue
            *values, printed = row["values"]
            mean = sum(values) / len(values)
            digits = 1 if key in ("table9", "table10", "table12") else 2
            count += 1
            if abs(mean - printed) > 10**-digits:
                wrong.add((key, row["model"], row["objective"]))
            if "erratum" in row:
                marked.add((key, row["model"], row["objective"]))
                assert (
                    row["erratum"]["printed"] == printed
                    and abs(row["erratum"]["recomputed"] - mean) < 0.0051
                )
    assert wrong == marked and len(wrong) == 13 and count == 40


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stages run in this process: the same programs with the same arguments, without starting Python anew for each."""
    monkeypatch.chdir(tmp_path)
    programs = {
        "adaptsft.train": trainer.main,
        "adaptsft.diagnose": diagnose.main,
        "adaptsft.evals": evaluate,
    }

    def run(words: list[str], log: Path) -> None:
        assert words[:2] == ["python", "-m"] and programs[words[2]](words[3:]) == 0

    monkeypatch.setattr(reproduce_stages, "command", run)


def in_small() -> list[Any]:
    """Every table with each of its models, so that each recipe is trained and its model evaluated; in every test run, one."""
    pairs = [(name, model) for name in reproduce_table.names() for model in read(name).models]
    few = ("table4", "qwen2.5-1.5b")
    return [
        pytest.param(*pair, id="-".join(pair), marks=[] if pair == few else pytest.mark.nightly)
        for pair in pairs
    ]


@pytest.mark.parametrize(("name", "model"), in_small())
def test_reproduce_in_small(
    name: str, model: str, here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All stages of a table's model, with recorded answers replayed; the same command again finds everything done."""
    command = [name, "--small", "--model", model, "--out", str(tmp_path / "out")]
    assert reproduce.main(command) == 0, capfd.readouterr().err
    rows, table = json.loads((tmp_path / "out" / "rows.json").read_text()), read(name)
    ours = [row for row in rows if row["origin"] == "ours"]
    wanted = {"auto", "neg_p", "nll"} if name == "fig3" else {"auto", "nll"}
    assert {row["objective"] for row in ours} >= (wanted - {"nll"} if table.against else wanted)
    assert all(0 <= row["value"] <= 100 for row in ours)
    headers = {
        header
        for header, column in table.columns.items()
        if not column.models or model in column.models
    }
    assert {row["column"] for row in ours} - {table.average} == headers - {"LC WR"}, (
        "fitted with a file of the leaderboard"
    )
    if table.likelihood:
        assert all(0 < row["mean_p"] < 1 for row in ours)
    (text, _), markdown = capfd.readouterr(), (tmp_path / "out" / "table.md").read_text()
    assert "0 of " in text and "these numbers mean nothing" in markdown
    assert reproduce.main([*command, "--dry-run"]) == 0
    stages = text.split(" stages finished")[0].rsplit(" of ", 1)[1]
    assert f"{stages} of {stages} stages finished" in capfd.readouterr()[0]


def test_what_is_asked_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {
        "table2 --model llama-3.1-8b": ["data/numina_math.jsonl", "--accept-gated"],
        "table8": ["--judge"],
        "table9": ["--allow-code-exec", "--data-dir"],
    }
    for arguments, wanted in asked.items():
        assert reproduce.main(arguments.split()) == 2
        said = capsys.readouterr().err
        assert all(text in said for text in wanted), said
    assert list(tmp_path.iterdir()) == [], "nothing has run"
    for arguments, message in {
        "table5": "no such table",
        "table2 --model gpt2": "Qwen/Qwen2.5-Math-1.5B",
        "table2 --objectives focal": "nll, threshold",
    }.items():
        assert reproduce.main(arguments.split()) == 2 and message in capsys.readouterr().err


def test_stages_depend_on_the_data(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("one\n")
    config = Config(data=DataConfig(path=str(tmp_path / "data.jsonl")))
    before = reproduce_stages.contents(config)
    assert before == reproduce_stages.contents(config) and len(before) == 1
    (tmp_path / "data.jsonl").write_text("another\n")
    assert reproduce_stages.contents(config) != before
    assert (
        reproduce_stages.contents(Config(data=DataConfig(path=str(tmp_path / "later.jsonl")))) == []
    )


def test_dry_run_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "table2 --model Qwen/Qwen2.5-Math-7B --gpus 2 --strict --objectives threshold --dry-run train.micro_batch_size=2"
    assert reproduce.main(arguments.split()) == 0
    out = capsys.readouterr().out
    train = next(line for line in out.splitlines() if "adaptsft.train" in line)
    assert train.startswith("torchrun --standalone --nproc-per-node 2 -m adaptsft.train ")
    assert "parts/strict.yaml objective.normalizer=kept train.micro_batch_size=2" in train
    assert out.count("adaptsft.train") == 2, "threshold, and auto beside it"
    assert (
        "--template chatml" in out and "GPU hours" in out and "prepare_data.py numina_math" in out
    )
