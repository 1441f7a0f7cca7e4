"""The exported folder."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.data.stop import TurnEnd
from adaptsft.model.export import export
from tests.model.batches import built


@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("gemma3", True)])
def test_the_export_is_a_complete_hugging_face_folder(tiny_model, tmp_path, device, arch, tied):
    source = tiny_model(arch, tied=tied)
    model, pretrained = built(source, device)
    export(model, pretrained, tmp_path / "fp32", "fp32", TurnEnd())
    export(model, pretrained, tmp_path / "bf16", "bf16", TurnEnd())
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "fp32")
    ids = torch.arange(3, 30)[None]
    assert torch.equal(original(ids).logits, again(ids).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16")
    assert half.dtype == torch.bfloat16
    norm = "model.norm.weight"
    assert torch.equal(half.state_dict()[norm], original.state_dict()[norm].bfloat16())
    message = [{"role": "user", "content": "two and two?"}]
    ours, theirs = (
        AutoTokenizer.from_pretrained(folder).apply_chat_template(message, tokenize=False)
        for folder in (tmp_path / "bf16", source)
    )
    assert ours == theirs
    assert (tmp_path / "bf16" / "generation_config.json").is_file()
    assert half.generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (1, 31)
    suffixes = {path.suffix for path in (tmp_path / "bf16").iterdir()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}


def test_generation_stops_where_a_turn_ends(tiny_model, tmp_path, device):
    """Whatever generation_config.json the model has: none, or one that transformers' own
    save_pretrained refuses, as Llama 2's."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama", tied=False), folder)
    eos = AutoTokenizer.from_pretrained(folder).eos_token_id
    for number, settings in enumerate((None, {"eos_token_id": 9, "temperature": 0.6, "top_k": 7})):
        path = folder / "generation_config.json"
        path.unlink() if settings is None else path.write_text(json.dumps(settings))
        model, pretrained = built(folder, device)
        out = tmp_path / f"out{number}"
        export(model, pretrained, out, "fp32", TurnEnd((5, 7)))
        written = json.loads((out / "generation_config.json").read_text())
        own = [] if settings is None else [9]
        assert written["eos_token_id"] == [5, 7, *own, eos]
        assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id[0] == 5
        assert settings is None or (written["temperature"] == 0.6 and written["top_k"] == 7)
        assert pretrained.config.eos_token_id == eos, "config.json is as it was"


def test_a_large_model_is_exported_in_several_files(tiny_model, tmp_path, device, monkeypatch):
    monkeypatch.setattr("adaptsft.model.export.FILE_BYTES", 100_000)
    source = tiny_model("llama", tied=False)
    model, pretrained = built(source, device)
    export(model, pretrained, tmp_path / "final", "fp32", TurnEnd())
    names = sorted(path.name for path in (tmp_path / "final").glob("*.safetensors"))
    count = len(names)
    expected = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert count > 2 and names == expected
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(source).state_dict().items():
        assert torch.equal(again[name], tensor), name
