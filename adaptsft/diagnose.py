"""Where a base model stands on its training data, before any training: p of the target tokens, per source, and what follows from it.

    python -m adaptsft.diagnose CONFIG.yaml key=value … [sample=2000] [out=FOLDER] [per_token=true]

The arguments are those of adaptsft.train, and three more (`HELP`). The model is built, sharded and checked by the code that trains it.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from adaptsft.analysis.continuum import place_of
from adaptsft.analysis.diagnosis import markdown, plot
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.data.collator import Batch
from adaptsft.data.loader import BatchLoader
from adaptsft.data.tokenized import TokenizedData
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import (
    check_same_config,
    device_mesh,
    print0,
    process_group,
    raise_on_all_ranks,
    rank,
    rank0_first,
)
from adaptsft.distributed.signals import Watchdog
from adaptsft.errors import CheckpointError, ConfigError, UserError
from adaptsft.model.build import build_model, compute_dtype
from adaptsft.model.fsdp import ShardedModel
from adaptsft.model.loss import check_fused_loss_matches_model
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.statistics.base_model import SCHEMA, FineHistogram, encode, identity
from adaptsft.statistics.step import StepStatistics
from adaptsft.training.environment import environment
from adaptsft.training.quantiles import base_pass

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
BUCKETS = 15  # of the reliability diagram and ECE, equal steps of the likeliest token's probability (Guo et al., arXiv:1706.04599)
Z = 1.96  # standard errors on either side of a 95 % interval
PRECISION = 0.01  # half-width of mean p's interval that the report asks for
# what is summed per example; conflict: another token than the target has p > .5
FIGURES = ("mean_p", "nll", "entropy", "below_0.2", "above_0.5", "above_0.55", "top1", "conflict")

HELP = """usage: python -m adaptsft.diagnose [CONFIG.yaml] [key=value …]
   or: torchrun --standalone --nproc-per-node GPUS -m adaptsft.diagnose [CONFIG.yaml] [key=value …]

Runs the base model over (a sample of) the training data and tells, per source, how likely it finds the target tokens, whether its
probabilities can be trusted, where it stands between model-weak and model-strong, and which objective that speaks for.

Give it the arguments of your training run. Example:
  python -m adaptsft.diagnose configs/sft.yaml model.path=Qwen/Qwen2.5-1.5B data.path=train.jsonl run_dir=runs/first

Three keys of its own:
  sample     examples of each source, drawn by `seed`, or all                                              (2000)
  out        folder that receives diagnosis.md, diagnosis.png and base_stats.json                          (run_dir/diagnosis)
  per_token  true: also write base_logp.safetensors, log p of every target token; needs sample=all     (false)

