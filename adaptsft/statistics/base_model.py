"""What the base model makes of the training data, as `python -m adaptsft.diagnose` writes it to
files and training reads it.

base_stats.json holds sums and histograms per source; base_tokens.safetensors log p, entropy and
more of every target token. Both name the model and the data they were measured on, and are refused
for others.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaptsft.config.schema import ControllerConfig
from adaptsft.data.tokenized import TokenizedData
from adaptsft.errors import ConfigError
from adaptsft.objectives.reference import Reference
from adaptsft.statistics.step import (
    BINS,
    COLUMNS,
    LOGIT_RANGE,
    SourceStatistics,
    StepStatistics,
    bin_index,
    histogram_quantile,
    log_odds,
)
from adaptsft_kernels import TokenOutputs

# of base_stats.json and base_tokens.safetensors; raise it when the meaning of the file changes
SCHEMA, TOKENS_SCHEMA = 1, 2
# of the histogram for quantiles: steps of 0.003 in log-odds, so p is resolved to 0.3 % of p (1 - p)
FINE_BINS = 1 << 14
DIAGNOSE = "run `python -m adaptsft.diagnose` with the arguments of this run"
FIX = f"{DIAGNOSE}, and give the file that it writes"
TOKENS_FIX = f"{DIAGNOSE} and sample=all per_token=true, and give the file that it writes"


class FineHistogram:
    """Counts of p in FINE_BINS equal steps of log-odds: `counts` fp64 [sources, FINE_BINS]."""

    def __init__(self, sources: int, device: torch.device):
        self.counts = torch.zeros(sources, FINE_BINS, dtype=torch.float64, device=device)

    def add(self, tokens: TokenOutputs, source: Tensor) -> None:
        """Count these tokens; source int64 [n]."""
        odds = log_odds(tokens.logp, tokens.one_minus_p)
        cell = source * FINE_BINS + bin_index(odds, LOGIT_RANGE, FINE_BINS)
        self.counts.view(-1).index_add_(0, cell, torch.ones_like(cell, dtype=torch.float64))

    def quantile(self, q: float) -> Tensor:
        """Quantile of p of every source, fp32 [sources]."""
        return histogram_quantile(self.counts, q, LOGIT_RANGE).sigmoid().float()


@dataclass(frozen=True)
class BaseStatistics:
    """Statistics of the base model on the training data; sources in the order of the data's."""

    statistics: StepStatistics  # sums over one epoch, estimated where the file is of a sample
    fine: FineHistogram
    sampled: str  # "all", or the number of examples per source

    @classmethod
    def configured(
        cls, config: ControllerConfig, *, model: Path, data: TokenizedData, device: torch.device
    ) -> "BaseStatistics | None":
        """What controller.base_stats names, if it is set. Raises ConfigError."""
        if not config.base_stats:
            return None
        return cls.load(Path(config.base_stats), model=model, data=data, device=device)

    @classmethod
    def load(
        cls, path: Path, *, model: Path, data: TokenizedData, device: torch.device
    ) -> "BaseStatistics":
        """Read base_stats.json. `model` is the folder of the model's weights.

        Sums are scaled from the tokens that were measured to those of an epoch, copies by weight
        included, so that the sums over sources are those of the training mixture. Raises
        ConfigError where the file is not one, or of another model or other data.
        """
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"controller.base_stats={path}: cannot be read ({error}); {FIX}"
            ) from None
        _expect(path, content, "schema", SCHEMA)
        absent = [name for name in data.names if name not in content["sources"]]
        if absent:
            there = ", ".join(content["sources"])
            raise ConfigError(
                f"{path}: the source {absent[0]} of the training data is missing; there is "
                f"{there}; {FIX}"
            )
        _same(path, content["model"], content["data"], model, data)
        statistics = StepStatistics(len(data.names), device)
        fine = FineHistogram(len(data.names), device)
        for number, name in enumerate(data.names):
            source = content["sources"][name]
            if absent := [column for column in COLUMNS if column not in source["sums"]]:
                raise ConfigError(
                    f"{path}: written by another version of adaptsft, without {absent[0]}; {FIX}"
                )
            values = [source["sums"][column] for column in COLUMNS]
            values += source["histogram"] + source["sequence_histogram"]
            tokens = int(data.target_tokens[data.source == number].sum()) * data.weights[number]
            scale = tokens / source["sums"]["tokens"]
            statistics.table[number] = torch.tensor(values, dtype=torch.float64) * scale
            first = source["fine_histogram"]["first"]
            counts = torch.tensor(source["fine_histogram"]["counts"], dtype=torch.float64)
            fine.counts[number, first : first + len(counts)] = counts.to(device)
        return cls(statistics, fine, str(content["sample"]))

    def per_source(self) -> SourceStatistics:
        """What controllers see of a step, here of an epoch under the base model: fp64
        [sources + 1], the last entry for all sources."""
        return self.statistics.per_source()


