"""log.profile: a Chrome trace of the steps that were asked for, and of no other."""

import gzip
import json
from pathlib import Path

import pytest

from adaptsft.errors import ConfigError
from adaptsft.train import train
from tests.runs import metrics_of, small_config


def trace(config, name: str) -> list[dict]:
    with gzip.open(Path(config.run_dir) / "profile" / name) as file:
        return json.load(file)["traceEvents"]


def optimizer_steps(events: list[dict]) -> int:
    return sum(event["name"].startswith("Optimizer.step") for event in events if "dur" in event)


def test_the_trace_holds_these_steps_with_their_memory(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model("llama", tied=False), log__profile=[2, 4])
    train(config)
    assert len(metrics_of(config)) == 6
    (path,) = (Path(config.run_dir) / "profile").iterdir()
    events = trace(config, path.name)
    assert path.name == "steps_3_to_4_rank_0.json.gz"
    assert optimizer_steps(events) == 2
    assert any(event["name"] == "[memory]" for event in events)
    assert any(event["name"] == "aten::mm" for event in events)


def test_a_run_that_ends_in_between_leaves_what_it_has(tmp_path, tiny_model, capsys):
    model = tiny_model("llama", tied=False)
    config = small_config(tmp_path, model, log__profile=[4, 6], checkpoint__every=2)
    train(config)
    events = trace(config, "steps_5_to_6_rank_0.json.gz")
    assert optimizer_steps(events) == 2, "up to its end"
    again = small_config(
        tmp_path, model, log__profile=[1, 3], resume=f"{config.run_dir}/checkpoints/step_00000002"
    )
    train(again)
    assert (
        "log.profile=[1, 3]: this run continues from step 2: no profile" in capsys.readouterr().err
    )
    assert len(list((Path(config.run_dir) / "profile").iterdir())) == 1


def test_off_by_default(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model("llama", tied=False), train__max_steps=1)
    train(config)
    assert not (Path(config.run_dir) / "profile").exists()


@pytest.mark.parametrize("steps", [[3, 3], [-1, 2], [4, 2], [3]])
def test_steps_that_are_none_are_refused(tmp_path, steps):
    with pytest.raises(ConfigError, match=r"log\.profile=.*: must be \[start, stop\] with 0 <= st"):
        small_config(tmp_path, tmp_path, log__profile=steps)


def test_steps_after_the_end_are_refused(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model("llama", tied=False), log__profile=[5, 7])
    with pytest.raises(ConfigError, match=r"log\.profile=\[5, 7\]: this run has 6 steps"):
        train(config)
    assert not (Path(config.run_dir) / "metrics.jsonl").exists()
