"""The configuration: nested dataclasses.

Every key is declared here once, with its type, default and meaning; `--help` and docs/config.md are
printed from it.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any


def key(default: Any, help: str, choices: tuple[str, ...] = (), changeable: bool = False) -> Any:
    """A field of the configuration. `changeable` keys may differ when a run is resumed: they cannot
    change what is learned."""
    metadata = {"help": help, "choices": choices, "changeable": changeable}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


LOSS_ON = ("assistant", "last_turn", "each_turn", "all")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass
class LoraConfig:
    rank: int = key(
        0,
        "r of PEFT's LoraConfig: rank of the adapters that are trained in place of the model's "
        "weights (0: all weights are trained)",
    )
    alpha: int = key(32, "lora_alpha of PEFT: what an adapter adds is multiplied by alpha / rank")
    dropout: float = key(0.0, "lora_dropout of PEFT: of what the adapters read")
    target_modules: Any = key(
        "all-linear",
        "as PEFT's, the layers that get adapters: a list of how their names end, such as "
        "[q_proj, v_proj], a regular expression of whole names, or all-linear: every linear layer "
        "but the head",
    )
    use_rslora: bool = key(
        False, "as PEFT's: multiply by alpha / sqrt(rank) instead (arXiv:2312.03732)"
    )
    use_dora: bool = key(
        False,
        "as PEFT's: train the norms of the weights' rows apart from their directions "
        "(arXiv:2402.09353)",
    )


@dataclass
class ModelConfig:
    path: str = key(
        "",
        "Hugging Face name or local folder of a causal language model (config.json and "
        "*.safetensors)",
    )
    revision: str | None = key(None, "branch, tag or commit of a model on the hub")
    tokenizer: str | None = key(None, "name or folder of the tokenizer; default: model.path")
    chat_template: str | None = key(
        None,
        "file with a chat template (Jinja) in place of the tokenizer's; final/ gets it too",
    )
    trust_remote_code: bool = key(
        False, "run Python code that comes with the model; off unless you have read it"
    )
    compute_dtype: str = key(
        "auto",
        "dtype of forward and backward, whatever model.param_dtype. auto: bf16 on GPU, fp32 on CPU",
        ("auto", "fp32", "bf16"),
    )
    fp8: str = key(
        "none",
        "rowwise: the decoder's linear layers multiply in FP8, with a scale per row, on a GPU of "
        "compute capability 9.0 (Hopper) or above; faster with train.compile only. Needs torchao: "
        "pip install 'adaptsft[fp8]'",
        ("none", "rowwise"),
    )
    param_dtype: str = key(
        "fp32",
        "dtype of the weights that are trained, of their gradients and of AdamW's moments; in "
        "bf16, as in the paper's code, small updates are lost to rounding. What adapters leave "
        "frozen is held in model.compute_dtype",
        ("fp32", "bf16"),
    )
    attention: str = key(
        "auto",
        "how documents in a pack attend; auto takes the first of flash, varlen and sdpa that works "
        "here. eager: transformers' own, slower, for models with an attention of their own, "
        "without data.packing",
        ("auto", "flash", "varlen", "sdpa", "eager"),
        changeable=True,
    )
    unverified: bool = key(
        False,
        "train a model type that docs/models.md does not hold, if the comparison with transformers "
        "on the first batch holds",
        changeable=True,
    )
    freeze: list[str] = key(
        [], "regular expressions; parameters whose full name matches one are not trained"
    )
    add_tokens: list[str] = key(
        [], "tokens added to the tokenizer; their embeddings start at the mean of the others"
    )
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class SourceConfig:
    name: str = key("", "name in logs and statistics; default: the file's or data set's name")
    path: str = key(
        "",
        "hub name, or a json, jsonl, parquet or csv file, a folder of them, or a pattern such as "
        "shards/*.jsonl",
    )
    subset: str | None = key(None, "configuration of a data set on the hub")
    split: str = key("train", "split of a data set on the hub")
    weight: float = key(
        1.0,
        "copies of this source per epoch: 2 = every example twice, 0.5 = another random half "
        "each epoch",
    )
    fields: dict[str, str] = key(
        {},
        "field map, ours: yours, for example {prompt: question, completion: answer}; default: "
        "recognised by name",
    )
    loss_on: str = key("", "of this source, in place of data.loss_on")


@dataclass
class DataConfig:
    path: str = key(
        "",
        "one source: hub name, or a json, jsonl, parquet or csv file, a folder of them, or a "
        "pattern such as shards/*.jsonl",
    )
    subset: str | None = key(None, "configuration of data.path on the hub")
    split: str = key("train", "split of data.path on the hub")
    fields: dict[str, str] = key(
        {},
        "field map for data.path, ours: yours, for example {prompt: question, completion: answer}",
    )
    sources: list[SourceConfig] = key(
        [],
        "several weighted sources (instead of data.path); keys of each: name, path, subset, "
        "split, weight, fields, loss_on",
    )
    stream: int = key(
        0,
        "for sets larger than the disk: tokenise this many files of data.path at a time, while "
        "the model trains on those before them; needs train.max_steps (0: tokenise all before "
        "training)",
    )
    validation_path: str = key("", "held-out file or hub name, in the layout of the training data")
    validation_split: str = key("validation", "split of data.validation_path on the hub")
    validation_examples: int = key(
        0, "hold out this many examples of the training data, drawn by seed (0: none)"
    )
    template: str = key(
        "auto",
        "chat: the tokenizer's chat template. plain: data.prompt_template. auto: chat if the "
        "tokenizer has one",
        ("auto", "chat", "plain"),
    )
    prompt_template: str = key(
        "{prompt}\n",
        "plain template of the prompt; the completion and the end-of-text token follow it",
    )
    loss_on: str = key(
        "assistant",
        "which tokens are targets: those of every assistant turn, of the last turn, or all; "
        "each_turn makes an example of every assistant turn, as generation will see it",
        LOSS_ON,
    )
    template_kwargs: dict[str, Any] = key(
        {}, "variables of the chat template, for example {enable_thinking: false}"
    )
    date: str = key(
        "2024-07-26",
        "YYYY-MM-DD: what chat templates that print the day are told, so that tokens do not change "
        "overnight",
    )
    lost_text: str = key(
        "error",
        "a text of a record that the chat template does not show (a tool call, thoughts, tools, a "
        "system message), or text that it adds to what is learned",
        ("error", "allow"),
    )
    split_special_tokens: bool = key(
        False,
        "what spells a special token in a message (<|im_end|>) is tokenised as ordinary text, not "
        "as that token",
    )
    on_bad_record: str = key(
        "stop",
        "a record that cannot be read or learned: end with an error, or leave it out, count it and "
        "list it in run_dir/skipped_records.txt",
        ("stop", "skip"),
    )
    max_length: int = key(2048, "longest example, and length of a pack, in tokens")
    overlong: str = key(
        "drop",
        "what happens to examples longer than max_length; the count is printed",
        ("drop", "truncate", "error"),
    )
    packing: bool | str = key(
        "auto",
        "pack the examples of a step, by best-fit decreasing, to max_length; false: pad each. "
        "auto: pack, unless model.attention=eager, or docs/models.md shows that the model is "
        "trained exactly only without",
        ("auto", "true", "false"),
        changeable=True,
    )
    pad_multiple: int = key(
        8, "packs are padded to a multiple of this many tokens", changeable=True
    )
    cache_dir: str = key(
        "~/.cache/adaptsft",
        "tokenised data, found again by a fingerprint of data, tokenizer, template and settings",
        changeable=True,
    )


@dataclass
class ObjectiveConfig:
    name: str = key(
        "auto",
        "python -m adaptsft.objectives lists them; my_module:function or path/to/file.py:function: "
        "your own, see docs/objectives.md; auto: nll, or with a closed-loop controller the "
        "objective that it acts through",
    )
    base: str = key("nll", "objective that `threshold` masks; also my_module:function")
    alpha: float = key(0.0, "alpha of f_alpha(p) = (1 - p^alpha) / alpha; 0 is -log p, 1 is 1 - p")
    floor: float = key(
        0.0,
        "alpha, concentration: least weight of a token, floor + (1 - floor) p^alpha; 1 is -log p",
    )
    lower: float = key(0.0, "threshold: tokens with p below are masked")
    upper: float = key(1.0, "threshold: tokens with p above are masked")
    lower_quantile: float | None = key(
        None,
        "threshold: set lower to this quantile of the base model's p, measured per source before "
        "step 1",
    )
    upper_quantile: float | None = key(
        None,
        "threshold: set upper to this quantile of the base model's p, measured per source before "
        "step 1",
    )
    normalizer: str = key(
        "all",
        "divide the loss by all target tokens, or by those kept by the threshold",
        ("all", "kept"),
    )
    params: dict[str, float] = key(
        {}, "parameters of the objective by name, for example {gamma: 2}; see docs/objectives.md"
    )
    reference: str = key(
        "current",
        "whose p, entropy and so on the token weights read: the model's in training, or the base "
        "model's, which then does not move",
        ("current", "base"),
    )
    base_tokens: str = key(
        "",
        "reference=base, prift_prob, prift_mass, psft, iw_sft: base_tokens.safetensors of "
        "adaptsft.diagnose, the base model's statistics of every target token",
    )
    exempt: str = key(
        "none",
        "tokens that keep NLL whatever the objective: what ends a turn or a text, or all special "
        "tokens",
        ("none", "eos", "special"),
    )
    unit_mass: bool = key(
        False,
        "divide the gradient by the running mean of the token weights, clamped to [1/4, 4]: "
        "learning rate and clipping keep their meaning across objectives",
    )


@dataclass
class ControllerConfig:
    name: str = key(
        "fixed",
        "what moves the objective during training; python -m adaptsft.controllers lists them; "
        "my_module:Class or path/to/file.py:Class: your own, see docs/controllers.md",
    )
    parameter: str = key("alpha", "schedules: what they move", ("alpha", "lower", "upper", "floor"))
    start: float = key(0.0, "schedules: value at the start of the run")
    end: float = key(1.0, "schedules: value at the end of the run")
    begin: float = key(0.0, "linear, cosine: share of the run after which the move begins")
    finish: float = key(1.0, "linear, cosine: share of the run after which it has reached its end")
    points: list[list[float]] = key(
        [], "piecewise: [[share of the run, value], ...], joined by straight lines"
    )
    params: dict[str, float] = key(
        {}, "parameters of the controller by name; see docs/controllers.md"
    )
    shrinkage: float = key(
        2000.0,
        "closed loops: a source's own value counts N / (N + shrinkage), N its tokens so far; the "
        "rest is that of all sources",
    )
    base_stats: str = key(
        "",
        "closed loops, quantile thresholds: base_stats.json of adaptsft.diagnose, the base "
        "model's statistics of the training data",
    )


@dataclass
class TrainConfig:
    epochs: float = key(
        1.0, "passes over the training data, rounded up to whole steps; ignored with max_steps"
    )
    max_steps: int = key(0, "optimizer steps (0: from epochs)")
    global_batch_size: int = key(
        32, "examples per optimizer step, over all ranks and micro-batches"
    )
    micro_batch_size: int | str = key(
        "auto",
        "packs (or padded examples) per rank in one forward; changes memory and speed, not what "
        "is learned. auto: as many as the estimate of adaptsft.plan fits the GPU, a power of two, "
        "of 32,768 tokens at most; on CPU 1",
        changeable=True,
    )
    loss_reduction: str = key(
        "step",
        "what the summed loss of a micro-batch is divided by. step: the target tokens of the "
        "whole step, so that no split changes it. micro_batch: its own tokens (kept ones with "
        "objective.normalizer=kept), and gradients are summed, as in the paper's code; needs "
        "data.packing=false; see docs/strict_reproduction.md",
        ("step", "micro_batch"),
    )
    router_aux_loss: float | None = key(
        None,
        "mixture of experts: weight of the routers' load-balancing loss, as transformers defines "
        "it, over the tokens of the whole step (0: none). Default: that of the model's "
        "config.json, which transformers' own models leave out unless output_router_logits is set; "
        "see docs/guide.md",
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
        "stop after this many skipped steps in a row (counted every log.every steps); any loss "
        "or gradient not finite skips a step",
    )
    activation_checkpointing: str = key(
        "none",
        "recompute activations in backward: nothing, whole blocks, or all but the matrix products",
        ("none", "full", "per_op"),
        changeable=True,
    )
    compile: bool | str = key(
        "auto",
        "torch.compile every decoder layer; auto: on CUDA with data.packing, where packs are then "
        "padded to data.max_length, unless attention runs by sdpa or a layer cannot be traced",
        ("auto", "true", "false"),
        changeable=True,
    )
    reshard: str = key(
        "auto",
        "FSDP2: a block's gathered weights (compute dtype) are freed after each forward and "
        "backward, or kept from the first forward of a step to its last backward, which saves "
        "gathering or casting them again. auto: never where the estimate of adaptsft.plan fits the "
        "GPU, else always; on CPU always",
        ("auto", "always", "never"),
        changeable=True,
    )
    reduce_every_micro_batch: bool = key(
        False,
        "reduce gradients after every micro-batch: more communication, but no unsharded "
        "gradients (4 bytes per parameter) are held",
        changeable=True,
    )
    loss_chunk: int = key(
        0,
        "tokens whose logits are held at a time (0: by size, 48 MiB of them on CPU, 1.25 GiB on "
        "GPU)",
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
    context_parallel: int = key(
        1,
        "ranks that share each pack, for contexts too long for one: each has its part of the "
        "tokens, and in attention all tokens of its part of the heads, which it must divide",
        changeable=True,
    )
    hang_timeout: int = key(
        1800,
        "seconds without progress after which every rank prints where it stands and the run ends",
        changeable=True,
    )
    gc_every: int = key(
        50,
        "steps between Python's garbage collections, in the same step on every rank (0: whenever "
        "Python likes, on each rank at another time)",
        changeable=True,
    )
    deterministic: bool = key(
        False, "deterministic CUDA kernels: bitwise repeatable, slower", changeable=True
    )


@dataclass
class CheckpointConfig:
    every: int = key(0, "steps between checkpoints (0: only at the end)", changeable=True)
    keep_last: int = key(2, "checkpoints kept, the newest ones", changeable=True)
    async_save: bool = key(
        False, "write in the background while training continues", changeable=True
    )
    on_error: str = key(
        "stop",
        "a checkpoint that cannot be saved (full disk): end the run, or print it and train on; "
        "earlier ones stay",
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
        "tasks of adaptsft.evals to answer at each evaluation, such as [gsm8k]; see "
        "docs/evaluation.md",
        changeable=True,
    )
    data_dir: str | None = key(
        None, "folder of the tasks' data files (default: from the hub)", changeable=True
    )
    limit: int = key(32, "items of each task", changeable=True)
    samples: int = key(
        1,
        "answers to each item. 1: greedy. More are drawn at temperature 1, and give pass@k and the "
        "entropy of the answers too",
        changeable=True,
    )
    max_tokens: int = key(256, "longest answer to an item, in tokens", changeable=True)


@dataclass
class LogConfig:
    every: int = key(
        10,
        "steps between progress lines; also how often the metrics of all steps are read from the "
        "device",
        changeable=True,
    )
    trackers: list[str] = key(
        ["tensorboard"],
        "where the curves go beside run_dir/metrics.jsonl; all but tensorboard need an extra, as "
        "in pip install 'adaptsft[wandb]'; see docs/guide.md",
        TRACKERS,
        changeable=True,
    )
    project: str | None = key(
        None,
        "project of wandb and trackio, experiment of mlflow; default: WANDB_PROJECT, "
        "TRACKIO_PROJECT or MLFLOW_EXPERIMENT_NAME, else adaptsft",
        changeable=True,
    )
    profile: list[int] = key(
        [],
        "[start, stop]: after step `start`, until step `stop`, torch.profiler records every rank; "
        "Chrome traces in run_dir/profile",
        changeable=True,
    )


@dataclass
class HubConfig:
    push: str | None = key(
        None,
        "USER/NAME: upload final/ to this model repository of the hub when the run is done; the "
        "account is that of `hf auth login` or HF_TOKEN",
        changeable=True,
    )
    private: bool = key(
        True,
        "a repository that the run creates is private; one that exists stays as it is",
        changeable=True,
    )
    revision: str | None = key(
        None, "branch of the repository, made where there is none (default: main)", changeable=True
    )


@dataclass
class Config:
    run_dir: str = key(
        "", "folder of this run: config, metrics, checkpoints and the final model", changeable=True
    )
    resume: str = key(
        "auto",
        "auto: from the newest checkpoint in run_dir, if any. never: refuse a folder that holds "
        "a run. Or the path of a checkpoint",
        changeable=True,
    )
    seed: int = key(0, "seed of data order, held-out split, adapters and dropout")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    hub: HubConfig = field(default_factory=HubConfig)


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


def is_packed(data: DataConfig) -> bool:
    """data.packing, once auto has become one or the other."""
    return bool(data.packing)


def packs_at_once(train: TrainConfig) -> int:
    """train.micro_batch_size, where auto is resolved (adaptsft.analysis.fit)."""
    assert isinstance(train.micro_batch_size, int), "auto is to be resolved before"
    return train.micro_batch_size


def type_name(declared: dataclasses.Field) -> str:
    plain = isinstance(declared.type, type) and not typing.get_args(declared.type)
    name = typing.cast(type, declared.type).__name__ if plain else str(declared.type)
    return name.replace("__main__.", "").replace("adaptsft.config.schema.", "")
