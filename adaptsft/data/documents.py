"""Where the documents of a batch begin and end, in the forms that attention back ends read."""

from typing import NamedTuple

import torch
from torch import Tensor

from adaptsft.distributed.ranks import ContextGroup


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy to a GPU goes through pinned memory: from pageable memory
    the host may wait until the GPU has come to the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Documents(NamedTuple):
    """flash and varlen read `cu_seqlens` and `longest`; sdpa and mixers read `buckets` and
    `inverse`."""

    cu_seqlens: Tensor  # int32 [documents + 1], offsets into the B * L tokens concatenated
    # int32 [max_length, 0]: no elements, but its shape holds the `max_length` that flash and varlen
    # are given. A compiled layer takes a size as an input; an int would be a constant of its code
    longest: Tensor
    # int64 [documents, length] each: token indices of documents of similar length, padded at the
    # end
    buckets: tuple[Tensor, ...]
    inverse: Tensor  # int64 [B * L]: where each token lies in the concatenated buckets
    # the ranks among which the B * L tokens are divided, in equal parts; None: this one has all
    context: ContextGroup | None = None

    @classmethod
    def build(cls, cu_seqlens: Tensor, with_buckets: bool) -> "Documents":
        """From int32 offsets [documents + 1] on the host. For buckets, documents are grouped by
        length, rounded up to a power of two: few calls, little padding."""
        empty = torch.empty(0, dtype=torch.int64)
        buckets, inverse = _buckets(cu_seqlens) if with_buckets else ((), empty)
        longest = cu_seqlens.new_empty(padded_length(int(cu_seqlens.diff().max())), 0)
        return cls(cu_seqlens, longest, buckets, inverse)

    def to(self, device: torch.device) -> "Documents":
        buckets = tuple(to_device(bucket, device) for bucket in self.buckets)
        cu_seqlens, inverse = (to_device(t, device) for t in (self.cu_seqlens, self.inverse))
        longest = torch.empty_like(self.longest, device=device)
        return Documents(cu_seqlens, longest, buckets, inverse, self.context)


def padded_length(longest: int) -> int:
    """The `max_length` that flash and varlen are given for a longest document of `longest` tokens:
    the next power of two, at least 128, the rows of their smallest tile.

    Their grid has a block for every tile that a document of `max_length` would have, so that the
    length of a whole pack starts many blocks that find nothing to do.
    """
    return max(128, 1 << (longest - 1).bit_length())


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
        # padding repeats the document's last token: it comes last, so no real token sees it, and
        # it is never read back
        index = starts[chosen, None] + torch.minimum(column, lengths[chosen, None] - 1)
        real = column < lengths[chosen, None]
        inverse[index[real]] = offset + torch.arange(index.numel()).view_as(index)[real]
        buckets.append(index)
        offset += index.numel()
    return tuple(buckets), inverse