base_stats.json is for training: controller.base_stats=FILE starts a controller from it, and quantile thresholds are read from it.
base_logp.safetensors is for controller.base_logp. `python -m adaptsft.train --help` lists all other keys."""


@dataclass(frozen=True)
class Options:
    sample: int | None = 2000  # examples of each source; None: all
    out: str = ""
    per_token: bool = False

    @classmethod
    def parse(cls, arguments: list[str]) -> tuple["Options", list[str]]:
        """(the options among the arguments, the other arguments). Raises ConfigError."""
        own = {field.name: "" for field in dataclasses.fields(cls)}
        others = [
            argument
            for argument in arguments
            if argument.split("=", 1)[0] not in own or "=" not in argument
        ]
        own |= dict(argument.split("=", 1) for argument in arguments if argument not in others)
        sample, per_token = own["sample"] or "2000", own["per_token"] or "false"
        if sample != "all" and not (sample.isdecimal() and int(sample) > 0):
            raise ConfigError(
                f"sample={sample}: must be a number of examples of each source, above 0, or all"
            )
        if per_token not in ("true", "false"):
            raise ConfigError(f"per_token={per_token}: must be true or false")
        if per_token == "true" and sample != "all":
            raise ConfigError(
                f"per_token=true needs every example, but sample={sample}: add sample=all"
            )
        return cls(
            None if sample == "all" else int(sample), own["out"], per_token == "true"
        ), others


class Measured(NamedTuple):
    """Sums over all ranks."""

    statistics: StepStatistics
    fine: FineHistogram
    reliability: Tensor  # fp64 [sources, BUCKETS, 3]: tokens, sum of the likeliest token's probability, tokens whose target it is
    examples: Tensor  # fp64 [examples, 1 + FIGURES]: tokens, and the sum of each figure over them
    logp: Tensor | None  # fp32 [tokens] on CPU, example after example


def diagnose(options: Options, config: Config) -> str:
    """Measure, and write the results to the folder; returns the report. All ranks call it together."""
    if config.data.stream:
        raise ConfigError(
            f"data.stream={config.data.stream}: only a whole set can be diagnosed; set data.stream=0 and name fewer files"
        )
    out = Path(options.out or Path(config.run_dir) / "diagnosis")
    # one forward of each example repays neither
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, compile=False, activation_checkpointing="none"),
    )
    masters = config.model.param_dtype == "bf16"
    with process_group(config.train.device) as device, ExitStack() as stack:
        torch.use_deterministic_algorithms(config.train.deterministic)
        check_same_config((options, config))
        raise_on_all_ranks(lambda: _make_folder(out))
        mesh = device_mesh(device, config.train.replicas)
        pretrained = rank0_first(lambda: load_pretrained(config.model))
        opened = stack.enter_context(TrainingData(config, pretrained.tokenizer, None))
        data = opened.train
        model = build_model(config.model, config.train, pretrained, mesh, device)
        with_buckets = model.attention_backend == "sdpa"
        loader = stack.enter_context(
            BatchLoader(opened, config, pretrained.pad_id, with_buckets, device)
        )
        check_fused_loss_matches_model(model, loader.first())

        sample = data.take(drawn(data, options.sample, config.seed))
        watchdog = stack.enter_context(Watchdog(config.train.hang_timeout))
        measured = measure(
            model,
            loader.in_order(sample),
            sample,
            options.per_token,
            device,
            watchdog,
        )
        model_identity, data_identity = identity(config.model.path, pretrained.folder, data)
        dtype = str(compute_dtype(config.model, device)).removeprefix("torch.")
        content = {
            "schema": SCHEMA,
            "model": model_identity | {"compute_dtype": dtype, "bf16_masters": masters},
            "data": data_identity,
            "sample": options.sample or "all",
            "seed": config.seed,
            "sources": {
                name: describe(measured, data, sample, number)
                for number, name in enumerate(data.names)
            },
            "environment": environment(),
        }
        report = markdown(content, out)
        raise_on_all_ranks(
            lambda: _save(out, content, report, measured.logp) if rank() == 0 else None
        )
        return report


def drawn(data: TokenizedData, count: int | None, seed: int) -> np.ndarray:
    """int64, ascending: `count` examples of each source (all where it has fewer, or where count is None), by seed and source."""
    if count is None:
        return np.arange(len(data))
    parts = []
    for number in range(len(data.names)):
        members = np.flatnonzero(data.source == number)
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, number)))
        parts.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(parts))


@torch.no_grad()
def measure(
    model: ShardedModel,
    batches: Iterable[Batch],
    sample: TokenizedData,
    per_token: bool,
    device: torch.device,
    watchdog: Watchdog,
) -> Measured:
    """Run this rank's `batches` of the sample through the model, and sum over ranks."""
    tokens = int(sample.target_tokens.sum())
    print0(f"measuring {tokens:,} tokens of {len(sample):,} examples under the base model")
    sources = len(sample.names)
    statistics, fine = StepStatistics(sources, device), FineHistogram(sources, device)
    reliability = torch.zeros(sources * BUCKETS, 3, dtype=torch.float64, device=device)
    examples = torch.zeros(len(sample), 1 + len(FIGURES), dtype=torch.float64, device=device)
    logp = torch.zeros(tokens if per_token else 0)
    begins = torch.from_numpy(sample.target_tokens.cumsum(dtype=np.int64) - sample.target_tokens)
    for number, batch in enumerate(
        base_pass(model, batches, tokens, "measuring p under the base model")
    ):
        watchdog.beat(number + 1)
        _, rows, kept = model.token_loss(batch, NLL, None, 1.0)
        if not len(batch.targets):
            continue
        statistics.add(rows, kept, batch)
        fine.add(rows, batch.source)
        p, confidence, ones = (
            rows.logp.exp(),
            rows.top_logp.exp().clamp(max=1.0),
            torch.ones_like(rows.logp),
        )
        conflict = ~rows.top1 & (confidence > 0.5)
        figures = (
            ones,
            p,
            -rows.logp,
            rows.entropy,
            p < 0.2,
            p > 0.5,
            p > 0.55,
            rows.top1,
            conflict,
        )
        table = torch.stack([figure.double() for figure in figures], dim=1)
        assert batch.examples is not None, "set by collate"
        numbers = torch.from_numpy(batch.examples)
        examples[numbers.to(device)] = torch.segment_reduce(
            table, "sum", lengths=batch.sequence_lengths, unsafe=True
        )
        bucket = batch.source * BUCKETS + (confidence * BUCKETS).long().clamp(max=BUCKETS - 1)
        reliability.index_add_(
            0, bucket, torch.stack([ones, confidence, rows.top1.float()], dim=1).double()
        )
        if per_token:
            lengths = batch.sequence_lengths.cpu()
            shift = begins[numbers] - (
                lengths.cumsum(0) - lengths
            )  # from place in the batch to place in the data
            logp[torch.arange(len(rows.logp)) + shift.repeat_interleave(lengths)] = (
                rows.logp.float().cpu()
            )
    statistics.all_reduce()
    for tensor in (fine.counts, reliability, examples, logp):
        dist.all_reduce(tensor)
    return Measured(
        statistics,
        fine,
        reliability.view(sources, BUCKETS, 3).cpu(),
        examples.cpu(),
        logp if per_token else None,
    )


