"""The configuration: nested dataclasses <- a YAML file <- `key=value` arguments, merged by OmegaConf in struct mode.

Every key is declared here once, with its type, default and meaning; `--help` and docs/config.md are printed from it.
A file may build on others: `extends: [base.yaml, …]`, relative to it, merged in order before its own keys.
`load` refuses a misspelt key, a value of the wrong type and a combination that cannot work, before anything is loaded.
"""

import dataclasses
import difflib
import json
import os
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptsft.errors import ConfigError


def key(default: Any, help: str, choices: tuple[str, ...] = (), changeable: bool = False) -> Any:
    """A field of the configuration. `changeable` keys may differ when a run is resumed: they cannot change what is learned."""
    metadata = {"help": help, "choices": choices, "changeable": changeable}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    path: str = key(
        "",
        "Hugging Face name or local folder of a causal language model (config.json and *.safetensors)",
    )
    revision: str | None = key(None, "branch, tag or commit of a model on the hub")
    tokenizer: str | None = key(None, "name or folder of the tokenizer; default: model.path")
    trust_remote_code: bool = key(
        False, "run Python code that comes with the model; off unless you have read it"
    )
    compute_dtype: str = key(
        "auto",
        "dtype of forward and backward, whatever that of the masters. auto: bf16 on GPU, fp32 on CPU",
        ("auto", "fp32", "bf16"),
    )
    attention: str = key(
        "auto",
        "how documents in a pack attend; auto takes the first that works here",
        ("auto", "flash", "varlen", "sdpa"),
        changeable=True,
    )
    freeze: list[str] = key(
        [], "regular expressions; parameters whose full name matches one are not trained"
    )
    add_tokens: list[str] = key(
        [], "tokens added to the tokenizer; their embeddings start at the mean of the others"
    )


@dataclass
class SourceConfig:
    name: str = key("", "name in logs and statistics; default: the file's or data set's name")
    path: str = key(
        "",
        "hub name, or a json, jsonl, parquet or csv file, a folder of them, or a pattern such as shards/*.jsonl",
    )
    subset: str | None = key(None, "configuration of a data set on the hub")
    split: str = key("train", "split of a data set on the hub")
    weight: float = key(
        1.0,
        "copies of this source per epoch: 2 = every example twice, 0.5 = another random half each epoch",
    )
    fields: dict[str, str] = key(
        {},
        "field map, ours: yours, for example {prompt: question, completion: answer}; default: recognised by name",
    )


@dataclass
class DataConfig:
    path: str = key(
        "",
        "one source: hub name, or a json, jsonl, parquet or csv file, a folder of them, or a pattern such as shards/*.jsonl",
    )
    subset: str | None = key(None, "configuration of data.path on the hub")
    split: str = key("train", "split of data.path on the hub")
    fields: dict[str, str] = key(
        {},
        "field map for data.path, ours: yours, for example {prompt: question, completion: answer}",
    )
    sources: list[SourceConfig] = key(
        [],
        "several weighted sources (instead of data.path); keys of each: name, path, subset, split, weight, fields",
    )
    stream: int = key(
        0,
        "for sets larger than the disk: tokenise this many files of data.path at a time, while those before them are learned; "
        "needs train.max_steps (0: tokenise all before training)",
    )
    validation_path: str = key("", "held-out file or hub name, in the layout of the training data")
    validation_split: str = key("validation", "split of data.validation_path on the hub")
    validation_examples: int = key(
        0, "hold out this many examples of the training data, drawn by seed (0: none)"
    )
    template: str = key(
        "auto",
        "chat: the tokenizer's chat template. plain: data.prompt_template. auto: chat if the tokenizer has one",
        ("auto", "chat", "plain"),
    )
    prompt_template: str = key(
        "{prompt}\n",
        "plain template of the prompt; the completion and the end-of-text token follow it",
    )
    loss_on: str = key(
        "assistant",
        "which tokens are learned: every assistant turn, the last turn only, or all tokens",
        ("assistant", "last_turn", "all"),
    )
    max_length: int = key(2048, "longest example, and length of a pack, in tokens")
    overlong: str = key(
        "drop",
        "what happens to examples longer than max_length; the count is printed",
        ("drop", "truncate", "error"),
    )
    packing: bool = key(
        True,
        "pack the examples of a step into rows of max_length (best-fit decreasing); false: one padded row each",
    )
    pad_multiple: int = key(8, "rows are padded to a multiple of this many tokens", changeable=True)
    cache_dir: str = key(
        "~/.cache/adaptsft",
        "tokenised data, found again by a fingerprint of data, tokenizer, template and settings",
        changeable=True,
    )


