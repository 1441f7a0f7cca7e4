"""Folders that are no model to train, and data that does not fit a model."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoConfig

from adaptsft.config.schema import Config, DataConfig, ModelConfig
from adaptsft.errors import ConfigError
from adaptsft.model.pretrained import check_fits_model, load_pretrained
from tests.data.records import opened, write


@pytest.fixture
def folder(tiny_model, tmp_path):
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    return tmp_path / "model"


def test_an_adapter_is_named(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(ConfigError, match=r"holds an adapter .* of org/base: merge it"):
        load_pretrained(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("ends", ["[[5]]", '"</s>"'])
def test_an_end_that_is_no_token_is_refused_before_training(folder, ends):
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is"):
        load_pretrained(ModelConfig(path=str(folder)))


def test_positions_that_depend_on_the_longest_example_of_a_batch(folder, tmp_path):
    """LongRoPE: examples on both sides of the original length may not share a batch."""
    path = tmp_path / "data.jsonl"
    write(path, *({"prompt": "a", "completion": "b " * count} for count in (5, 60)))
    settings = DataConfig(path=str(path), cache_dir=str(tmp_path / "cache"))
    pretrained = load_pretrained(ModelConfig(path=str(folder)))
    data = opened(settings, pretrained.tokenizer)
    model_config = AutoConfig.from_pretrained(folder)
    dimensions = model_config.hidden_size // model_config.num_attention_heads // 2
    model_config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 40,
        "long_factor": [2.0] * dimensions,
        "short_factor": [1.0] * dimensions,
    }
    pretrained.config = model_config
    config = Config(data=settings)
    config.model.path = str(folder)
    with pytest.raises(ConfigError, match=r"longrope.*set data\.max_length=40, or data\.packing"):
        check_fits_model(config, pretrained, data)
    check_fits_model(config, pretrained, data.take(np.array([0])))
    config.data.packing, config.train.micro_batch_size = False, 1
    check_fits_model(config, pretrained, data)
    config.train.micro_batch_size = 2
    with pytest.raises(ConfigError, match="longrope"):
        check_fits_model(config, pretrained, data)
