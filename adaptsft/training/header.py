"""What a run prints before its first step."""

from adaptsft.config.schema import Config, packs_at_once
from adaptsft.data.loader import BatchLoader
from adaptsft.data.stop import TurnEnd
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import data_ranks, print0, world_size
from adaptsft.model.build import compute_dtype
from adaptsft.model.experts import describe_experts
from adaptsft.model.fsdp import ShardedModel
from adaptsft.model.lora import adapted_layers
from adaptsft.training.flops import active_parameters, describe
from adaptsft.training.setup import Run
from adaptsft_kernels import describe_implementation

WASTEFUL = 0.25  # share of padding that compiled layers hardly make up for


def log_run_header(
    run: Run, model: ShardedModel, data: TrainingData, loader: BatchLoader, end: TurnEnd
) -> None:
    """Print on rank 0 what is about to run."""
    config, dtype = run.config, compute_dtype(run.config.model, run.device)
    if run.checkpoint is not None:
        print0(f"resuming from {run.checkpoint}")
    for line in _paper_settings(config):
        print0(line)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = "" if trained == parameters else f" ({trained / 1e6:,.2f} M trained)"
    experts = describe_experts(model, run.device, dtype)
    shared = "" if model.context is None else f", {model.context.size} to a pack"
    print0(
        f"model: {type(model).__name__.removeprefix('FSDP')}, "
        f"{describe(parameters, active_parameters(model))}{frozen}, "
        f"{str(dtype).removeprefix('torch.')} on {world_size()} x {run.device.type}{shared}, "
        f"attention by {model.attention_backend}{f', experts by {experts}' if experts else ''}"
    )
    print0(f"train.compile: {model.compilation}{_padding(loader)}")
    if model.routers.counted or experts:
        print0(f"routers: {model.routers}")
    if model.fp8:
        slow = "" if model.compilation.on else "; without train.compile slower than bf16"
        print0(f"model.fp8: {model.fp8}{slow}")
    if (lora := config.model.lora).rank:
        kind = "DoRA" if lora.use_dora else "LoRA"
        names = [name for name, _ in adapted_layers(model)]
        apart = ", none of them experts" if experts and "expert" not in "".join(names) else ""
        print0(
            f"adapters: {kind}, rank {lora.rank}, on {len(names)} layers{apart}; the rest is "
            f"frozen in {str(dtype).removeprefix('torch.')}"
        )
    objective = config.objective.name
    if config.objective.reference == "base":
        objective += ", token weights of the base model"
    if config.controller.name != "fixed":
        objective += f", {config.controller.name} controller"
    settings = {name: model.loss_settings[name] for name in ("implementation", "logits_dtype")}
    loss = describe_implementation(run.device, dtype, **settings)
    print0(f"objective: {objective}; loss by adaptsft_kernels in {loss}")
    print0(
        f"plan: {data.steps:,} steps of {config.train.global_batch_size:,} examples = "
        f"{data.sampler.extent(data.steps)}"
    )
    if config.train.global_batch_size > data.sampler.epoch_size:
        print0(
            f"warning: train.global_batch_size={config.train.global_batch_size} is more than the "
            f"{data.sampler.epoch_size:,} examples of an epoch, so that every step has some of "
            "them several times: lower it"
        )
    if end.warning:
        print0(f"warning: {end.warning}")


def _padding(loader: BatchLoader) -> str:
    """What a constant shape of the packs costs: the end of a line, or nothing."""
    if loader.shape is None:
        return ""
    share = loader.padding()
    text = f"; packs of {loader.shape.tokens:,} tokens, {share:.0%} padding in the first step"
    return text + ("; lower data.max_length, or train.compile=false" if share > WASTEFUL else "")


def _paper_settings(config: Config) -> list[str]:
    """Lines for the settings that only reproduce the paper's code; none by default."""
    train, lines = config.train, []
    if train.loss_reduction == "micro_batch":
        tokens = "kept tokens" if config.objective.normalizer == "kept" else "target tokens"
        _, ranks = data_ranks(train.context_parallel)
        count = train.global_batch_size // (ranks * packs_at_once(train))
        lines.append(
            "train.loss_reduction=micro_batch: each micro-batch is averaged over its own "
            f"{tokens}, and the gradients of {count} per rank are summed"
        )
    if config.model.param_dtype == "bf16":
        lines.append(
            "model.param_dtype=bf16: weights, gradients and AdamW's moments are bf16; updates "
            "below half an ulp are lost"
        )
    return lines