@dataclass
class ObjectiveConfig:
    name: str = key(
        "auto",
        "see docs/objectives.md; auto: nll, or with a closed-loop controller the objective that it acts through",
    )
    base: str = key("nll", "objective that `threshold` masks")
    alpha: float = key(0.0, "alpha of f_alpha(p) = (1 - p^alpha) / alpha; 0 is -log p, 1 is 1 - p")
    lower: float = key(0.0, "threshold: tokens with p below are masked")
    upper: float = key(1.0, "threshold: tokens with p above are masked")
    lower_quantile: float | None = key(
        None,
        "threshold: set lower to this quantile of the base model's p, measured per source before step 1",
    )
    upper_quantile: float | None = key(
        None,
        "threshold: set upper to this quantile of the base model's p, measured per source before step 1",
    )
    normalizer: str = key(
        "all",
        "divide the loss by all target tokens, or by those kept by the threshold",
        ("all", "kept"),
    )
    params: dict[str, float] = key(
        {}, "parameters of the objective by name, for example {gamma: 2}; see docs/objectives.md"
    )
    exempt: str = key(
        "none",
        "tokens that keep NLL whatever the objective: end of text, or all special tokens",
        ("none", "eos", "special"),
    )
    unit_mass: bool = key(
        False,
        "divide the gradient by the running mean of the weights s, by at most 4 either way: learning rate and clipping keep their "
        "meaning across objectives",
    )


@dataclass
class ControllerConfig:
    name: str = key("fixed", "what moves the objective during training, see docs/controllers.md")
    parameter: str = key("alpha", "schedules: what they move", ("alpha", "lower", "upper"))
    start: float = key(0.0, "schedules: value at the start of the run")
    end: float = key(1.0, "schedules: value at the end of the run")
    begin: float = key(0.0, "linear, cosine: share of the run after which the move begins")
    finish: float = key(1.0, "linear, cosine: share of the run after which it has reached its end")
    points: list[list[float]] = key(
        [], "piecewise: [[share of the run, value], ...], joined by straight lines"
    )
    params: dict[str, float] = key(
        {}, "parameters of a closed-loop controller by name; see docs/controllers.md"
    )
    shrinkage: float = key(
        2000.0,
        "closed loops: a source's own value counts N / (N + shrinkage), N its tokens so far; the rest is that of all sources",
    )
    base_stats: str = key(
        "",
        "closed loops: base_stats.json of adaptsft.diagnose, instead of measuring the base model in the first steps",
    )
    base_logp: str = key(
        "",
        "base_logp.safetensors of adaptsft.diagnose: the base model's probability of every token, for learnability",
    )


@dataclass
class TrainConfig:
    epochs: float = key(1.0, "passes over the training data; ignored where max_steps is set")
    max_steps: int = key(0, "optimizer steps (0: from epochs)")
    global_batch_size: int = key(
        32, "examples per optimizer step, over all ranks and micro-batches"
    )
    micro_batch_size: int = key(
        1,
        "rows (packs, or padded examples) per rank in one forward; changes memory and speed, not what is learned",
        changeable=True,
    )
    lr: float = key(1e-5, "peak learning rate")
    lr_schedule: str = key("cosine", "shape after warm-up", ("cosine", "linear", "constant", "wsd"))
    lr_min_ratio: float = key(0.0, "learning rate at the end, as a share of the peak")
    warmup_ratio: float = key(0.03, "share of the steps in which the learning rate rises linearly")
    decay_ratio: float = key(
        0.2, "wsd: share of the steps in which the learning rate falls, linearly, at the end"
    )
    betas: list[float] = key([0.9, 0.95], "AdamW betas")
    eps: float = key(1e-8, "AdamW epsilon")
    weight_decay: float = key(
        0.01, "AdamW weight decay, on matrices only (norms and biases are exempt)"
    )
    clip_norm: float = key(1.0, "largest gradient norm (0: no clipping)")
    max_nonfinite_steps: int = key(
        5,
        "stop after this many skipped steps in a row (counted every log.every steps); any loss or gradient not finite skips a step",
    )
    activation_checkpointing: str = key(
        "none",
        "recompute activations in backward: nothing, whole blocks, or all but the matrix products",
        ("none", "full", "per_op"),
        changeable=True,
    )
    compile: bool = key(False, "torch.compile every block", changeable=True)
    reduce_every_micro_batch: bool = key(
        False,
        "reduce gradients after every micro-batch: more communication, but no unsharded gradients (4 bytes per parameter) are held",
        changeable=True,
    )
    loss_chunk: int = key(
        0,
        "rows of logits held at a time (0: by size, 48 MiB of them on CPU, 1.25 GiB on GPU)",
        changeable=True,
    )
    loss_implementation: str = key(
        "auto",
        "of the fused head and loss; auto: triton on GPU where it is installed, else torch",
        ("auto", "triton", "torch"),
        changeable=True,
    )
    loss_logits: str = key(
        "fp32",
        "dtype of a chunk's logits; bf16 is faster on GPU, and p is then off by about 1 %",
        ("fp32", "bf16"),
    )
    device: str = key(
        "auto", "auto: cuda where there is one", ("auto", "cpu", "cuda"), changeable=True
    )
    replicas: int = key(
        1,
        "HSDP: copies of the model; each is sharded over world size / replicas ranks",
        changeable=True,
    )
    hang_timeout: int = key(
        1800,
        "seconds without progress after which every rank prints where it stands and the run ends",
        changeable=True,
    )
    deterministic: bool = key(
        False, "deterministic CUDA kernels: bitwise repeatable, slower", changeable=True
    )


