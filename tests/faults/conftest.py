"""What the tests of faults share: a reference run, and the table of what was tried and survived."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptsft.config.schema import Config
from adaptsft.training.environment import environment
from tests.faults import faulty  # noqa: F401  registers the objective
from tests.faults.ranks import Life, live
from tests.runs import metrics_of, small_config


@dataclass
class Row:
    """A line of the table."""

    tried: int = 0
    survived: int = 0
    lost_steps: int = 0  # beyond the newest complete checkpoint


class Trial:
    """Counts what one test tries; all of it has survived when the test has come to its end."""

    def __init__(self, row: Row):
        self.row, self.begun = row, 0

    def begin(self) -> None:
        self.begun += 1
        self.row.tried += 1

    def resumed(self, before: Life, after: Life) -> None:
        """The next life must continue right behind the newest checkpoint that the last one left."""
        if after.steps:
            lost = before.newest + 1 - after.steps[0]
            self.row.lost_steps += max(lost, 0)
            assert lost == 0, (
                f"a checkpoint of step {before.newest} is complete, the next life begins with step "
                f"{after.steps[0]}"
            )


TABLE: dict[str, Row] = {}


@pytest.fixture(scope="session")
def tally() -> Callable:
    @contextmanager
    def trial(fault: str) -> Iterator[Trial]:
        trial = Trial(TABLE.setdefault(fault, Row()))
        try:
            yield trial
        except BaseException:
            trial.row.survived += max(trial.begun - 1, 0)
            raise
        trial.row.survived += trial.begun

    return trial


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def make_config(folder, tiny_model) -> Callable[..., Config]:
    """Configurations of one and the same run, in folders of their own. Dropout would show a lost
    seed, talr a lost statistic."""
    dropout = folder / "model"
    shutil.copytree(tiny_model("qwen2", tied=True), dropout)
    values = json.loads((dropout / "config.json").read_text())
    (dropout / "config.json").write_text(json.dumps(values | {"attention_dropout": 0.1}))
    settings = {
        "objective__name": "talr_with_faults",
        "data__validation_examples": 4,
        "checkpoint__every": 2,
        "eval__every": 2,
        "train__hang_timeout": 100,
    }
    return lambda name, **overrides: small_config(folder, dropout, name, **(settings | overrides))


@pytest.fixture(scope="session")
def reference(make_config) -> Config:
    """The run without a fault."""
    config = make_config("reference")
    life = live(config)
    assert life.codes == [0, 0], life.stderr[-4000:]
    return config


def assert_same(config: Config, reference: Config) -> None:
    """A run has ended bitwise as the reference."""
    assert metrics_of(config) == metrics_of(reference)
    ours, theirs = (Path(run.run_dir) for run in (config, reference))
    assert (ours / "eval.jsonl").read_text() == (theirs / "eval.jsonl").read_text()
    a, b = (load_file(run / "final" / "model.safetensors") for run in (ours, theirs))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.fixture(scope="session")
def same(reference) -> Callable[[Config], None]:
    return lambda config: assert_same(config, reference)


@pytest.fixture(scope="session")
def stopped_at_4(make_config) -> Path:
    """A run folder with the checkpoints of steps 2 and 4, whose ranks were killed in step 5; tests
    copy it."""
    config = make_config("stopped")
    life = live(config, {"rank": 0, "at": "step", "step": 5, "do": "kill"})
    assert life.newest == 4
    return Path(config.run_dir)


@pytest.fixture
def begun(make_config, stopped_at_4) -> Callable[..., Config]:
    """A copy of that run, in a new folder."""

    def copy(name: str, **overrides) -> Config:
        config = make_config(name, **overrides)
        shutil.copytree(stopped_at_4, config.run_dir)
        return config

    return copy


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults-json", default=None, help="write the table of tests/faults to this file"
    )


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    if not TABLE:
        return
    terminalreporter.section("faults")
    width = max(map(len, TABLE))
    terminalreporter.line(f"{'fault':<{width}}  tried  survived  lost steps")
    for fault, row in TABLE.items():
        terminalreporter.line(
            f"{fault:<{width}}  {row.tried:>5}  {row.survived:>8}  {row.lost_steps:>10}"
        )
    skipped = [
        str(report.longrepr[2])
        for report in terminalreporter.stats.get("skipped", [])
        if "faults" in report.nodeid
    ]
    for reason in skipped:
        terminalreporter.line(f"not run: {reason}")
    if path := config.getoption("--faults-json", default=None):
        rows = {fault: asdict(row) for fault, row in TABLE.items()}
        totals = {
            key: sum(row[key] for row in rows.values())
            for key in ("tried", "survived", "lost_steps")
        }
        result = {
            "faults": rows,
            "total": totals,
            "not_run": skipped,
            "exit_status": int(exitstatus),
            "environment": environment(),
        }
        Path(path).write_text(json.dumps(result, indent=1) + "\n")
