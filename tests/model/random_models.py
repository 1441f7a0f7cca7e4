"""Random models of any type of transformers, and one that brings its own code."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adaptsft.model.tiny import SAMPLE_TEXT, bpe_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
DELTA_NET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
DELTA_NET |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}

OWN_CODE = '''
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnAttention(LlamaAttention):
    """Causal, but without positions, and without what transformers gives to its attention."""

    def forward(self, hidden_states, *args, **kwargs):
        batch, length, _ = hidden_states.shape
        split = lambda states: states.view(batch, length, -1, self.head_dim).transpose(1, 2)
        query, key, value = (
            split(linear(hidden_states)) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1)), None


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.__class__ = OwnAttention
'''
# a forward that takes nothing but what it names
STRICT_CODE = (
    OWN_CODE
    + """
        self.model.__class__ = StrictModel


class StrictModel(LlamaModel):
    def forward(self, input_ids=None, use_cache=None):
        return super().forward(input_ids=input_ids, use_cache=use_cache)
"""
)


def random_config(model_type: str, **settings: Any) -> Any:
    """A tiny configuration of a model type, for the vocabulary of the default tokenizer."""
    tokenizer = bpe_tokenizer(SAMPLE_TEXT)
    common = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    common |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    common |= {"pad_token_id": tokenizer.pad_token_id}
    return AutoConfig.for_model(model_type, **(common | settings))


def write_random_model(folder: Path, config: Any, seed: int = 0) -> Path:
    """A random model (fp32) of a configuration, with a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    bpe_tokenizer(SAMPLE_TEXT).save_pretrained(folder)
    return folder


def write_model_with_code(folder: Path, code: str = OWN_CODE) -> Path:
    """Llama's weights under the code given, which defines OwnConfig and OwnForCausalLM."""
    write_random_model(folder, random_config("llama"))
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig"}
    config["auto_map"] |= {"AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