@dataclass
class StrictReproductionConfig:
    summed_micro_batches: bool = key(
        False,
        "average each micro-batch over its own tokens (kept ones with objective.normalizer=kept) and sum their gradients, as the paper's "
        "code did; needs data.packing=false, and train.micro_batch_size and the number of ranks then change what is learned; "
        "see docs/strict_reproduction.md",
    )
    bf16_masters: bool = key(
        False,
        "weights, their gradients and AdamW's moments in bf16, as in the paper's code: small updates are lost to rounding",
    )


@dataclass
class CheckpointConfig:
    every: int = key(0, "steps between checkpoints (0: only at the end)", changeable=True)
    keep_last: int = key(2, "checkpoints kept, the newest ones", changeable=True)
    async_save: bool = key(False, "write in the background while training goes on", changeable=True)
    on_error: str = key(
        "stop",
        "a checkpoint that cannot be saved (full disk): end the run, or say so and train on; earlier ones stay",
        ("stop", "continue"),
        changeable=True,
    )
    export_dtype: str = key(
        "bf16", "dtype of the weights in final/", ("bf16", "fp32"), changeable=True
    )


@dataclass
class EvalConfig:
    every: int = key(
        0,
        "steps between evaluations, the first before training (0: only at the end)",
        changeable=True,
    )
    tasks: list[str] = key(
        [],
        "tasks of adaptsft.evals to answer greedily at each evaluation, such as [gsm8k]; see docs/evaluation.md",
        changeable=True,
    )
    data_dir: str | None = key(
        None, "folder of the tasks' data files (default: from the hub)", changeable=True
    )
    limit: int = key(32, "items of each task", changeable=True)
    max_tokens: int = key(256, "longest answer to an item, in tokens", changeable=True)


@dataclass
class LogConfig:
    every: int = key(
        10,
        "steps between progress lines; also how often the metrics of all steps are read from the device",
        changeable=True,
    )
    tensorboard: bool = key(True, "write TensorBoard files to run_dir/tensorboard", changeable=True)


@dataclass
class Config:
    run_dir: str = key(
        "", "folder of this run: config, metrics, checkpoints and the final model", changeable=True
    )
    resume: str = key(
        "auto",
        "auto: from the newest checkpoint in run_dir, if any. never: refuse a folder that holds a run. Or the path of a checkpoint",
        changeable=True,
    )
    seed: int = key(0, "seed of data order, held-out split and dropout")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    strict_reproduction: StrictReproductionConfig = field(default_factory=StrictReproductionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)


def load(arguments: list[str]) -> Config:
    """The configuration from `[CONFIG.yaml] key=value …` (later wins). Raises ConfigError; loads no model and no data."""
    merged = OmegaConf.structured(Config)
    for origin, values in (part for argument in arguments for part in _parse(argument)):
        try:
            _refuse_booleans(values)
            for name in _keys_of(
                "dict"
            ):  # a mapping replaces the one before it; its keys, one by one, add to it
                if OmegaConf.select(values, name) is not None and origin.startswith(f"{name}="):
                    OmegaConf.update(merged, name, {}, merge=False)
            merged = OmegaConf.merge(merged, values)
        except (OmegaConfBaseException, TypeError) as error:
            raise ConfigError(f"{origin}: {_explain(error)}") from None
    try:
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # an interpolation ${…} that leads nowhere
        raise ConfigError(_explain(error)) from None
    from adaptsft.config.resolve import validate

    validate(config)
    return config


