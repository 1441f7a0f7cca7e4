"""Where the documents of a pack begin and end, in the forms that attention back ends read."""

from typing import NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """Where the documents of a [B, L] batch lie. flash and varlen read `cu_seqlens`; sdpa reads `buckets` and `inverse`."""

    cu_seqlens: Tensor  # int32 [documents + 1], offsets into the B*L tokens
    max_length: int
    buckets: tuple[
        Tensor, ...
    ]  # int64 [documents, length] each: token indices of documents of similar length, padded at the end
    inverse: Tensor  # int64 [B*L]: where each token lies in the concatenated buckets

    @classmethod
    def build(
        cls, cu_seqlens: Tensor, max_length: int, device: torch.device, with_buckets: bool
    ) -> "Documents":
        """From offsets on the host. Documents are grouped by length, rounded up to a power of two: few calls, little padding."""
        empty = torch.empty(0, dtype=torch.int64)
        buckets, inverse = (_buckets(cu_seqlens)) if with_buckets else ((), empty)

        def move(tensor: Tensor) -> Tensor:
            # from memory that is not pinned, the host may wait until the GPU has come to the copy
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(
                device, non_blocking=True
            )

        return cls(
            move(cu_seqlens), max_length, tuple(move(bucket) for bucket in buckets), move(inverse)
        )


def _buckets(cu_seqlens: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens.diff().long()
    inverse = torch.empty(int(cu_seqlens[-1]), dtype=torch.int64)
    powers = torch.ceil(torch.log2(lengths.double())).long()
    buckets, offset = [], 0
    for power in powers.unique():
        chosen = powers == power
        width = int(lengths[chosen].max())
        column = torch.arange(width)
        # padding repeats the document's last token: it comes last, so no real token sees it, and it is never read back
        index = starts[chosen, None] + torch.minimum(column, lengths[chosen, None] - 1)
        real = column < lengths[chosen, None]
        inverse[index[real]] = offset + torch.arange(index.numel()).view_as(index)[real]
        buckets.append(index)
        offset += index.numel()
    return tuple(buckets), inverse
