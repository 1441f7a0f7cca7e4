"""Checkpoints as the hub has them: a folder's tensors and settings changed, and what transformers
makes of them."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adaptsft import export as export_command
from adaptsft.config.load import read_config, save_config
from adaptsft.data.collator import Batch
from adaptsft.data.stop import TurnEnd
from adaptsft.model.export import export
from adaptsft.model.tiny import SAMPLE_TEXT, bpe_tokenizer
from adaptsft.objectives.build import NLL
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks
from tests.model.batches import built, packed_batch
from tests.runs import small_config

Change = Callable[[dict[str, Tensor]], Any]


def saved(
    folder: Path, model_type: str, loader: Any = AutoModelForCausalLM, **settings: Any
) -> Path:
    """A random model of any type, saved by transformers, with a tokenizer."""
    tokenizer = bpe_tokenizer(SAMPLE_TEXT)
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loader.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed(source: Path, folder: Path, change: Change = lambda _: None, **settings: Any) -> Path:
    """A copy of a checkpoint; `change` edits its tensors, `settings` are keys of its config.json, a
    key that is None is removed."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | settings
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def renamed(old: str, new: str) -> Change:
    """Every tensor whose name begins with `old` begins with `new` instead."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return change


def names_in(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))


def trained_and_exported(
    source: Path, folder: Path, device: torch.device, loader: Any = AutoModelForCausalLM
) -> set[str]:
    """Assert that our log p of a text is that of transformers' model, before and after a change of
    every weight that is exported and loaded again; the names in the export."""
    model, pretrained = built(source, device)
    model.eval()
    batch = packed_batch([[16]], pretrained.config.get_text_config().vocab_size)
    assert_same(model, batch, loader.from_pretrained(source, dtype=torch.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    export(model, pretrained, folder, "fp32", TurnEnd())
    again, info = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert_same(model, batch, again)
    return names_in(folder)


def assert_same(model: Any, batch: Batch, reference: Any) -> None:
    ids = batch.ids.clamp(min=20)  # below are the ids that stand for images
    batch = dataclasses.replace(batch, ids=ids, targets=ids.flatten()[batch.target_idx + 1])
    _, tokens, _ = model.token_loss(batch, NLL, None, 1.0)
    with torch.no_grad():
        logits = reference.eval()(input_ids=ids, use_cache=False).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    assert (tokens.logp - expected).abs().max() < 2e-6
    loss, theirs = float(tokens.logp.double().mean()), float(expected.double().mean())
    assert abs(loss - theirs) < 1e-6 * abs(theirs)


def trained_resumed_and_on_two_ranks(folder: Path, source: Path) -> dict[str, Tensor]:
    """The tensors of final/ after a short run: those of adaptsft.export, of a run that was
    interrupted, and, to rounding, those of two ranks."""
    three = {"train__max_steps": 3, "checkpoint__every": 1}
    config = small_config(folder, source, "one", **three)
    run, other = Path(config.run_dir), small_config(folder, source, "two", **three)
    train(config)
    final = load_file(run / "final" / "model.safetensors")
    assert export_command.main([str(run), str(folder / "out"), "--dtype", "fp32"]) == 0
    shutil.rmtree(run / "checkpoints" / "step_00000003")
    shutil.rmtree(run / "final")
    train(config)
    for again in (folder / "out", run / "final"):
        tensors = load_file(again / "model.safetensors")
        assert tensors.keys() == final.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in final.items())
    save_config(other, folder / "two.yaml")
    codes, printed = on_two_ranks(_train, folder / "two.yaml", log=folder / "log")
    assert codes == [0, 0], printed[-4000:]
    tensors = load_file(Path(other.run_dir) / "final" / "model.safetensors")
    for name, tensor in final.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    return final


def _train(config: Path) -> None:
    train(read_config(config))