def encode(statistics: StepStatistics, fine: FineHistogram, number: int) -> dict[str, Any]:
    """The part of a source in base_stats.json that `BaseStatistics.load` reads."""
    values, counts = statistics.table[number].tolist(), fine.counts[number]
    used = counts.nonzero().squeeze(1)
    first, last = int(used[0]), int(used[-1])
    return {
        "sums": dict(zip(COLUMNS, values, strict=False)),
        "histogram": _whole(values[len(COLUMNS) : len(COLUMNS) + BINS]),
        "sequence_histogram": _whole(values[len(COLUMNS) + BINS :]),
        "fine_histogram": {"first": first, "counts": _whole(counts[first : last + 1].tolist())},
    }


class BaseTokens:
    """What the base model makes of every target token of the training data, memory-mapped."""

    def __init__(self, columns: Sequence[Any], ends: np.ndarray):
        # slices of the file, of Reference: fp32 [tokens], example after example
        self.columns = columns
        self.ends = ends  # int64 [N]

    @classmethod
    def open(cls, path: Path, *, model: Path, data: TokenizedData) -> "BaseTokens":
        """Open what objective.base_tokens names; `model` is the folder of the model's weights.

        Raises ConfigError where the file is not one, or of another model or other data.
        """
        try:
            file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"objective.base_tokens={path}: cannot be read ({error}); {TOKENS_FIX}"
            ) from None
        metadata = file.metadata() or {}
        _expect(path, metadata, "schema", str(TOKENS_SCHEMA), TOKENS_FIX)
        origin = json.loads(metadata["model"]), json.loads(metadata["data"])
        _same(path, *origin, model, data, TOKENS_FIX)
        columns = [file.get_slice(name) for name in Reference._fields]
        return cls(columns, data.target_tokens.cumsum(dtype=np.int64))

    def of(self, example: int) -> np.ndarray:
        """fp32 [len(Reference._fields), target tokens of the example], in their order."""
        span = slice(int(self.ends[example - 1]) if example else 0, int(self.ends[example]))
        return np.stack([column[span] for column in self.columns])


def model_fingerprint(folder: Path) -> str:
    """sha256 over config.json and, of every safetensors file, its size, its first MiB (with names
    and shapes) and 64 pieces of 4 KiB spread over the rest: fast for weights of any size, and
    another after training, which moves nearly every weight."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            for piece in islice(range(1 << 20, size, max(1, (size - (1 << 20)) // 64)), 64):
                file.seek(piece)
                digest.update(file.read(1 << 12))
    return digest.hexdigest()


def identity(path: str, model: Path, data: TokenizedData) -> tuple[dict[str, str], dict[str, str]]:
    """(model, data) as both files name them; `path` is the user's name of the model."""
    return {"path": path, "fingerprint": model_fingerprint(model)}, {
        "fingerprint": data.fingerprint
    }


def _expect(path: Path, content: Any, key: str, value: Any, fix: str = FIX) -> None:
    found = content.get(key) if isinstance(content, dict) else None
    if found != value:
        raise ConfigError(
            f"{path}: its {key} is {found}, not {value}: not a file of adaptsft.diagnose, or of "
            f"another version; {fix}"
        )


def _same(
    path: Path,
    model: dict[str, str],
    data: dict[str, str],
    folder: Path,
    current: TokenizedData,
    fix: str = FIX,
) -> None:
    for what, saved, now in (
        (f"model ({model['path']})", model["fingerprint"], model_fingerprint(folder)),
        (
            "data (another source, tokenizer, template, data.max_length or held-out split)",
            data["fingerprint"],
            current.fingerprint,
        ),
    ):
        if saved != now:
            raise ConfigError(
                f"{path}: measured on another {what}: its fingerprint is {saved[:12]}, this run's "
                f"{now[:12]}; {fix}"
            )


def _whole(counts: list[float]) -> list[int]:
    return [round(count) for count in counts]
