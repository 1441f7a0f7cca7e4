"""The model and the data of train_step.py, the same for ours and TRL."""

import json
import math
from itertools import product
from random import Random
from typing import Any

import torch
from train_step_settings import EXAMPLES, Setting  # pyrefly: ignore[missing-import]
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adaptsft.config.resolve import load_config
from adaptsft.data.packing import best_fit_decreasing
from adaptsft.data.tokenized import open_data
from adaptsft.model.tiny import bpe_tokenizer
from adaptsft.training.flops import active_parameters, flops_per_token

# a token each, and so many that they are sent to all experts of a mixture
WORDS = ["".join(letters) for letters in product("bdfglmnprst", "aeiou", "dlmnrst")]


def prepare(setting: Setting) -> dict[str, Any]:
    """Write model (bf16, as most checkpoints) and data; returns what is known of a step."""
    tokenizer = bpe_tokenizer([f" {word}" for word in WORDS], vocab_size=1024)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(**setting.shape, **special, max_position_embeddings=32768)
    torch.manual_seed(0)
    with torch.device(setting.device), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        # as if pretrained: it expects the token before to come again, with p about .8; the text
        # below does so every other time
        for name, parameter in model.model.layers.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter *= 0.03
        model.lm_head.weight.normal_()
        model.model.embed_tokens.weight.copy_(model.lm_head.weight)
        model.model.norm.weight.fill_((math.log(config.vocab_size) + 1.5) / config.hidden_size)
    model.save_pretrained(setting.folder / "model")
    tokenizer.save_pretrained(setting.folder / "model")
    random = Random(0)

    def text() -> str:
        words = [random.choice(WORDS)]
        for _ in range(random.randint(setting.length // 32, setting.length // 7)):
            words.append(words[-1] if random.random() < 0.5 else random.choice(WORDS))
        return " ".join(words)

    with (setting.folder / "train.jsonl").open("w") as file:
        for _ in range(EXAMPLES):
            file.write(json.dumps({"prompt": text(), "completion": text()}) + "\n")
    _, data = tokenised(setting)
    tokens = int(data.lengths.sum())
    return {
        "tokens": tokens,
        "target_tokens": int(data.target_tokens.sum()),
        "packs": packs(data, setting.length),
        "flops": flops_per_token(model, data) * tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "active_parameters": active_parameters(model),
    }


def overrides(setting: Setting, changes: list[str]) -> list[str]:
    """Our configuration, with `changes`."""
    folder = setting.folder
    return [
        f"run_dir={folder / 'run'}",
        f"model.path={folder / 'model'}",
        f"data.path={folder / 'train.jsonl'}",
        f"data.cache_dir={folder / 'cache'}",
        f"data.max_length={setting.length}",
        f"train.global_batch_size={EXAMPLES}",
        "train.micro_batch_size=1",
        f"train.device={setting.device}",
        "train.lr_schedule=constant",
        "train.warmup_ratio=0",
        "checkpoint.every=0",
        "log.trackers=[]",
        *changes,
        *setting.changes,
    ]


def tokenised(setting: Setting) -> tuple[Any, Any]:
    """(our configuration, the examples as token ids and masks)."""
    config = load_config(overrides(setting, []))
    tokenizer: Any = AutoTokenizer.from_pretrained(setting.folder / "model")
    return config, open_data(config.data, tokenizer, config.seed, log=lambda line: None)[0]


def packs(data: Any, length: int) -> int:
    return len(best_fit_decreasing(data.lengths.tolist(), length))
