"""The exported folder."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.model.export import export
from tests.model.batches import built


@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("gemma3", True)])
def test_the_export_is_a_complete_hugging_face_folder(tiny_model, tmp_path, device, arch, tied):
    source = tiny_model(arch, tied=tied)
    model, pretrained = built(source, device)
    export(model, pretrained, tmp_path / "fp32", "fp32")
    export(model, pretrained, tmp_path / "bf16", "bf16")
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


def test_a_large_model_is_exported_in_several_files(tiny_model, tmp_path, device, monkeypatch):
    monkeypatch.setattr("adaptsft.model.export.FILE_BYTES", 100_000)
    source = tiny_model("llama", tied=False)
    model, pretrained = built(source, device)
    export(model, pretrained, tmp_path / "final", "fp32")
    names = sorted(path.name for path in (tmp_path / "final").glob("*.safetensors"))
    count = len(names)
    expected = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert count > 2 and names == expected
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(source).state_dict().items():
        assert torch.equal(again[name], tensor), name