def _parse(argument: str) -> list[tuple[str, Any]]:
    """Where it is said, and what: one `key=value`, or a file after the files that it extends."""
    if argument.startswith("-"):
        raise ConfigError(
            f"{argument}: not an option; settings are written key=value, and --help lists the keys"
        )
    if "=" in argument:
        return [(argument, _parse_value(argument))]
    if not Path(argument).is_file():
        raise ConfigError(
            f"{argument}: no such configuration file (arguments are a YAML file or key=value)"
        )
    return _parse_file(Path(argument), ())


def _parse_file(path: Path, extending: tuple[Path, ...]) -> list[tuple[str, Any]]:
    if path in extending:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(map(str, extending))}")
    try:
        values: Any = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not OmegaConf.is_dict(values):
        raise ConfigError(f"{path}: holds a list; a configuration is a mapping of keys to values")
    extends = values.pop("extends", None) or []
    parts: list[tuple[str, Any]] = []
    for name in [extends] if isinstance(extends, str) else extends:
        parent = Path(os.path.normpath(path.parent / str(name)))
        if not parent.is_file():
            raise ConfigError(
                f"{path}: extends: no such file: {parent} (names are relative to the file that extends)"
            )
        parts += _parse_file(parent, (*extending, path))
    return [*parts, (str(path), values)]


def _parse_value(argument: str) -> Any:
    name, text = argument.split("=", 1)
    if name in _keys_of("str"):
        # text is taken as it is, whatever YAML would make of {prompt}, 007, # or nothing at all; in double quotes \n is a line break
        quoted = text[:1] in ("'", '"')
        try:
            return OmegaConf.from_dotlist(
                [f"{name}={json.dumps(yaml.safe_load(text) if quoted else text)}"]
            )
        except yaml.YAMLError:
            raise ConfigError(f"{argument}: the quotes do not close") from None
    groups = {declared.split(".")[0] for declared, _, _ in all_keys() if "." in declared}
    try:
        values = OmegaConf.from_dotlist([argument])
    except (yaml.YAMLError, OmegaConfBaseException):
        raise ConfigError(
            f"{argument}: the value is not valid YAML; put it in quotes: '{name}=\"{text}\"'"
        ) from None
    if name in groups and not OmegaConf.is_dict(values[name]):
        first = next(declared for declared, _, _ in all_keys() if declared.startswith(f"{name}."))
        raise ConfigError(f"{argument}: {name} is a group of keys; did you mean {first}={text}?")
    for kind, example in (("list", "[a, b]"), ("dict", "{a: b}")):
        value = OmegaConf.select(values, name)
        if name in _keys_of(kind) and not (
            OmegaConf.is_list(value) if kind == "list" else OmegaConf.is_dict(value)
        ):
            raise ConfigError(
                f"{argument}: must be a {'list' if kind == 'list' else 'mapping'}, such as {name}='{example}'"
            )
    return values


def _refuse_booleans(values: Any, name: str = "") -> None:
    """YAML reads yes, no, on and off as true and false; where text is meant that would become the name 'True'."""
    meant = {declared.split(".")[-1] for declared in _keys_of("bool")}
    children = (
        values.items()
        if OmegaConf.is_dict(values)
        else enumerate(values)
        if OmegaConf.is_list(values)
        else ()
    )
    for key_, value in children:
        if isinstance(value, bool) and key_ not in meant:
            raise ConfigError(f"{name}{key_}: YAML reads this value as {value}; put it in quotes")
        _refuse_booleans(value, f"{name}{key_}.")


def _keys_of(kind: str) -> set[str]:
    """Names of the keys declared as str (also `str | None`), bool, list or dict."""
    return {
        name for name, declared, _ in all_keys() if re.match(rf"{kind}\b", _type_name(declared))
    }


def _type_name(declared: dataclasses.Field) -> str:
    plain = isinstance(declared.type, type) and not typing.get_args(declared.type)
    name = typing.cast(type, declared.type).__name__ if plain else str(declared.type)
    return name.replace("__main__.", "").replace("adaptsft.config.", "")


