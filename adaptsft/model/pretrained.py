"""What surrounds the weights of a model: its configuration, tokenizer and generation settings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from adaptsft.config.paths import local_model_folder
from adaptsft.config.schema import Config, ModelConfig
from adaptsft.data.tokenized import TokenizedData
from adaptsft.errors import ConfigError, reason_of
from adaptsft.model.language import is_adapter


@dataclass
class Pretrained:
    """Kept to build the model, and to write a complete folder at the end."""

    folder: Path
    config: Any
    tokenizer: Any  # PreTrainedTokenizerBase
    generation: GenerationConfig | None
    new_tokens: list[int]  # ids that the checkpoint's embeddings do not have

    @property
    def rows(self) -> int:
        """Of the embedding."""
        return self.config.get_text_config().vocab_size

    @property
    def pad_id(self) -> int:
        own = self.tokenizer.pad_token_id or 0
        return own if own < self.rows else 0  # any will do, and one without an embedding will not


def load_pretrained(config: ModelConfig) -> Pretrained:
    """Config, tokenizer and generation settings of `model.path`, a folder or a name on the hub.
    Raises ConfigError."""
    folder = _local_folder(config)
    _check_no_adapter(config, folder)
    try:
        model_config = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # also what the code of a model raises that comes with its own
        raise ConfigError(f"model.path={config.path}: {reason_of(error)}") from None
    _check_files(config, folder, model_config)
    generation = _load_generation(folder)
    tokenizer = load_tokenizer(config, folder)
    text_config = text_config_of(config, model_config)
    if config.add_tokens and getattr(text_config, "hidden_size_per_layer_input", None):
        raise ConfigError(
            f"model.add_tokens: {config.path} has a second embedding, of per-layer inputs "
            "(hidden_size_per_layer_input), which cannot be given new tokens here: leave it out"
        )
    new_tokens = _add_tokens(config, tokenizer, text_config.vocab_size)
    text_config.vocab_size = max([text_config.vocab_size - 1, *new_tokens]) + 1
    return Pretrained(folder, model_config, tokenizer, generation, new_tokens)


def text_config_of(config: ModelConfig, model_config: Any) -> Any:
    """The part of a configuration that describes its language model. Raises ConfigError where there
    is none, or more than one."""
    try:
        settings = model_config.get_text_config()
    except ValueError as error:
        raise ConfigError(f"model.path={config.path}: {error}") from None
    if not hasattr(settings, "vocab_size"):
        raise ConfigError(
            f"model.path={config.path}: model_type={model_config.model_type} is no language model "
            "(no vocab_size in its config.json)"
        )
    return settings


def _check_files(config: ModelConfig, folder: Path, model_config: Any) -> None:
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.path={config.path}: no *.safetensors in it; load and save the model once with "
            "transformers to convert it"
        )
    check_not_quantized(config, model_config)


def check_not_quantized(config: ModelConfig, model_config: Any) -> None:
    if quantized := getattr(model_config, "quantization_config", None):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else "unknown"
        raise ConfigError(
            f"model.path={config.path}: its weights are quantised (quantization_config in "
            f"config.json: {method}), and only plain ones can be trained, nor do adapters "
            "(model.lora) train beside quantised ones here: name the checkpoint that it was made "
            "from, or save a dequantised one with transformers"
        )


def _check_no_adapter(config: ModelConfig, folder: Path) -> None:
    """An adapter would be left out beside whole weights, and cannot be trained without them."""
    if is_adapter(folder):
        try:
            settings = json.loads((folder / "adapter_config.json").read_text())
            base = settings.get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            base = None
        raise ConfigError(
            f"model.path={config.path} holds an adapter (adapter_config.json) of "
            f"{base or 'another model'}: merge it (python -m adaptsft.export RUN OUT --merge, for "
            "a run of adaptsft, or merge_and_unload and save_pretrained of PEFT) and name the "
            "merged folder"
        )


def _load_generation(folder: Path) -> GenerationConfig | None:
    """The generation settings, if there are any, whose ends are tokens: what final/ would be given
    back is checked now, not after training."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    try:
        found = GenerationConfig.from_pretrained(folder)
    except Exception as error:  # whatever its checks of values raise
        raise ConfigError(f"{path}: {reason_of(error)}; repair it, or remove it") from None
    ends = found.eos_token_id
    if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
        raise ConfigError(f"{path}: eos_token_id is {ends}; write a token's id, or a list of them")
    return found


