"""The tokens of stacked runs: those of a run's data, and those of a step of all runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Examples:
    """Prompts with completions as token ids; and what a BatchSampler asks for."""

    names: list[str]  # of the sources
    weights: list[float]
    source: np.ndarray  # int64 [N]
    ids: Tensor  # int64 [N, L], 0 after the end
    prompts: Tensor  # int64 [N], tokens before the first target
    lengths: Tensor  # int64 [N]

    @classmethod
    def read(cls, sources: dict[str, Path], tokenizer: Any) -> "Examples":
        """From files of prompt/completion lines, as data.template=plain reads them."""
        prompts, rows, source = [], [], []
        for number, path in enumerate(sources.values()):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            asked = tokenizer([line["prompt"] for line in lines])["input_ids"]
            given = tokenizer([line["completion"] for line in lines])["input_ids"]
            prompts += [len(ids) for ids in asked]
            rows += [a + b + [tokenizer.eos_token_id] for a, b in zip(asked, given, strict=True)]
            source += [number] * len(lines)
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        weights = [1.0] * len(sources)
        return cls(list(sources), weights, np.array(source), ids, torch.tensor(prompts), lengths)


class Step:
    """The tokens of a step of R runs of G examples. n is the largest number of targets of a run;
    shorter ones are filled up with tokens that count nothing. It has what StepStatistics.add reads
    of a batch: source, sequence_source, sequence_lengths and token_weight.

    inputs      int64 [R, G, L - 1]
    index       int64 [R, n], the place of each target's hidden state among those of the run
    valid       bool [R, n]
    count       int64 [R], targets of each run
    own_source, all_targets   int64 [R, n]; sources are numbered over all runs
    """

    token_weight = None

    def __init__(self, runs: Sequence[Any], step: int):
        drawn = [(run, torch.from_numpy(run.sampler.examples(step))) for run in runs]
        length = max(run.examples.ids.shape[1] for run in runs)
        ids = torch.stack(
            [
                F.pad(run.examples.ids[of], (0, length - run.examples.ids.shape[1]))
                for run, of in drawn
            ]
        )
        prompts = torch.stack([run.examples.prompts[of] for run, of in drawn])
        lengths = torch.stack([run.examples.lengths[of] for run, of in drawn])
        source = torch.stack(
            [torch.from_numpy(run.examples.source)[of] + run.first for run, of in drawn]
        )
        place = torch.arange(length - 1)
        is_target = (place >= prompts[..., None] - 1) & (place < lengths[..., None] - 1)
        flat = is_target.flatten(1)
        self.inputs, self.count = ids[..., :-1], flat.sum(1)
        n = int(self.count.max())
        # the targets of each run first, in order
        self.index = flat.byte().argsort(dim=1, descending=True, stable=True)[:, :n]
        self.valid = torch.arange(n) < self.count[:, None]
        self.all_targets = ids[..., 1:].flatten(1).gather(1, self.index)
        sequence = self.index // (length - 1)
        self.own_source = source.gather(1, sequence)
        first = torch.arange(len(runs))[:, None] * source.shape[1]
        self.sequence = (sequence + first).flatten()
        self.source = self.own_source[self.valid]
        self.sequence_source = source.flatten()
        self.sequence_lengths = is_target.sum(-1).flatten()
