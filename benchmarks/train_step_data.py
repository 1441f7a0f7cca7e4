"""The model and the data of train_step.py, the same for ours and TRL."""

import json
import math
from random import Random
from typing import Any

import torch
from train_step_settings import EXAMPLES, SHAPES, Setting  # pyrefly: ignore[missing-import]
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adaptsft.config.resolve import load_config
from adaptsft.data.packing import best_fit_decreasing
from adaptsft.data.tokenized import open_data
from adaptsft.model.tiny import SAMPLE_TEXT, bpe_tokenizer

VOCABULARY = "all and as brown capital clips dog fox half in is lazy many of quick sold the"
WORDS = VOCABULARY.split()


def prepare(setting: Setting) -> dict[str, Any]:
    """Write model (bf16, as most checkpoints) and data; returns what is known of a step."""
    tokenizer, shape = bpe_tokenizer(SAMPLE_TEXT), SHAPES[setting.tiny]
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape_and_ids = shape | special | {"max_position_embeddings": 32768}
    config = AutoConfig.for_model("qwen2", **shape_and_ids, tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device(setting.device), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        # as if pretrained: it expects the token before to come again, with p about .8; the text
        # below does so every other time
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.03
            layer.mlp.down_proj.weight *= 0.03
        model.model.embed_tokens.weight.normal_()
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
    head = shape["vocab_size"] * shape["hidden_size"]
    body = sum(parameter.numel() for parameter in model.parameters()) - head
    pairs = float((data.lengths.astype(float) ** 2).sum() / 2)
    tokens, target_tokens = int(data.lengths.sum()), int(data.target_tokens.sum())
    products = 6.0 * (body * tokens + head * target_tokens)
    attention = 12.0 * shape["num_hidden_layers"] * shape["hidden_size"] * pairs
    return {
        "tokens": tokens,
        "target_tokens": target_tokens,
        "packs": packs(data, setting.length),
        "flops": products + attention,
        "parameters": head + body,
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
