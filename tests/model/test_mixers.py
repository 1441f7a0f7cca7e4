"""Recurrent and convolution layers in packs: as if each document were alone."""

import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.lfm2.modeling_lfm2 import Lfm2DecoderLayer

from adaptsft.config.load import save_config
from adaptsft.errors import ConfigError
from adaptsft.model import build
from adaptsft.model.check import check_first_batch
from adaptsft.model.mixers import mixers
from adaptsft.train import main, train
from tests.distributed.two_ranks import on_two_ranks
from tests.model.batches import LENGTHS, built, packed_batch
from tests.model.random_models import write_random_model
from tests.model_types.variants import config_of, variants
from tests.runs import metrics_of, small_config

# transformers 5.17 does not tell LFM2's convolutions where documents begin: they are refused there
IN_PACKS = "seq_idx=kwargs" not in inspect.getsource(Lfm2DecoderLayer.forward)
HYBRIDS = ["bamba", "falcon_h1", "qwen3_5_text", "recurrent_gemma", *["lfm2"] * IN_PACKS]


def hybrid(folder: Path, name: str = HYBRIDS[-1]) -> Path:
    return write_random_model(folder, config_of(*variants()[name]))


@pytest.mark.parametrize("name", HYBRIDS)
def test_documents_of_a_pack_do_not_see_each_other(tmp_path, device, name):
    model, _ = built(hybrid(tmp_path, name), device)
    batch = packed_batch(LENGTHS, model.config.vocab_size)
    check_first_batch(model, batch, packing=True)
    check_first_batch(model, batch, packing=False)
    assert [len(mixers(layer)) for layer in model.model.layers] == [1, int(name == "falcon_h1")]


def test_without_that_they_are_refused(tmp_path, device, monkeypatch):
    monkeypatch.setattr(build, "keep_documents_apart", lambda model: False)
    model, _ = built(hybrid(tmp_path), device)
    with pytest.raises(ConfigError, match=r"another document.*Set data\.packing=false"):
        check_first_batch(model, packed_batch(LENGTHS, model.config.vocab_size), packing=True)


def test_a_hybrid_trains_in_packs_on_any_number_of_ranks_and_is_resumed(tmp_path):
    model = hybrid(tmp_path / "model")
    short = {"train__max_steps": 3, "log__every": 1, "train__activation_checkpointing": "full"}
    short |= {"checkpoint__every": 1}
    whole, resumed, two = (
        small_config(tmp_path, model, name, **short) for name in ("whole", "resumed", "two")
    )
    save_config(two, tmp_path / "two.yaml")
    codes, printed = on_two_ranks(main, [str(tmp_path / "two.yaml")], log=tmp_path / "log")
    assert codes == [0, 0], printed[-4000:]
    train(whole)
    assert whole.data.packing is True
    for ours, theirs in zip(metrics_of(whole), metrics_of(two), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    resumed.resume = str(Path(whole.run_dir) / "checkpoints" / "step_00000002")
    train(resumed)
    assert metrics_of(resumed) == metrics_of(whole)[2:]
    ends = (load_file(Path(run.run_dir, "final", "model.safetensors")) for run in (whole, resumed))
    for (name, tensor), other in zip(next(ends).items(), next(ends).values(), strict=True):
        assert torch.equal(tensor, other), name
