"""Trackers, read back by their own readers: every step once, under TensorBoard's names, also of a
run that failed and was resumed; and a tracker that fails. The services' own telemetry is off."""

import contextlib
import importlib.util
import io
import json
import math
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from adaptsft.config.schema import Config
from adaptsft.errors import ConfigError, warn
from adaptsft.objectives.base import register
from adaptsft.objectives.library.functions import nll
from adaptsft.train import train
from adaptsft.training.trackers.build import Trackers, check_installed
from adaptsft.training.trackers.tensorboard import TensorBoard
from tests.runs import PROCESSES, metrics_of, small_config
from tests.training import wandb_file

INSTALLED = [name for name in ("wandb", "trackio", "mlflow") if importlib.util.find_spec(name)]
QUIET = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def environment(folder: Path) -> dict[str, str]:
    """What keeps the services in a folder."""
    stores = {"TRACKIO_DIR": folder / "trackio", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/ml.db"}
    return QUIET | {name: str(value) for name, value in stores.items()}


calls_left = 0


@register("nll_then_error")
def nll_then_error(logp):
    """NLL that fails after a number of calls, if that was set: a run that ends by an error."""
    global calls_left
    calls_left -= 1
    if calls_left == 0:
        raise RuntimeError("an accident")
    return nll(logp)


def tracked(config: Config, variables: dict[str, str], fail_after_calls: int) -> None:
    global calls_left
    os.environ.update(variables)
    calls_left = fail_after_calls
    train(config)


def in_process(work: Callable[..., None], *arguments: Any) -> int | None:
    """The exit code: services keep what they have read of the environment as long as the process
    lasts."""
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    process.join(300)
    return process.exitcode


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_model) -> Config:
    """A run that failed in step 6, when the trackers had five, and was resumed at step 3. (kill -9
    may lose what a service has not sent yet: a moment's steps.)"""
    folder = tmp_path_factory.mktemp("trackers")
    config = small_config(
        folder,
        tiny_model("llama", tied=False),
        objective__name="nll_then_error",
        train__micro_batch_size=5,
        data__packing=False,
        data__validation_examples=4,
        checkpoint__every=3,
        eval__every=3,
        log__every=1,
        log__trackers=["tensorboard", *INSTALLED],
    )
    # each step is a call, and so is each evaluation: at 0, 3 and 6
    for fail_after_calls, code in ((8, 1), (0, 0)):
        arguments = (config, environment(folder), fail_after_calls)
        assert in_process(tracked, *arguments) == code
        if code:
            assert len(metrics_of(config)) == 5
    return config


def expected(config: Config) -> tuple[dict[int, float], dict[int, float]]:
    """{step: nll} of training and of held-out data."""
    lines = (Path(config.run_dir) / "eval.jsonl").read_text().splitlines()
    evaluations = {row["step"]: row["nll"] for row in map(json.loads, lines)}
    assert list(evaluations) == [0, 3, 6]
    return {row["step"]: row["nll"] for row in metrics_of(config)}, evaluations


def test_tensorboard_shows_every_step_once(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(config.run_dir) / "tensorboard"))
    events.Reload()
    for tag, values in zip(("train/nll", "eval/nll"), expected(config), strict=True):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(step, pytest.approx(value)) for step, value in values.items()]


def test_wandb_has_every_step_once(config):
    pytest.importorskip("wandb")
    sessions = wandb_file.read(Path(config.run_dir))
    assert len(sessions) == 2 and sessions[0][0] == sessions[1][0], "the same run, continued"
    assert sessions[0][1]["train"]["lr"] == config.train.lr
    rows = [row for _, _, rows in sessions for row in rows]
    for name, values in zip(("train/nll", "eval/nll"), expected(config), strict=True):
        assert [(row["step"], row[name]) for row in rows if name in row] == list(values.items())
    last = next(row for row in rows if row["step"] == 6 and "train/nll" in row)
    assert sum(last["p/data/values"]) == last["train/tokens"]
    edges = last["p/data/bins"]
    assert len(edges) == 65 and edges == sorted(edges)
    middle = sum(
        count * (low + high) / 2
        for count, (low, high) in zip(last["p/data/values"], pairwise(edges), strict=True)
    )
    assert middle / last["train/tokens"] == pytest.approx(last["train/mean_p"], rel=0.2)


def test_trackio_has_every_step_once(config, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage
    from trackio.sqlite_storage import SQLiteStorage

    folder = Path(config.run_dir).parent
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", folder / "trackio")
    names = SQLiteStorage.get_runs("adaptsft")
    assert len(names) == 1 and names[0].startswith("run-"), "the same run, continued"
    settings = SQLiteStorage.get_run_config("adaptsft", names[0])
    assert settings["train"]["lr"] == config.train.lr
    rows = SQLiteStorage.get_logs("adaptsft", names[0])
    for name, values in zip(("train/nll", "eval/nll"), expected(config), strict=True):
        assert [(row["step"], row[name]) for row in rows if name in row] == list(values.items())
    drawn = [row for row in rows if "p/data" in row]
    assert sum(drawn[-1]["p/data"]["values"]) == drawn[-1]["train/tokens"]


def test_mlflow_has_every_step_once(config):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path(config.run_dir).parent}/ml.db")
    experiment = client.get_experiment_by_name("adaptsft")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == str(config.train.lr)
    for name, values in zip(("train/nll", "eval/nll"), expected(config), strict=True):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((point.step, point.value) for point in history) == list(values.items())


