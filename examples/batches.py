"""Questions and answers as batches of token ids, for the loops beside this file."""

from collections.abc import Iterator

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adaptsft import next_tokens


def batches(
    path: str, tokenizer: PreTrainedTokenizerBase, size: int, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids, attention mask, targets), int64 [size / ranks, L] each, of a file of lines {"question":
    …, "answer": …} such as GSM8K's. Answers are learned."""
    rows = load_dataset("json", data_files=path, split="train").shuffle(seed=0)
    for first in range(0, len(rows) - size + 1, size):
        pairs = []
        for row in (rows[i] for i in range(first + rank, first + size, ranks)):
            prompt = tokenizer(row["question"] + "\n").input_ids
            answer = tokenizer(row["answer"] + tokenizer.eos_token).input_ids
            pairs.append((prompt + answer, [-100] * len(prompt) + answer))
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(one) for one in column], batch_first=True, padding_value=padding
            )
            for column, padding in zip(zip(*pairs, strict=True), (0, -100), strict=True)
        )
        lengths = torch.tensor([len(one) for one, _ in pairs])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        yield ids, mask, next_tokens(labels)