def describe(
    measured: Measured, data: TokenizedData, sample: TokenizedData, number: int
) -> dict[str, Any]:
    """The figures of a source, as in base_stats.json; NAME_interval is the 95 % interval of a mean, or None where it cannot be told."""
    of = torch.from_numpy(sample.source == number)
    population = int((data.source == number).sum())
    tokens, *sums = measured.examples[of].numpy().T
    source: dict[str, Any] = {
        "examples": population,
        "measured": len(tokens),
        "tokens": int(tokens.sum()),
    }
    for name, figure in zip(FIGURES, sums, strict=True):
        source[name] = float(figure.sum() / tokens.sum())
        source[f"{name}_interval"] = interval(figure, tokens, population)
    source["sequence_nll"] = float(np.median(sums[FIGURES.index("nll")] / tokens))
    source["quantiles"] = {str(q): float(measured.fine.quantile(q)[number]) for q in QUANTILES}
    source["place"] = place_of(source["mean_p"])
    source["examples_for_precision"] = needed(sums[0], tokens, population)
    count, confidence, right = measured.reliability[number].numpy().T
    source["ece"] = float(np.abs(confidence - right).sum() / count.sum())
    source["overconfidence"] = float((confidence - right).sum() / count.sum())
    source["reliability"] = {
        "tokens": count.tolist(),
        "confidence": confidence.tolist(),
        "right": right.tolist(),
    }
    return source | encode(measured.statistics, measured.fine, number)


def interval(sums: np.ndarray, tokens: np.ndarray, population: int) -> list[float] | None:
    """95 % interval of the mean over the tokens of all `population` examples, from the sums over m of them, drawn at random.

    Tokens of an example are not independent: the example is what was drawn, and the mean is a ratio of two sums over examples
    (delta method, with the correction for a finite population: Cochran, Sampling Techniques, 1977, chapter 6). None where it cannot be
    told: from one example, or where all that were drawn are alike (none has a token of the kind, say).
    """
    error = _error(sums, tokens, population)
    mean = sums.sum() / tokens.sum()
    return None if error is None else [max(0.0, float(mean - Z * error)), float(mean + Z * error)]


def needed(sums: np.ndarray, tokens: np.ndarray, population: int) -> int | None:
    """How many examples would bring the interval to ± PRECISION; None where it is that narrow already, or cannot be told."""
    error = _error(sums, tokens, population)
    if error is None or Z * error <= PRECISION:
        return None
    variance = error**2 / (1 / len(tokens) - 1 / population)  # of a single example's contribution
    return int(np.ceil(1 / ((PRECISION / Z) ** 2 / variance + 1 / population)))


def _error(sums: np.ndarray, tokens: np.ndarray, population: int) -> float | None:
    m = len(tokens)
    if m == population:
        return 0.0
    if m == 1:
        return None
    residuals = sums - sums.sum() / tokens.sum() * tokens
    error = float(
        np.sqrt((1 - m / population) / m * (residuals**2).sum() / (m - 1)) / tokens.mean()
    )
    return error if error > 1e-12 else None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={out}: this folder cannot be made: {error}") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"out={out}: this folder cannot be written to")


def _save(out: Path, content: dict[str, Any], report: str, logp: Tensor | None) -> None:
    """Every file is written beside its place and then renamed: it is whole, or as it was. base_stats.json is the last."""
    metadata = {
        "schema": str(SCHEMA),
        "model": json.dumps(content["model"]),
        "data": json.dumps(content["data"]),
    }
    try:
        if logp is not None:
            _put(
                out / "base_logp.safetensors",
                lambda path: save_file({"logp": logp}, path, metadata),
            )
        _put(out / "diagnosis.png", lambda path: plot(path, content["sources"]))
        _put(out / "diagnosis.md", lambda path: path.write_text(report))
        _put(out / "base_stats.json", lambda path: path.write_text(json.dumps(content)))
    except OSError as error:
        raise CheckpointError(f"out={out}: could not be written: {error}") from None


def _put(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(path.name + ".tmp")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    if not arguments or "--help" in arguments or "-h" in arguments:
        if rank() == 0:
            print(HELP)
        return 0 if arguments else 2
    try:
        options, others = Options.parse(arguments)
        report = diagnose(options, load_config(others))
    except UserError as error:
        print0(f"adaptsft.diagnose: {type(error).__name__}: {error}")
        return error.exit_code
    if rank() == 0:
        print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
