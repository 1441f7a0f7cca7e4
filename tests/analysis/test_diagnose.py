"""The command: its files are complete, training reads them, and they are refused for another model
or other data."""

import dataclasses
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import diagnose as command
from adaptsft.config.load import save_config
from adaptsft.config.schema import Config, ControllerConfig
from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.data.loader import BatchLoader
from adaptsft.data.tokenized import TokenizedData
from adaptsft.data.training_data import TrainingData
from adaptsft.diagnose import Options, diagnose
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.errors import ConfigError
from adaptsft.model.build import build_model
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.statistics.base_model import BaseStatistics, BaseTokens
from adaptsft.train import train
from adaptsft.training.objective import base_statistics
from adaptsft.training.quantiles import set_quantile_thresholds
from tests.analysis.diagnosed import ALL, CPU, config_of, data_of, stats_of
from tests.runs import PROCESSES, small_config


def test_training_reads_what_was_measured(folder):
    """Controllers' signals, quantile thresholds, and the statistics of each token of a shuffled,
    packed training step."""
    config = config_of(
        folder,
        objective__name="threshold",
        objective__lower_quantile=0.3,
        train__micro_batch_size=2,
    )
    data, weights = data_of(config)
    out = folder / "run" / "diagnosis"
    base = BaseStatistics.load(out / "base_stats.json", model=weights, data=data, device=CPU)
    figures, signals = [stats_of(out)["sources"][name] for name in data.names], base.per_source()
    epoch = [figures[0]["tokens"], figures[1]["tokens"] * 0.5]  # weight 0.5
    torch.testing.assert_close(
        signals.tokens, torch.tensor([*epoch, sum(epoch)], dtype=torch.float64)
    )
    top1 = torch.stack([base.statistics.column(name) for name in ("top1", "tokens")], dim=1)
    top1 = torch.cat([top1, top1.sum(0, keepdim=True)])
    for measured, key in (
        (signals.mean_p, "mean_p"),
        (signals.low, "below_0.2"),
        (signals.high, "above_0.5"),
        (top1[:, 0] / top1[:, 1], "top1"),
    ):
        both = [source[key] for source in figures]
        expected = torch.tensor([*both, np.average(both, weights=epoch)], dtype=torch.float64)
        torch.testing.assert_close(measured, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(signals.histogram.sum(1), torch.ones(3, dtype=torch.float64))

    base_tokens = BaseTokens.open(out / "base_tokens.safetensors", model=weights, data=data)
    with process_group("cpu") as device:
        model = build_model(
            config.model,
            config.train,
            load_pretrained(config.model),
            device_mesh(device, 1),
            device,
        )
        opened = TrainingData(config, load_pretrained(config.model).tokenizer, None)
        loader = BatchLoader(opened, config, 0, True, device, base_tokens.of)
        for batch in loader.load(1):
            with torch.no_grad():
                _, tokens, _ = model.token_loss(batch, NLL, None, 1.0)
            for name in ("logp", "entropy", "collision", "top_logp"):
                measured = getattr(batch.reference, name)
                assert measured.dtype == torch.float32
                torch.testing.assert_close(measured, getattr(tokens, name), rtol=1e-4, atol=1e-5)
        assert all(
            batch.reference is None
            for batch in BatchLoader(opened, config, 0, True, device).in_order(data)
        )
        lower = {}
        for origin, known in (("measured", None), ("read", base)):
            fixed = ControllerConfig()
            objective = AdaptiveObjective(config.objective, controller=fixed, sources=2)
            set_quantile_thresholds(model, config.objective, objective, data, loader, known)
            lower[origin] = objective.state.lower
        loader.pool.shutdown()
    torch.testing.assert_close(lower["read"], lower["measured"], rtol=5e-3, atol=0)
    assert 0 < lower["read"].min() < lower["read"].max() < 1


def test_what_is_recommended_trains(folder):
    """In the run folder that holds the diagnosis. The controller starts from mean p of the base
    model, which it reads from the file."""
    out = folder / "run" / "diagnosis"
    report = (out / "diagnosis.md").read_text()
    recommended = re.search(r"^controller\..*$", report, re.MULTILINE)
    settings = dict(argument.split("=") for argument in recommended[0].split())
    assert settings == {
        "controller.name": "auto",
        "controller.base_stats": str(out / "base_stats.json"),
    }
    config = config_of(folder, train__max_steps=2, checkpoint__every=0, **settings)
    train(config)
    with process_group("cpu") as device:
        pretrained, (data, _) = load_pretrained(config.model), data_of(config)
        base = base_statistics(config, pretrained, data, device)
        started = AdaptiveObjective(
            config.objective,
            controller=config.controller,
            total_steps=2,
            sources=data.names,
            measured=base.per_source(),
        )
    means = [source["mean_p"] for source in stats_of(out)["sources"].values()]
    assert started.memory["mean_p"][:-1].tolist() == pytest.approx(means)


def test_files_of_another_model_or_data_are_refused(folder, tmp_path):
    out = folder / "run" / "diagnosis"
    stats, tokens = out / "base_stats.json", out / "base_tokens.safetensors"
    data, weights = data_of(config_of(folder))

    def opened(model: Path = weights, of: TokenizedData = data, path: Path = stats) -> None:
        BaseStatistics.load(path, model=model, data=of, device=CPU)

    other = tmp_path / "trained"
    AutoModelForCausalLM.from_pretrained(weights).save_pretrained(other)
    AutoTokenizer.from_pretrained(weights).save_pretrained(other)
    opened(model=weights)
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: tensor + 1e-4 for name, tensor in tensors.items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    shorter, _ = data_of(config_of(folder, data__overlong="truncate", data__max_length=40))
    for refused in (
        lambda: opened(model=other),
        lambda: BaseTokens.open(tokens, model=other, data=data),
    ):
        with pytest.raises(
            ConfigError,
            match=r"another model \(.*known/final\).*fingerprint is \w{12}, this run's \w{12}; "
            "run `python -m",
        ):
            refused()
    for refused in (
        lambda: opened(of=shorter),
        lambda: BaseTokens.open(tokens, model=weights, data=shorter),
    ):
        with pytest.raises(
            ConfigError,
            match=r"another data .*fingerprint is \w{12}, this run's \w{12}; run `python -m",
        ):
            refused()
    with pytest.raises(
        ConfigError, match="the source poems of the training data is missing; there is sums, b"
    ):
        opened(of=dataclasses.replace(data, names=["sums", "poems"]))
    half = tmp_path / "base_stats.json"
    half.write_text(stats.read_text()[:1000])
    with pytest.raises(ConfigError, match=r"base_stats\.json: cannot be read"):
        opened(path=half)
    half.write_text('{"schema": 0}')
    with pytest.raises(ConfigError, match="its schema is 0, not 1"):
        opened(path=half)
    half.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(
        ConfigError, match=r"base_tokens=.*cannot be read.*sample=all per_token=true"
    ):
        BaseTokens.open(half, model=weights, data=data)
    # that of version 1, with log p alone
    save_file({"logp": load_file(tokens)["logp"]}, half, {"schema": "1"})
    with pytest.raises(ConfigError, match=r"schema is 1, not 2.*sample=all per_token=true"):
        BaseTokens.open(half, model=weights, data=data)


def _killed_while_saving(config: Config, out: str) -> None:
    """Ends by SIGKILL in the middle of the picture: before that base_tokens.safetensors was
    replaced, base_stats.json was not."""

    def half(path: Path, sources: dict) -> None:
        path.write_bytes(b"\x89PNG half of a picture")
        os.kill(os.getpid(), signal.SIGKILL)

    command.plot = half
    diagnose(dataclasses.replace(ALL, out=out), config)


def test_a_kill_leaves_whole_files(folder, tmp_path):
    config, out = config_of(folder), tmp_path / "out"
    process = PROCESSES.Process(target=_killed_while_saving, args=(config, str(out)))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == [
        "base_tokens.safetensors",
        "diagnosis.png.tmp",
    ]
    data, weights = data_of(config)
    found = BaseTokens.open(out / "base_tokens.safetensors", model=weights, data=data)
    assert found.of(len(data) - 1).shape == (6, data.target_tokens[-1])
    diagnose(dataclasses.replace(ALL, out=str(out)), config)
    names = ["base_stats.json", "base_tokens.safetensors", "diagnosis.md", "diagnosis.png"]
    assert sorted(path.name for path in out.iterdir()) == names


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sample=0", "sample=0: must be a number of examples"),
        ("sample=-5", "sample=-5: must be"),
        ("per_token=yes", "per_token=yes: must be true or false"),
        ("per_token=true", "per_token=true needs every example, but sample=2000: add sample=all"),
        ("samples=5", "unknown key samples"),
        ("out=/proc/nowhere", "out=/proc/nowhere: this folder cannot be made"),
    ],
)
def test_arguments_that_cannot_work(folder, tmp_path, capsys, argument, message):
    save_config(config_of(folder), tmp_path / "config.yaml")
    assert command.main([str(tmp_path / "config.yaml"), argument]) == 2
    assert message in capsys.readouterr().err


def test_help_names_its_own_keys(capsys):
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(field.name in text for field in dataclasses.fields(Options))


def test_data_smaller_than_a_step_can_be_diagnosed(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model(), train__max_steps=0, train__global_batch_size=1000)
    assert "mean p" in diagnose(Options(), config)
