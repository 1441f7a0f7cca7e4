"""The diagnosis: its figures are those of a plain forward, for any split; its files are whole, and refused where they do not belong."""

import dataclasses
import json
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
from adaptsft.analysis.continuum import REFERENCES, cautions, place_of
from adaptsft.analysis.diagnosis import markdown
from adaptsft.config.load import save_config
from adaptsft.config.schema import Config
from adaptsft.data.loader import BatchLoader
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.data.training_data import TrainingData
from adaptsft.diagnose import Options, diagnose, drawn, interval, needed
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.errors import ConfigError
from adaptsft.model.build import build_model
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.objectives.state import initial_state
from adaptsft.statistics.base_model import BaseLogProbabilities, BaseStatistics
from adaptsft.train import train
from adaptsft.training.quantiles import with_quantiles
from tests.distributed.two_ranks import torchrun
from tests.runs import PROCESSES, metrics_of, small_config, write_data

CPU = torch.device("cpu")
ALL = Options(sample=None, per_token=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model) -> Path:
    """Two sources, a model that has learned the first a little (`known`), and its diagnosis, in the run folder."""
    folder = tmp_path_factory.mktemp("diagnose")
    write_data(folder / "data.jsonl", 20)
    write_data(folder / "sums.jsonl", 24, seed=1)
    lines = [{"prompt": f"{i}?", "completion": "Add 3, 4 " * (1 + i % 3)} for i in range(9)]
    (folder / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(
        small_config(folder, tiny_model("llama"), "known", train__max_steps=25, checkpoint__every=0)
    )
    diagnose(ALL, config_of(folder))
    return folder


def config_of(folder: Path, model: Path | None = None, **overrides) -> Config:
    sources = [
        {"path": str(folder / "sums.jsonl")},
        {"path": str(folder / "b.jsonl"), "weight": 0.5},
    ]
    settings = {"data__path": '""', "data__sources": sources} | overrides
    return small_config(folder, model or folder / "known" / "final", "run", **settings)


def stats_of(out: Path) -> dict:
    return json.loads((out / "base_stats.json").read_text())


def data_of(config: Config) -> tuple[TokenizedData, Path]:
    pretrained = load_pretrained(config.model)
    return open_data(config.data, pretrained.tokenizer, config.seed, lambda line: None)[
        0
    ], pretrained.folder


def plain_forward(
    model: Path, data: TokenizedData, stored: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """fp64 log p over the vocabulary before each target token, [tokens, V], of every example, by transformers alone. `stored`: what the
    weights are rounded to before."""
    # eager: transformers 5.17 gives gemma2 SDPA, which leaves the soft cap of its attention out
    reference = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    for parameter in reference.parameters():
        parameter.data = parameter.data.to(stored).double()
    found = []
    for example in range(len(data)):
        ids, mask = data.example(example)
        with torch.no_grad():
            logits = reference(torch.from_numpy(ids)[None]).logits[0]
        found.append(logits.log_softmax(1)[np.flatnonzero(mask) - 1])
    return found


@pytest.mark.parametrize("case", ["trained", "gemma2", "bf16_masters"])
def test_figures_are_those_of_a_plain_forward(folder, tmp_path, tiny_model, case):
    """gemma2: a soft cap on the logits, far from linear for weights as large as these. bf16_masters: the weights that are trained."""
    model = (
        tiny_model("gemma2", initializer_range=0.5)
        if case == "gemma2"
        else folder / "known" / "final"
    )
    rounded = case == "bf16_masters"
    config, out = (
        config_of(folder, model, model__param_dtype="bf16" if rounded else "fp32"),
        folder / "run" / "diagnosis",
    )
    if case != "trained":
        report = diagnose(dataclasses.replace(ALL, out=str(out := tmp_path)), config)
        assert ("weights rounded to bf16" in report) == rounded
    data, _ = data_of(config)
    distributions, content = (
        plain_forward(model, data, torch.bfloat16 if rounded else torch.float64),
        stats_of(out),
    )
    tokens = [torch.from_numpy(ids[mask]) for ids, mask in map(data.example, range(len(data)))]
    logp = [
        distribution.gather(1, target[:, None]).squeeze(1)
        for distribution, target in zip(distributions, tokens, strict=True)
    ]
    torch.testing.assert_close(
        load_file(out / "base_logp.safetensors")["logp"],
        torch.cat(logp).float(),
        rtol=1e-4,
        atol=1e-5,
    )
    for number, name in enumerate(data.names):
        members = np.flatnonzero(data.source == number)
        every, target = (
            torch.cat([distributions[i] for i in members]),
            torch.cat([tokens[i] for i in members]),
        )
        own, (top, likeliest) = every.gather(1, target[:, None]).squeeze(1), every.max(1)
        p, confidence, right = own.exp(), top.exp(), likeliest == target
        source = content["sources"][name]
        expected = {
            "tokens": len(p),
            "mean_p": p.mean(),
            "nll": -own.mean(),
            "entropy": -(every.exp() * every).sum(1).mean(),
            "below_0.2": (p < 0.2).double().mean(),
            "above_0.5": (p > 0.5).double().mean(),
            "above_0.55": (p > 0.55).double().mean(),
            "top1": right.double().mean(),
            "conflict": (~right & (confidence > 0.5)).double().mean(),
            "sequence_nll": np.median([-logp[i].mean() for i in members]),
            "overconfidence": (confidence - right.double()).mean(),
        }
        for key, value in expected.items():
            assert source[key] == pytest.approx(float(value), rel=2e-5, abs=1e-6), (name, key)
        bucket = (confidence * 15).long()
        gaps = [(confidence - right.double())[bucket == b].sum().abs() for b in range(15)]
        assert source["ece"] == pytest.approx(float(sum(gaps)) / len(p), rel=2e-5)
        below, above = p.sort().values[[(len(p) - 1) // 2, len(p) // 2]].tolist()
        assert 0.99 * below < source["quantiles"]["0.5"] < above * 1.01, (
            "the median, to a step of the histogram"
        )
        assert sum(source["histogram"]) == sum(source["fine_histogram"]["counts"]) == len(p)
        assert source["mean_p_interval"] == [source["mean_p"]] * 2, "every example was measured"
    if case == "trained":
        assert 0.1 < content["sources"]["sums"]["top1"] < 0.95, (
            "the comparison should see likely and unlikely targets"
        )


def test_any_split_of_the_tokens_gives_the_same_files(folder, tmp_path):
    """One rank with packs, one with several padded rows at a time, two ranks."""
    diagnose(
        dataclasses.replace(ALL, out=str(tmp_path / "rows")),
        config_of(folder, data__packing=False, train__micro_batch_size=4),
    )
    save_config(config_of(folder), tmp_path / "config.yaml")
    done = torchrun(
        "-m",
        "adaptsft.diagnose",
        str(tmp_path / "config.yaml"),
        "sample=all",
        "per_token=true",
        f"out={tmp_path / 'ranks'}",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("# Diagnosis of") == 1
    whole = stats_of(folder / "run" / "diagnosis")["sources"]
    for out in (tmp_path / "rows", tmp_path / "ranks"):
        for name, source in stats_of(out)["sources"].items():
            for key in ("tokens", "below_0.2", "above_0.5", "top1", "conflict"):
                assert source[key] == whole[name][key], (out, key)
            for key in ("mean_p", "nll", "entropy", "ece", "sequence_nll"):
                assert source[key] == pytest.approx(whole[name][key], rel=1e-5), (out, key)
        logp, expected = (
            load_file(at / "base_logp.safetensors")["logp"]
            for at in (out, folder / "run" / "diagnosis")
        )
        torch.testing.assert_close(logp, expected, rtol=1e-4, atol=1e-5)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Examples of uneven length whose tokens are alike: 400 samples of 60 of 500 examples. Counting tokens as independent would fail."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 60, 500).astype(float)
    sums = tokens * generator.beta(0.5, 0.5, 500)
    truth, covered, naive = sums.sum() / tokens.sum(), 0, 0
    for _ in range(400):
        drawn = generator.permutation(500)[:60]
        low, high = interval(sums[drawn], tokens[drawn], 500)
        covered += low <= truth <= high
        mean = (low + high) / 2
        naive += abs(mean - truth) <= 1.96 * np.sqrt(mean * (1 - mean) / tokens[drawn].sum())
    assert 0.91 <= covered / 400 <= 0.98
    assert naive / 400 < 0.7
    low, high = interval(sums[:60], tokens[:60], 500)
    more = needed(sums[:60], tokens[:60], 500)
    assert 60 < more < 500
    assert needed(sums, tokens, 500) is None
    assert interval(sums[:1], tokens[:1], 500) is None
    assert interval(0 * sums[:60], tokens[:60], 500) is None, (
        "60 examples without such a token do not prove that there is none"
    )
    assert interval(sums, tokens, 500) == [truth, truth]


def test_a_sample_is_part_of_each_source_and_says_how_far_it_may_be_off(folder, tmp_path):
    report = diagnose(Options(sample=6, out=str(tmp_path)), config_of(folder))
    sampled, whole = (
        stats_of(tmp_path)["sources"],
        stats_of(folder / "run" / "diagnosis")["sources"],
    )
    for name in whole:
        assert sampled[name]["measured"] == 6 < sampled[name]["examples"] == whole[name]["examples"]
        low, high = sampled[name]["mean_p_interval"]
        assert low < sampled[name]["mean_p"] < high
        assert low <= whole[name]["mean_p"] <= high, "for this seed"
    assert f"[{sampled['sums']['mean_p_interval'][0]:.3f}, " in report
    assert "6 of 24" in report and "`sample=" in report
    assert not (tmp_path / "base_logp.safetensors").exists()
    data, _ = data_of(config_of(folder))
    ours = drawn(data, 6, seed=0)
    assert data.target_tokens[ours].sum() == sum(source["tokens"] for source in sampled.values()), (
        "drawn by seed and source alone"
    )
    assert len(set(ours)) == 12 and set(ours) != set(drawn(data, 6, seed=1))


def test_training_reads_what_was_measured(folder):
    """Controllers' signals, quantile thresholds, and log p of each token of a shuffled, packed training step."""
    config = config_of(
        folder,
        objective__name="threshold",
        objective__lower_quantile=0.3,
        train__micro_batch_size=2,
    )
    data, weights = data_of(config)
    base = BaseStatistics.load(
        folder / "run" / "diagnosis" / "base_stats.json", model=weights, data=data, device=CPU
    )
    figures, signals = (
        [stats_of(folder / "run" / "diagnosis")["sources"][name] for name in data.names],
        base.per_source(),
    )
    epoch = [figures[0]["tokens"], figures[1]["tokens"] * 0.5]  # weight 0.5
    torch.testing.assert_close(
        signals.tokens, torch.tensor([*epoch, sum(epoch)], dtype=torch.float64)
    )
    for field, key in (
        ("mean_p", "mean_p"),
        ("low", "below_0.2"),
        ("high", "above_0.5"),
        ("top1", "top1"),
    ):
        both = [source[key] for source in figures]
        expected = torch.tensor([*both, np.average(both, weights=epoch)], dtype=torch.float64)
        torch.testing.assert_close(getattr(signals, field), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(signals.histogram.sum(1), torch.ones(3, dtype=torch.float64))

    logp = BaseLogProbabilities.open(
        folder / "run" / "diagnosis" / "base_logp.safetensors", model=weights, data=data
    )
    with process_group("cpu") as device:
        model = build_model(
            config.model,
            config.train,
            load_pretrained(config.model),
            device_mesh(device, 1),
            device,
        )
        opened = TrainingData(config, load_pretrained(config.model).tokenizer, None)
        loader = BatchLoader(opened, config, 0, True, device, logp.of)
        for batch in loader.load(1):
            with torch.no_grad():
                _, rows, _ = model.token_loss(batch, NLL, None, 1.0)
            assert batch.base_logp.dtype == torch.float32
            torch.testing.assert_close(batch.base_logp, rows.logp, rtol=1e-4, atol=1e-5)
        assert all(
            batch.base_logp is None
            for batch in BatchLoader(opened, config, 0, True, device).in_order(data)
        )
        control = initial_state(config.objective, 2, device)
        own = with_quantiles(model, config.objective, control, loader.in_order(data), 1, 0)
        read = with_quantiles(model, config.objective, control, [], 1, 0, base)
        loader.pool.shutdown()
    torch.testing.assert_close(read.lower, own.lower, rtol=5e-3, atol=0)
    assert 0 < read.lower.min() < read.lower.max() < 1


def test_what_is_recommended_trains(folder, tmp_path):
    """In the run folder that holds the diagnosis. half_gate's first alpha is 1 / the base's median sequence NLL, read from the file."""
    out = folder / "run" / "diagnosis"
    recommended = re.search(r"^controller\..*$", (out / "diagnosis.md").read_text(), re.MULTILINE)[
        0
    ]
    settings = dict(argument.split("=") for argument in recommended.split())
    assert settings == {
        "controller.name": "auto",
        "controller.base_stats": str(out / "base_stats.json"),
    }
    short = {"train__max_steps": 2, "checkpoint__every": 0}
    train(config_of(folder, **short, **settings))

    gate = {"controller.name": "half_gate", "controller.shrinkage": 0}
    config = config_of(folder, run_dir=str(tmp_path / "gate"), **short, **settings | gate)
    train(config)
    for name, source in stats_of(out)["sources"].items():
        assert metrics_of(config)[0]["sources"][name]["alpha"] == pytest.approx(
            1 / source["sequence_nll"], rel=0.1
        )

    logp = {
        "controller.name": "learnability",
        "controller.base_logp": str(out / "base_logp.safetensors"),
    }
    train(config_of(folder, run_dir=str(tmp_path / "learnability"), **short, **logp))


def test_files_of_another_model_or_data_are_refused(folder, tmp_path):
    stats, logp = (
        folder / "run" / "diagnosis" / "base_stats.json",
        folder / "run" / "diagnosis" / "base_logp.safetensors",
    )
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
        lambda: BaseLogProbabilities.open(logp, model=other, data=data),
    ):
        with pytest.raises(
            ConfigError,
            match=r"another model \(.*known/final\).*fingerprint is \w{12}, this run's \w{12}; run `python -m",
        ):
            refused()
    for refused in (
        lambda: opened(of=shorter),
        lambda: BaseLogProbabilities.open(logp, model=weights, data=shorter),
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
    half.write_bytes(logp.read_bytes()[:-4])
    with pytest.raises(ConfigError, match="cannot be read"):
        BaseLogProbabilities.open(half, model=weights, data=data)


def _killed_while_saving(config: Config, out: str) -> None:
    """Ends by SIGKILL in the middle of the picture: before that base_logp.safetensors was replaced, base_stats.json was not."""

    def half(path: Path, sources: dict) -> None:
        path.write_bytes(b"\x89PNG half of a picture")
        os.kill(os.getpid(), signal.SIGKILL)

    command.plot = half
    diagnose(dataclasses.replace(ALL, out=out), config)


def test_a_kill_leaves_whole_files(folder, tmp_path):
    config, out = config_of(folder), tmp_path / "out"
    process = PROCESSES.Process(target=_killed_while_saving, args=(config, str(out)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == [
        "base_logp.safetensors",
        "diagnosis.png.tmp",
    ]
    data, weights = data_of(config)
    found = BaseLogProbabilities.open(out / "base_logp.safetensors", model=weights, data=data)
    assert len(found.of(len(data) - 1)) == data.target_tokens[-1]
    diagnose(dataclasses.replace(ALL, out=str(out)), config)
    names = ["base_logp.safetensors", "base_stats.json", "diagnosis.md", "diagnosis.png"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_the_place_is_that_of_the_papers_models_and_open_where_the_interval_leaves_it_open(folder):
    assert all(place_of(reference.mean_p) == reference.place for reference in REFERENCES)
    content = stats_of(folder / "run" / "diagnosis")
    source = content["sources"]["sums"]
    source |= {"mean_p": 0.70, "mean_p_interval": [0.66, 0.74], "place": place_of(0.70)}
    assert "MI or MS" in markdown(content, folder)
    assert "objective.name=neg_p" in markdown(content, folder)


def test_cautions_speak_up_where_mean_p_is_blind():
    calm = {
        "conflict": 0.05,
        "below_0.2": 0.1,
        "above_0.55": 0.8,
        "ece": 0.03,
        "overconfidence": 0.01,
    }
    assert cautions(calm) == []
    assert "redefines" in cautions(calm | {"conflict": 0.3})[0]
    assert "two groups" in cautions(calm | {"below_0.2": 0.4, "above_0.55": 0.5})[0]
    assert "less sure than it is right" in cautions(calm | {"ece": 0.2, "overconfidence": -0.2})[0]


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
