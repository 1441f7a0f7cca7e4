"""Weights from files, and files that do not fit."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.config.schema import Config, DataConfig, ModelConfig
from adaptsft.data.tokenized import TokenizedData
from adaptsft.errors import ConfigError
from adaptsft.model.pretrained import check_fits_model, load_pretrained
from tests.data.records import opened, write
from tests.model.batches import built

HEAD = "lm_head.weight"


def test_files_that_do_not_fit_are_refused_by_name(tiny_model, tmp_path, device):
    source = tiny_model("llama", tied=False)

    def changed(name: str, change) -> Path:
        folder = tmp_path / name
        shutil.copytree(source, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    with pytest.raises(ConfigError, match=r"1 tensors missing.*model\.norm\.weight"):
        built(changed("missing", lambda t: t.pop("model.norm.weight")), device)
    with pytest.raises(ConfigError, match=r"not used.*extra"):
        built(changed("extra", lambda t: t.update(extra=torch.zeros(1))), device)
    with pytest.raises(ConfigError, match=r"lm_head\.weight: the file has shape"):
        built(changed("shape", lambda t: t.update({HEAD: t[HEAD][:10].clone()})), device)
    torn = tmp_path / "torn"
    shutil.copytree(source, torn)
    content = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"model\.safetensors: damaged"):
        built(torn, device)
    with pytest.raises(ConfigError, match="no such folder"):
        load_pretrained(ModelConfig(path="./nowhere"))


def test_weights_in_several_files_and_bf16_are_read_into_fp32_masters(tiny_model, tmp_path, device):
    source = tiny_model("qwen3", tied=False)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    shutil.copytree(source, tmp_path / "split")
    (tmp_path / "split" / "model.safetensors").unlink()
    original.save_pretrained(tmp_path / "split", max_shard_size="100KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    model, _ = built(tmp_path / "split", device)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.full_tensor(), original.state_dict()[name].float()), name


def opened_with(text: str, settings: DataConfig, tokenizer) -> TokenizedData:
    write(Path(settings.path), {"prompt": "a", "completion": text})
    return opened(settings, tokenizer)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows(tiny_model, tmp_path, device):
    """As Gemma 3's of 1 B parameters: it trains, unless the data has such a token; the message then
    names it, and a fix that works."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama", tied=False), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>", "<ünder>"])
    tokenizer.pad_token = "<ünder>"
    tokenizer.save_pretrained(folder)
    config = ModelConfig(path=str(folder))
    pretrained = load_pretrained(config)
    assert pretrained.pad_id < rows
    settings = DataConfig(path=str(tmp_path / "data.jsonl"), cache_dir=str(tmp_path / "cache"))
    check_fits_model(
        Config(model=config), pretrained, opened_with("plain words", settings, tokenizer)
    )
    with pytest.raises(ConfigError) as caught:
        check_fits_model(
            Config(model=config), pretrained, opened_with("an <image>", settings, tokenizer)
        )
    said = str(caught.value)
    assert f"the data has the id {rows}, " in said and f"{rows} rows" in said
    assert "none for '<image>', '<ünder>'" in said and "model.tokenizer" in said
    fix = """model.add_tokens='["<image>", "<ünder>"]'"""
    assert said.endswith(fix)
    added = load_pretrained(ModelConfig(path=str(folder), add_tokens=["<image>", "<ünder>"]))
    assert added.new_tokens == [rows, rows + 1] and added.config.vocab_size == rows + 2
    model, _ = built(folder, device, add_tokens=["<image>", "<ünder>"])
    weights = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    embedding = model.get_input_embeddings().weight.full_tensor()
    assert torch.allclose(embedding[rows:], weights.mean(0).expand(2, -1), atol=1e-7)
    with pytest.raises(ConfigError, match="'what' is a token of the tokenizer already"):
        load_pretrained(ModelConfig(path=str(folder), add_tokens=["what", "<image>", "<ünder>"]))
