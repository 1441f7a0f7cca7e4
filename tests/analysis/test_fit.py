"""What auto becomes: the largest micro-batch that fits, and blocks that stay whole where that fits
too."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from adaptsft.analysis import fit
from adaptsft.analysis.fit import (
    COMFORTABLE,
    GIB,
    USABLE,
    Choice,
    choose,
    memory_by_size,
    resolve_auto,
    with_choice,
)
from adaptsft.analysis.trace import trace
from adaptsft.config.load import read_config, save_config
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import process_group, rank
from adaptsft.errors import ConfigError
from adaptsft.model.pretrained import load_pretrained
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import small_config

AUTO = {"train__micro_batch_size": "auto", "train__reshard": "auto"}


@pytest.mark.parametrize(
    ("arch", "more"),
    [
        ("llama", {"train__activation_checkpointing": "full"}),
        ("gemma3", {"model__lora__rank": 4, "train__activation_checkpointing": "per_op"}),
        ("qwen2", {"data__packing": False, "model__attention": "eager"}),
    ],
)
def test_what_one_pack_takes_is_what_each_of_many_takes(tmp_path, tiny_model, arch, more):
    """But for a little, such as a mask. So one is traced for all sizes."""
    model = tiny_model(arch)
    config = small_config(tmp_path, model, **AUTO, **more)
    model_config = AutoConfig.from_pretrained(model)
    memory = memory_by_size(config, model_config, 2, packs=8)
    for size, reshard, micro_batches in ((2, "never", 2), (4, "always", 1)):
        resolved = with_choice(config, Choice(size, reshard, []))
        traced = trace(resolved, model_config, True, 2, micro_batches).memory
        found = dataclasses.asdict(memory(size, reshard == "always"))
        for name, value in dataclasses.asdict(traced).items():
            assert found[name] == (pytest.approx(value, rel=5e-3) if name != "groups" else value)


class Chosen:
    """What auto becomes for a GPU into which this many packs just fit."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model_config = AutoConfig.from_pretrained(model)
        self.config = small_config(folder, model, **AUTO)
        self.memory = memory_by_size(self.config, self.model_config, 2, packs=64)

    def __call__(self, room: float, packs: int = 64, **settings: Any) -> Choice:
        for key, value in settings.items():
            setattr(self.config.train, key, value)
        return choose(self.config, self.model_config, 2, room / COMFORTABLE, packs)


def test_the_largest_power_of_two_that_fits(tmp_path, tiny_model):
    chosen = Chosen(tmp_path, tiny_model("llama"))
    takes = {size: chosen.memory(size, True).peak for size in (1, 4, 8)}
    found = chosen((takes[4] + takes[8]) / 2)
    assert found.micro_batch_size == 4 and found.fits
    assert found.lines[0].startswith("train.micro_batch_size=auto: 4 x 128 tokens, by estimate ")
    assert "; 8: " in found.lines[0] and "train.reshard=auto: " in found.lines[1]
    # a rank has 32 of the 64 packs, and of 9 it has 5; 256 x 128 tokens are enough for any GPU
    assert chosen(GIB).micro_batch_size == 32 and chosen(GIB, packs=9).micro_batch_size == 4
    assert chosen(GIB, packs=4096).micro_batch_size == 256
    # of one, more than what is comfortable is used
    tight = chosen(takes[1] * COMFORTABLE / USABLE)
    assert tight.fits and tight.micro_batch_size == 1
    nothing = chosen(takes[1] * COMFORTABLE / USABLE - 1)
    assert not nothing.fits and nothing.micro_batch_size == 1
    assert "not even 1 x 128 tokens fits" in nothing.lines[0] and "GiB" in nothing.lines[0]
    unknown = choose(chosen.config, chosen.model_config, 2, 0, 64)
    assert unknown[:2] == (1, "always") and "train.micro_batch_size=auto: 1" in unknown.lines[0]