# what other trainers call it
ALIASES = {
    "learning_rate": "train.lr",
    "batch_size": "train.global_batch_size",
    "num_epochs": "train.epochs",
    "output_dir": "run_dir",
}


def _explain(error: Exception) -> str:
    """One line for OmegaConf's error: the full key, what is wrong with it, and the nearest key that exists."""
    full_key = getattr(error, "full_key", None) or ""
    if alias := ALIASES.get(full_key.split(".")[-1]):
        return f"unknown key {full_key}; did you mean {alias}?"
    if "not in" in str(error):
        names = [name for name, _, _ in all_keys()]
        last = full_key.split(".")[-1]
        near = difflib.get_close_matches(full_key, names, n=1, cutoff=0.75) or [
            n for n in names if n.split(".")[-1] == last
        ]
        near = near or difflib.get_close_matches(full_key, names, n=1, cutoff=0.5)
        return f"unknown key {full_key}" + (
            f"; did you mean {near[0]}?" if near else "; --help lists the keys"
        )
    return f"key {full_key}: {str(error).splitlines()[0]}"


def all_keys(cls: type = Config, prefix: str = "") -> list[tuple[str, dataclasses.Field, Any]]:
    """Every key as (full name, dataclass field, default), in the order of declaration."""
    types = typing.get_type_hints(cls)
    rows: list[tuple[str, dataclasses.Field, Any]] = []
    for declared in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[declared.name]):
            rows += all_keys(typing.cast(type, types[declared.name]), f"{prefix}{declared.name}.")
        else:
            factory = declared.default_factory
            default = factory() if factory is not dataclasses.MISSING else declared.default
            rows.append((prefix + declared.name, declared, default))
    return rows


def get(config: Any, name: str) -> Any:
    """The value of a key by its full name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def differences(old: Config, new: Config) -> list[str]:
    """`key: old -> new` for every key that differs and that could change what is learned."""
    from adaptsft.config import strict

    changed, pinned = [], strict.pinned(old)
    for name, declared, _ in all_keys():
        if (name in pinned or not declared.metadata["changeable"]) and get(old, name) != get(
            new, name
        ):
            changed.append(f"{name}: {get(old, name)} -> {get(new, name)}")
    return changed


def save(config: Config, path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def read(path: Path) -> Config:
    """A configuration that `save` wrote. Raises ConfigError where the file is damaged or from another version."""
    try:
        return typing.cast(
            Config,
            OmegaConf.to_object(
                OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
            ),
        )
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not a configuration of this version: {error}") from None


def _rows() -> list[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every key, as `--help` and docs/config.md print them."""
    rows = []
    for name, declared, default in all_keys():
        annotation = _type_name(declared)
        choices = declared.metadata["choices"]
        meaning = declared.metadata["help"] + (f" ({' | '.join(choices)})" if choices else "")
        rows.append(
            (name, annotation, repr(default) if isinstance(default, str) else str(default), meaning)
        )
    return rows


def help_text() -> str:
    """What `python -m adaptsft.train --help` prints."""
    from adaptsft import controllers
    from adaptsft.objectives import library as objectives

    lines = [
        "usage: torchrun --standalone --nproc-per-node GPUS -m adaptsft.train [CONFIG.yaml] [key=value …]",
        "",
    ]
    lines += ["Later arguments win. On one GPU or CPU, `python -m adaptsft.train …` does. Example:"]
    lines += [
        "  torchrun --standalone --nproc-per-node 8 -m adaptsft.train configs/sft.yaml model.path=Qwen/Qwen2.5-1.5B \\"
    ]
    lines += ["    data.path=train.jsonl controller.name=auto run_dir=runs/first", ""]
    lines += [
        "A CONFIG.yaml may begin with `extends: [base.yaml, …]`: files, relative to it, that it builds on.",
        "",
        "Keys:",
    ]
    for name, annotation, default, meaning in _rows():
        lines += [f"  {name}  [{annotation}, default {default}]", f"      {meaning}"]
    return "\n".join(
        [
            *lines,
            "",
            "Objectives:",
            objectives.describe(),
            "",
            "Controllers:",
            controllers.describe(),
        ]
    )


def markdown() -> str:
    """docs/config.md."""
    lines = [
        "# Configuration",
        "",
        "Generated by `python -m adaptsft.config > docs/config.md` from `adaptsft/config/schema.py`; a test keeps it current.",
        "",
    ]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, annotation, default, meaning in _rows():
        cells = [f"`{name}`", f"`{annotation}`", f"`{default}`", meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
