"""What train_step.py measures: the candidates, the models' shapes, and what a process is to do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AUTO = "controller.name=auto"
EAGER, COMPILED = "train.compile=false", "train.compile=true"  # on CUDA the trainer's default
CANDIDATES: dict[str, list[str]] = {  # of ours; TRL is another
    "NLL": ["objective.name=nll", EAGER],
    "-p": ["objective.name=neg_p", EAGER],
    "p >= .2": ["objective.name=threshold", "objective.lower=0.2", EAGER],
    "adaptive": [AUTO, EAGER],
    "adaptive, compiled": [AUTO, COMPILED],
    "adaptive, compiled, no router loss": [AUTO, COMPILED, "train.router_aux_loss=0"],
}
OF_MIXTURES = ("adaptive, compiled, no router loss",)
# the last run of each of these in a process is profiled, too
PROFILED = ("adaptive", "TRL", "adaptive, compiled")
MODELS: dict[str, dict[str, Any]] = {
    # config.json of Qwen/Qwen2.5-1.5B
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    # config.json of Qwen/Qwen3-30B-A3B, but for its 48 layers: with weights, moments and gradients
    # in fp32, 6 of them and the head take 70 GB
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.001,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1024,
}
EXAMPLES = 32  # of the data, and of a step
WARM_UP = 2  # steps of a run that are not timed


@dataclass
class Setting:
    folder: Path
    names: list[str]  # candidates; "prepare" writes the model and the data
    model: str  # of MODELS
    tiny: bool
    device: str
    length: int  # tokens of a pack
    steps: int  # of a run
    changes: list[str] = field(default_factory=list)  # key=value, for all of ours

    @property
    def shape(self) -> dict[str, Any]:
        """Of the model, as keys of its config.json."""
        shape = MODELS[self.model]
        return {key: TINY.get(key, value) if self.tiny else value for key, value in shape.items()}