def test_blocks_stay_whole_where_that_fits_too(tmp_path, tiny_model):
    chosen = Chosen(tmp_path, tiny_model("llama", hidden=128, layers=4))
    always, never = (chosen.memory(2, reshards).peak for reshards in (True, False))
    assert always < never
    assert chosen(never, micro_batch_size=2)[:2] == (2, "never")
    found = chosen(never - 1)
    assert found[:2] == (2, "always") and "never takes" in found.lines[0]
    assert chosen(always / 9)[:2] == (2, "always"), "a number is taken at the user's word"
    assert chosen(always / 9, reshard="never")[:3] == (2, "never", [])
    assert chosen(never, micro_batch_size="auto")[:2] == (2, "never"), "it is sized with it"


def test_a_model_that_cannot_be_traced_is_trained_as_if_there_were_no_auto(
    tmp_path, tiny_model, monkeypatch
):
    chosen = Chosen(tmp_path, tiny_model("llama"))

    def broken(*_: Any) -> None:
        raise ConfigError("its forward fails")

    monkeypatch.setattr(fit, "trace", broken)
    found = chosen(GIB)
    assert found[:2] == (1, "always") and found.fits
    assert found.lines[0].endswith("memory cannot be estimated: its forward fails")


def on_rank(folder: Path, sizes: list[int]) -> None:
    """resolve_auto where each rank has a GPU of another size."""
    fit.memory_of = lambda _: sizes[rank()]
    config = read_config(folder / "auto.yaml")
    with process_group("cpu"):
        pretrained = load_pretrained(config.model)
        data = TrainingData(config, pretrained.tokenizer, None)
        resolve_auto(config, pretrained.config, data, torch.device("cpu"))
    found = [config.train.micro_batch_size, config.train.reshard]
    (folder / f"found.{rank()}").write_text(json.dumps(found))


def test_all_ranks_take_what_fits_the_smallest_gpu(tmp_path, tiny_model):
    model = tiny_model("llama", hidden=128, layers=4)
    config = small_config(tmp_path, model, **AUTO, train__global_batch_size=16)
    save_config(config, tmp_path / "auto.yaml")
    model_config = AutoConfig.from_pretrained(config.model.path)
    small = memory_by_size(config, model_config, 2, packs=16)(2, True).peak / COMFORTABLE
    codes, printed = on_two_ranks(on_rank, tmp_path, [GIB, int(small) + 1], log=tmp_path / "log")
    assert codes == [0, 0], printed[-4000:]
    assert printed.count("train.micro_batch_size=auto: 2 x 128 tokens") == 1
    found = [json.loads((tmp_path / f"found.{number}").read_text()) for number in (0, 1)]
    assert found[0] == found[1] == [2, "always"]


def test_a_gpu_too_small_for_one_pack_ends_the_run_before_it_begins(
    tmp_path, tiny_model, monkeypatch
):
    monkeypatch.setattr(fit, "memory_of", lambda _: 2**20)
    config = small_config(tmp_path, tiny_model("llama"), **AUTO)
    with process_group("cpu"):
        pretrained = load_pretrained(config.model)
        data = TrainingData(config, pretrained.tokenizer, None)
        with pytest.raises(ConfigError, match="not even 1 x 128") as caught:
            resolve_auto(config, pretrained.config, data, torch.device("cpu"))
    assert "train.activation_checkpointing=full: 0.0 GiB" in str(caught.value)
    assert "set train.micro_batch_size=1" in str(caught.value)
    assert not Path(config.run_dir).exists()


def test_on_a_cpu_it_is_one_and_the_run_says_so(tmp_path, tiny_model, capsys):
    model = tiny_model("llama", tied=False)
    train(config := small_config(tmp_path, model, **AUTO, train__max_steps=2))
    saved = read_config(Path(config.run_dir) / "config.yaml").train
    assert (saved.micro_batch_size, saved.reshard) == (1, "always")
    assert "train.micro_batch_size=auto: 1, as there is no GPU" in capsys.readouterr().err
    train(small_config(tmp_path, model, **AUTO, train__max_steps=2))  # the run may be continued
