"""A chat template of the user's own, in place of the tokenizer's."""

import pytest
from transformers import AutoTokenizer

from adaptsft.config.schema import ModelConfig
from adaptsft.errors import ConfigError
from adaptsft.model.pretrained import load_pretrained
from adaptsft.train import train
from tests.runs import small_config

OWN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_it_is_learned_and_exported(tmp_path, tiny_model):
    path = tmp_path / "own.jinja"
    path.write_text(OWN)
    config = small_config(
        tmp_path, tiny_model(), train__max_steps=1, model__chat_template=str(path)
    )
    own = train(config)["nll"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert tokenizer.chat_template == OWN
    other = small_config(tmp_path, tiny_model(), "other", train__max_steps=1)
    assert train(other)["nll"] != own


def test_a_file_that_is_missing_is_named(tmp_path, tiny_model):
    config = ModelConfig(path=str(tiny_model()), chat_template=str(tmp_path / "none.jinja"))
    with pytest.raises(ConfigError, match=r"model\.chat_template=.*none\.jinja: .*No such file"):
        load_pretrained(config)
