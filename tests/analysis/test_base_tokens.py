"""Training that reads the base model's statistics of every token from a diagnosis."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptsft.analysis.report.folder import open_runs
from adaptsft.analysis.report.summary import objective
from adaptsft.config.load import read_config, save_config
from adaptsft.errors import ConfigError, warn
from adaptsft.train import train
from tests.analysis.diagnosed import config_of
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import metrics_of, saved_state

SHORT = {"train__max_steps": 3, "train__lr": 3e-3, "train__global_batch_size": 6}
SHORT |= {"checkpoint__every": 1}
# betas[0] = 0: the first moment after step 1 is the gradient itself
GRADIENT = SHORT | {"train__betas": [0.0, 0.95], "train__clip_norm": 0.0, "train__warmup_ratio": 0}
METHODS = {
    "deft": {"objective__name": "deft", "objective__reference": "base"},
    "talr": {
        "objective__name": "talr",
        "objective__reference": "base",
        "objective__params": {"batch": 1},
    },
    "prift_mass": {"objective__name": "prift_mass", "objective__normalizer": "kept"},
    "psft": {"objective__name": "psft", "objective__exempt": "eos"},
    "iw_sft": {"objective__name": "iw_sft"},
}
ON_TWO_RANKS = ("deft", "prift_mass")  # all tokens, and some


def reading(folder: Path, run_dir: Path, **overrides):
    file = folder / "run" / "diagnosis" / "base_tokens.safetensors"
    settings = {"run_dir": run_dir, "objective__base_tokens": file} | SHORT
    return config_of(folder, **settings | overrides)


def train_each(folder: Path) -> int:
    for file in sorted(folder.glob("*.yaml")):
        train(read_config(file))
    return 0


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> Path:
    """Each method in one pack per micro-batch, in padded rows with chunks of three tokens, and some
    on two ranks. talr with batch=1 reads the micro-batch: no split is that of another."""
    at = tmp_path_factory.mktemp("splits")
    (at / "configs").mkdir()
    rows = {"data__packing": False, "train__micro_batch_size": 3, "train__loss_chunk": 3}
    for name, method in METHODS.items():
        train(reading(folder, at / f"{name}-packs", **GRADIENT | method))
        if name != "talr":
            train(reading(folder, at / f"{name}-rows", **GRADIENT | method | rows))
        if name in ON_TWO_RANKS:
            ranks = reading(folder, at / f"{name}-ranks", **GRADIENT | method)
            save_config(ranks, at / "configs" / f"{name}.yaml")
    codes, printed = on_two_ranks(train_each, at / "configs", log=at / "log")
    assert codes == [0, 0], printed[-4000:]
    return at


def rows_of(runs: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "talr"])
def test_any_split_of_the_same_tokens_is_the_same_step(runs, name):
    packs = saved_state(runs / f"{name}-packs" / "checkpoints" / "step_00000001")
    gradients = [key for key in packs if key.endswith("exp_avg")]
    largest = max(float(packs[key].abs().max()) for key in gradients)
    assert largest > 1e-4
    for split in ("rows", "ranks")[: 1 + (name in ON_TWO_RANKS)]:
        state = saved_state(runs / f"{name}-{split}" / "checkpoints" / "step_00000001")
        for key in gradients:
            assert (state[key] - packs[key]).abs().max() <= 3e-6 * max(largest, 1.0), (split, key)
        for ours, theirs in zip(
            rows_of(runs, f"{name}-{split}"), rows_of(runs, f"{name}-packs"), strict=True
        ):
            for key in ("loss", "weight", "kept", "nll"):
                assert ours[key] == pytest.approx(theirs[key], rel=2e-4), (split, key)


def test_the_first_step_is_that_of_the_current_model_and_later_ones_are_not(folder, runs):
    """Before it the model is the base model; from then on only one of the two moves, and weights
    that read the other do not depend on the training."""
    current = {"objective__name": "deft", "objective__base_tokens": ""}
    train(reading(folder, runs / "current", **GRADIENT | current))
    slow = {"train__lr": 1e-5}
    train(reading(folder, runs / "slow", **GRADIENT | METHODS["deft"] | slow))
    frozen, moving = (rows_of(runs, name) for name in ("deft-packs", "current"))
    for key in ("loss", "weight", "grad_norm"):
        assert frozen[0][key] == pytest.approx(moving[0][key], rel=1e-4)
    for row, of_slow, of_moving in zip(frozen, rows_of(runs, "slow"), moving, strict=True):
        assert row["weight"] == of_slow["weight"]
        if row["step"] > 1:
            assert row["nll"] != pytest.approx(of_slow["nll"], rel=1e-3)
            assert row["weight"] != pytest.approx(of_moving["weight"], rel=1e-3)
    for name in ("psft", "iw_sft"):
        first, second = rows_of(runs, f"{name}-packs")[:2]
        assert first["weight"] == pytest.approx(1.0, abs=1e-4)
        assert second["weight"] != pytest.approx(1.0, abs=1e-3)
    kept = rows_of(runs, "prift_mass-packs")[0]
    assert 0 < kept["kept"] < kept["tokens"]


def test_the_report_names_what_the_weights_read(runs, tmp_path):
    names = [objective(run) for run in open_runs([runs / "deft-packs", runs / "psft-rows"])]
    assert names == ["deft (reference=base)", "psft"]
    shutil.copytree(runs / "deft-packs", tmp_path / "run", ignore=shutil.ignore_patterns("final"))
    config = tmp_path / "run" / "config.yaml"
    text = (
        config.read_text().replace("name: deft", "name: alpha").replace("floor: 0.0", "floor: 0.1")
    )
    config.write_text(text)
    (run,) = open_runs([tmp_path / "run"])
    assert objective(run) == "alpha (alpha=0, floor=0.100, reference=base)"


def test_a_resumed_run_is_bitwise_the_same(folder, tmp_path):
    """Over the end of an epoch, shuffled."""
    whole, cut = (
        reading(folder, tmp_path / name, train__max_steps=8, **METHODS["deft"])
        for name in ("whole", "cut")
    )
    train(whole)
    train(cut)
    for step in range(4, 9):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step_{step:08d}")
    shutil.rmtree(tmp_path / "cut" / "final")
    train(cut)
    assert metrics_of(cut) == metrics_of(whole)
    ours, theirs = (
        load_file(tmp_path / name / "final" / "model.safetensors") for name in ("cut", "whole")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_held_out_data_is_scored_by_nll(folder, tmp_path):
    """What the base model makes of it is not measured."""
    held_out = {"data__validation_path": str(folder / "data.jsonl"), "eval__every": 3}
    result = train(reading(folder, tmp_path / "run", **held_out, **METHODS["psft"]))
    assert result["held_out"]["loss"] == result["held_out"]["nll"] > 0
    assert result["held_out"]["kept"] == result["held_out"]["tokens"]


def test_what_cannot_be_read_is_refused(folder, tmp_path):
    for name, start in (
        ("prift_prob", "objective.name=prift_prob reads"),
        ("dft", "objective.name=dft with objective.reference=base reads"),
    ):
        keys = {"objective__name": name, "objective__base_tokens": ""}
        keys["objective__reference"] = "base" if name == "dft" else "current"
        with pytest.raises(ConfigError, match=f"{start} the base model's .*sample=all per_token"):
            reading(folder, tmp_path / "run", **keys)
    stream = {"data__path": str(folder / "*.jsonl"), "data__sources": [], "data__stream": 1}
    with pytest.raises(ConfigError, match=r"data\.stream=1: objective\.base_tokens is of a whole"):
        reading(folder, tmp_path / "run", **METHODS["deft"], **stream)
    nowhere = {"objective__base_tokens": tmp_path / "absent.safetensors"}
    with pytest.raises(ConfigError, match=r"base_tokens=.*absent\.safetensors: cannot be read"):
        train(reading(folder, tmp_path / "run", **METHODS["deft"] | nowhere))
    half = {"data__max_length": 40, "data__overlong": "truncate"}
    with pytest.raises(ConfigError, match=r"base_tokens\.safetensors: measured on another data"):
        train(reading(folder, tmp_path / "run", **METHODS["deft"], **half))
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_read_is_warned_of(folder, tmp_path, capsys):
    warn.cache_clear()
    reading(folder, tmp_path / "run", objective__name="dft")
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.endswith(
        "has no effect with objective.name=dft; it is read by objective.reference=base, "
        "prift_prob, prift_mass, psft, iw_sft"
    )
