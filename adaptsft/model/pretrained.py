"""What surrounds the weights of a model: its configuration, tokenizer and generation settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from adaptsft.config.paths import local_model_folder
from adaptsft.config.schema import ModelConfig
from adaptsft.data.tokenized import TokenizedData
from adaptsft.errors import ConfigError


@dataclass
class Pretrained:
    """What surrounds the weights: kept to build the model and to write a complete folder at the end."""

    folder: Path
    config: Any
    tokenizer: Any  # PreTrainedTokenizerBase
    generation: GenerationConfig | None
    new_tokens: list[int]  # ids that the checkpoint's embeddings do not have

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0


def load_pretrained(config: ModelConfig) -> Pretrained:
    """Config, tokenizer and generation settings of `model.path`, a folder or a name on the hub. Raises ConfigError."""
    folder = _local_folder(config)
    try:
        model_config = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
        generation = (
            GenerationConfig.from_pretrained(folder)
            if (folder / "generation_config.json").is_file()
            else None
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path={config.path}: {str(error).strip()}") from None
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.path={config.path}: no *.safetensors in it; load and save the model once with transformers to convert it"
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            config.tokenizer or folder, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.tokenizer={config.tokenizer or folder}: {str(error).strip()}"
        ) from None
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ConfigError(
            f"model.tokenizer={config.tokenizer or folder}: no tokenizer in it; set model.tokenizer to a folder or name that has one"
        )
    known = len(tokenizer)
    for token in config.add_tokens:
        if not token.strip() or token in tokenizer.get_vocab():
            raise ConfigError(
                f"model.add_tokens: {token!r} is {'empty' if not token.strip() else 'a token of the tokenizer already'}: leave it out"
            )
    tokenizer.add_tokens(config.add_tokens)
    text_config = model_config.get_text_config()
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    return Pretrained(
        folder, model_config, tokenizer, generation, list(range(known, len(tokenizer)))
    )


def check_lengths(pretrained: Pretrained, *data: TokenizedData | None) -> None:
    """Raises ConfigError where an example is longer than the model has positions for."""
    positions = getattr(pretrained.config.get_text_config(), "max_position_embeddings", None) or 0
    longest = max(int(part.lengths.max()) for part in data if part is not None)
    if 0 < positions < longest:
        raise ConfigError(
            f"data.max_length: an example has {longest:,} tokens, and the model positions for {positions:,} (max_position_embeddings in "
            f"{pretrained.folder / 'config.json'}): lower data.max_length, or raise the positions there if the model can be stretched"
        )


def _local_folder(config: ModelConfig) -> Path:
    if folder := local_model_folder(config):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision,
                ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"],
            )
        )
    except (
        Exception
    ) as error:  # whatever the hub client raises, without network or without such a model
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model.path={config.path}: no such folder here, and the hub does not give it: {reason}"
        ) from None
