"""Tiny random models: real architectures and real tokenizers, small enough for a test, a demo or a
dry run of a config.

`tools/make_tiny_model.py` is the command line; the tests and the quick start call
`make_tiny_model`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from adaptsft.errors import ConfigError, DataError

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
# Qwen's names: its tokenizer class would add them otherwise
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAMPLE_TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Natalia sold 48 clips in April, and half as many in May: 48 + 24 = 72 clips in all.",
    "Question: what is the capital of France? Answer: the capital of France is Paris.",
)


def texts_of(path: str | Path) -> Iterator[str]:
    """Every string in a jsonl file, at any depth: the text a tokenizer is trained on. Raises
    DataError with file and line."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for child in value.values() if isinstance(value, dict) else value:
                yield from strings(child)

    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield from strings(json.loads(line)) if line.strip() else ()
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: not JSON ({error}). Every line must hold one JSON "
                        "object."
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def bpe_tokenizer(
    texts: Iterable[str], vocab_size: int = 512, chat_template: str | None = CHATML
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, split as Qwen splits (digits one by one): any
    text round-trips.

    At least 259 entries: 256 bytes and 3 special tokens. Fewer than `vocab_size` where the texts
    hold no more pairs to merge.
    """
    if vocab_size < 259:
        raise ConfigError(
            f"vocab_size={vocab_size} is too small: 256 bytes and 3 special tokens need 259"
        )
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, chat_template)


def char_tokenizer(
    characters: str, tags: Iterable[str] = (), chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """One token per character of `characters`, one per tag (such as "<copy>"). Encoding any other
    character is an error."""
    vocab = {token: index for index, token in enumerate([PAD, START, END, *tags, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab))
    tokenizer.add_special_tokens([PAD, START, END])
    tokenizer.add_tokens(list(tags))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, chat_template)


def _wrap(tokenizer: Tokenizer, chat_template: str | None) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = chat_template
    return wrapped


def make_tiny_model(
    folder: str | Path,
    arch: str = "llama",
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    tied: bool | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a random model (fp32 safetensors), its tokenizer and its generation config to `folder`;
    returns `folder`.

    `tokenizer` defaults to a BPE trained on a few sentences; `tied` to what the architecture does
    (Gemma ties its embeddings); `overrides` are keys of the architecture's own config. The same
    arguments give the same files.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(f"arch={arch!r} is not known. Choose one of: {', '.join(ARCHITECTURES)}")
    if hidden % heads or (hidden // heads) % 2:
        raise ConfigError(
            f"hidden={hidden} must be heads={heads} times an even head size: rotary embeddings "
            "turn pairs"
        )
    tokenizer = tokenizer or bpe_tokenizer(SAMPLE_TEXT)
    if arch == "qwen2" and not isinstance(tokenizer.backend_tokenizer.model, models.BPE):
        raise ConfigError(
            "arch='qwen2' needs a BPE tokenizer: transformers loads every qwen2 folder as one. "
            "Choose qwen3 or llama"
        )
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 or 1,
        "head_dim": hidden // heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": arch.startswith("gemma") if tied is None else tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arch.startswith("gemma"):
        # Both kinds of layer even in a model of two, and a window that a short text already leaves.
        kinds = ("sliding_attention", "full_attention")
        settings |= {
            "layer_types": [kinds[i % 2] for i in range(layers)],
            "sliding_window": 32,
            "query_pre_attn_scalar": hidden // heads,
        }
    if arch == "qwen3_moe":
        settings |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden}
    config = AutoConfig.for_model(ARCHITECTURES[arch], **(settings | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
