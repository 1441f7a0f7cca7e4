"""What train_step.py measures: the candidates, the model's shape, and what a process is to do."""

from dataclasses import dataclass, field
from pathlib import Path

AUTO = "controller.name=auto"
EAGER, COMPILED = "train.compile=false", "train.compile=true"  # on CUDA the trainer's default
CANDIDATES: dict[str, list[str]] = {  # of ours; TRL is another
    "NLL": ["objective.name=nll", EAGER],
    "-p": ["objective.name=neg_p", EAGER],
    "p >= .2": ["objective.name=threshold", "objective.lower=0.2", EAGER],
    "adaptive": [AUTO, EAGER],
    "adaptive, compiled": [AUTO, COMPILED],
}
# the last run of each of these in a process is profiled, too
PROFILED = ("adaptive", "TRL", "adaptive, compiled")
# of the model, by --tiny; Qwen2.5-1.5B: config.json of Qwen/Qwen2.5-1.5B
SHAPES: dict[bool, dict[str, int]] = {
    False: {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
    },
    True: {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "vocab_size": 1024,
    },
}
EXAMPLES = 32  # of the data, and of a step
WARM_UP = 2  # steps of a run that are not timed


@dataclass
class Setting:
    folder: Path
    names: list[str]  # candidates; "prepare" writes the model and the data
    tiny: bool
    device: str
    length: int  # tokens of a pack
    steps: int  # of a run
    changes: list[str] = field(default_factory=list)  # key=value, for all of ours