def check_fits_model(config: Config, pretrained: Pretrained, *data: TokenizedData | None) -> None:
    """Raises ConfigError where an example is longer than the model has positions for, or holds a
    token for which its embedding has no row, and where examples of different lengths would be given
    different positions."""
    parts = [part for part in data if part is not None]
    _check_ids(config.model, pretrained, max(part.highest_id for part in parts))
    _check_long_rope(config, pretrained, parts)
    positions = getattr(pretrained.config.get_text_config(), "max_position_embeddings", None) or 0
    longest = max(int(part.lengths.max()) for part in parts)
    if 0 < positions < longest:
        raise ConfigError(
            f"data.max_length: an example has {longest:,} tokens, and the model positions for "
            f"{positions:,} (max_position_embeddings in {pretrained.folder / 'config.json'}): "
            "lower data.max_length, or raise the positions there if the model supports longer "
            "contexts"
        )


def _check_long_rope(config: Config, pretrained: Pretrained, data: list[TokenizedData]) -> None:
    """LongRoPE (Phi-3's of 128k) turns positions by one table up to some length and by another
    beyond it, and transformers chooses once for a whole batch: by its longest example."""
    settings = pretrained.config.get_text_config()
    parameters = getattr(settings, "rope_parameters", None) or {}
    layers = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    limits = {
        part.get("original_max_position_embeddings")
        or getattr(settings, "original_max_position_embeddings", None)
        for part in layers
        if part.get("rope_type") == "longrope"
    }
    alone = not config.data.packing and config.train.micro_batch_size == 1
    for limit in filter(None, limits):
        shortest = min(int(part.lengths.min()) for part in data)
        longest = max(int(part.lengths.max()) for part in data)
        if shortest <= limit < longest and not alone:
            raise ConfigError(
                f"data.max_length: the model (rope_type=longrope) computes positions otherwise for "
                f"examples of more than {limit:,} tokens, for a whole batch at once, and the data "
                f"has examples on both sides: set data.max_length={limit}, or data.packing=false "
                "and train.micro_batch_size=1"
            )


def _add_tokens(config: ModelConfig, tokenizer: Any, rows: int) -> list[int]:
    """Add model.add_tokens to the tokenizer of a model whose embedding has so many rows; returns
    their ids. Raises ConfigError."""
    vocabulary = tokenizer.get_vocab()
    for token in config.add_tokens:
        if not token.strip() or vocabulary.get(token, rows) < rows:
            reason = "a token of the tokenizer already" if token.strip() else "empty"
            raise ConfigError(f"model.add_tokens: {token!r} is {reason}: leave it out")
    tokenizer.add_tokens(config.add_tokens)
    return sorted(tokenizer.convert_tokens_to_ids(config.add_tokens))


def _check_ids(config: ModelConfig, pretrained: Pretrained, highest: int) -> None:
    """Tokenizers may know tokens that their model lacks, as Gemma 3's of 1 B parameters, if no text
    has them."""
    rows, vocabulary = pretrained.rows, pretrained.tokenizer.get_vocab()
    if highest < rows:
        return
    outside = {i: token for token, i in vocabulary.items() if i >= rows}
    names = [outside[i] for i in sorted(outside)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    listed = json.dumps([*config.add_tokens, *names[:5]], ensure_ascii=False)
    raise ConfigError(
        f"model.tokenizer={config.tokenizer or config.path}: the data has the id {highest}, and "
        f"the model's embedding {rows} rows (vocab_size in config.json): none for "
        f"{', '.join(map(repr, names[:5]))}{more}. Set model.tokenizer to the model's own, or have "
        f"rows added for them: model.add_tokens='{listed}'{more}"
    )


def load_tokenizer(config: ModelConfig, folder: Path | str) -> Any:
    wanted = config.tokenizer or folder
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            wanted, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.tokenizer={wanted}: {str(error).strip()}") from None
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ConfigError(
            f"model.tokenizer={wanted}: no tokenizer in it; set model.tokenizer to a folder or "
            "name that has one"
        )
    if config.chat_template:
        try:
            tokenizer.chat_template = Path(config.chat_template).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"model.chat_template={config.chat_template}: {error}") from None
    return tokenizer


def _local_folder(config: ModelConfig) -> Path:
    if folder := local_model_folder(config):
        return folder
    unused = ["*.bin", "*.pth", "*.gguf", "original/*"]
    try:
        return Path(
            snapshot_download(config.path, revision=config.revision, ignore_patterns=unused)
        )
    except Exception as error:
        # whatever the hub's client raises, without network or without such a model
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model.path={config.path}: no such folder here, and it could not be downloaded from "
            f"the hub: {reason}"
        ) from None