@pytest.fixture
def fresh(tmp_path) -> Config:
    (tmp_path / "run").mkdir()
    return Config(run_dir=str(tmp_path / "run"))


def start_three_times(config: Config, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    runs, printed, (name,) = [], io.StringIO(), config.log.trackers
    with contextlib.redirect_stderr(printed):
        for first in (0, 5, 0):
            trackers = Trackers(config, first)
            runs.append(trackers.active[name].run_id)
            # what a server may refuse: a number that is none, and a source's name with signs
            trackers.log("train", first + 1, {"train/nll": math.nan, "§ a, b/(c)/nll": 1.0})
            trackers.close(failed=False)
            assert list(trackers.state) == [name] and trackers.state[name]["train"] == first + 1
    assert "log.trackers" not in printed.getvalue(), "none has failed"
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_run_from_step_0_is_a_new_one(fresh, tmp_path, name):
    pytest.importorskip(name)
    fresh.log.trackers = [name]
    assert in_process(start_three_times, fresh, environment(tmp_path)) == 0


def lose_wandb(config: Config, variables: dict[str, str]) -> None:
    """In a process of its own: it is of no use to wandb afterwards."""
    import psutil

    os.environ.update(variables)
    printed = io.StringIO()
    trackers = Trackers(config, 0)
    trackers.log("train", 1, {"train/nll": 2.0})
    service = [p for p in psutil.Process().children(recursive=True) if "wandb" in p.name()]
    assert service
    for process in service:
        process.kill()
        process.wait()
    with contextlib.redirect_stderr(printed):
        for step in range(2, 5):
            trackers.log("train", step, {"train/nll": 1.0})
            trackers.flush()
        assert list(trackers.active) == ["tensorboard"]
        trackers.close(failed=False)
    assert printed.getvalue().count("warning: log.trackers: wandb failed") == 1


def test_wandb_that_dies_does_not_end_the_run(fresh, tmp_path):
    pytest.importorskip("wandb")
    pytest.importorskip("psutil")
    fresh.log.trackers = ["wandb", "tensorboard"]
    assert in_process(lose_wandb, fresh, environment(tmp_path)) == 0


def test_a_tracker_that_fails_in_the_middle_is_left_out(tmp_path, tiny_model, monkeypatch, capsys):
    """Whatever the service, and whatever it raises."""
    real = TensorBoard.log

    def log(self, step, scalars, histograms):
        if step >= 3:
            raise ConnectionResetError("the network is gone")
        real(self, step, scalars, histograms)

    monkeypatch.setattr(TensorBoard, "log", log)
    warn.cache_clear()
    config = small_config(
        tmp_path, tiny_model("llama", tied=False), log__trackers=["tensorboard"], log__every=1
    )
    train(config)
    assert [row["step"] for row in metrics_of(config)] == [1, 2, 3, 4, 5, 6]
    assert (Path(config.run_dir) / "final").is_dir()
    assert capsys.readouterr().err.count("tensorboard failed and gets no more of this run") == 1


def test_a_tracker_that_cannot_start_ends_the_run_before_it_trains(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model("llama", tied=False), log__trackers=["tensorboard"])
    Path(config.run_dir).mkdir()
    (Path(config.run_dir) / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"log\.trackers: tensorboard could not start: .*exists"):
        train(config)
    assert (Path(config.run_dir) / "metrics.jsonl").read_text() == ""


def out_of_reach(config: Config, variables: dict[str, str], said: str) -> None:
    os.environ.update(variables)
    with pytest.raises(ConfigError, match=f"could not start: (?s:.*){said}"):
        Trackers(config, 0)


@pytest.mark.parametrize(
    ("name", "variables", "said"),
    [
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": ""}, "API key"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "127.0.0.1"),
    ],
)
def test_a_service_out_of_reach_is_an_error_at_the_start(fresh, tmp_path, name, variables, said):
    pytest.importorskip(name)
    fresh.log.trackers = [name]
    variables = environment(tmp_path) | {"HOME": str(tmp_path)} | variables
    assert in_process(out_of_reach, fresh, variables, said) == 0


def test_a_package_that_is_missing(fresh, tmp_path, monkeypatch):
    fresh.log.trackers = ["wandb"]
    (tmp_path / "wandb").mkdir()  # such as wandb leaves beside a script: no package
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(
        ConfigError, match=r"wandb is not installed: pip install 'adaptsft\[wandb\]'"
    ):
        check_installed(fresh)
    fresh.log.trackers = ["tensorboard"]
    monkeypatch.undo()
    check_installed(fresh)


def test_a_missing_package_ends_the_run_before_anything_is_written(
    tmp_path, tiny_model, monkeypatch
):
    config = small_config(tmp_path, tiny_model("llama", tied=False), log__trackers=["mlflow"])
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    with pytest.raises(ConfigError, match="mlflow is not installed"):
        train(config)
    assert not Path(config.run_dir).exists()


def test_names_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"must be one of tensorboard, .*did you mean wandb"):
        small_config(tmp_path, tmp_path, log__trackers=["tensorboard", "wandbb"])
    with pytest.raises(ConfigError, match="names a tracker twice"):
        small_config(tmp_path, tmp_path, log__trackers=["tensorboard", "tensorboard"])
