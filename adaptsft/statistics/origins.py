"""The source and the sequence of target tokens, where they are given per row or not at all."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class TokenOrigins(NamedTuple):
    """Of n target tokens in m sequences. What StepStatistics and objectives read of a Batch."""

    source: Tensor  # int64 [n]
    sequence: Tensor | None  # int64 [n], 0 … m - 1, ascending; None where nobody said
    sequence_lengths: Tensor  # int64 [m], target tokens of each
    sequence_source: Tensor  # int64 [m]
    token_weight: Tensor | None  # fp32 [n]
    reference: Any  # a NamedTuple of [n], or None


def origins_of(
    places: Tensor,
    chosen: Tensor,
    *,
    source: Tensor | None,
    sequence: Tensor | None,
    token_weight: Tensor | None,
    reference: Any,
) -> TokenOrigins:
    """The origins of the places [n] `chosen` of `places`, [...], flattened.

    source int64, of each place or of each row of places [B, L]; default: 0. sequence int64, of each
    place, ascending; by default each row of places [B, L] is one. token_weight and reference are of
    each place. Raises ValueError for a shape that fits neither.
    """

    def of_chosen(name: str, values: Tensor) -> Tensor:
        if places.ndim == 2 and values.shape == places.shape[:1]:
            values = values[:, None].expand(places.shape)
        if values.shape != places.shape:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}: one value for each target is needed, "
                f"{tuple(places.shape)}"
            )
        return values.flatten()[chosen]

    of = torch.zeros_like(chosen) if source is None else of_chosen("source", source)
    if token_weight is not None:
        token_weight = of_chosen("token_weight", token_weight)
    if reference is not None:
        fields = reference._asdict().items()
        reference = type(reference)(*(of_chosen(f"reference.{key}", x) for key, x in fields))
    if sequence is not None:
        inside = of_chosen("sequence", sequence)
        if places.ndim == 2 and sequence.shape == places.shape and len(inside):
            # ids may begin anew in each row
            inside = inside + chosen // places.shape[1] * (inside.max() - inside.min() + 1)
    elif places.ndim == 2:
        inside = chosen // places.shape[1]
    else:
        lengths = torch.full_like(chosen[:1], len(chosen))  # all of them one
        return TokenOrigins(of, None, lengths, of[:1], token_weight, reference)
    _, index, lengths = inside.unique_consecutive(return_inverse=True, return_counts=True)
    first = lengths.cumsum(0) - lengths
    return TokenOrigins(of, index, lengths, of[first], token_weight, reference)


def same_shape(places: Tensor, **given: Tensor | None) -> None:
    """Raise ValueError for a tensor that has not one value for each of the places."""
    for name, value in given.items():
        if value is not None and value.shape != places.shape:
            raise ValueError(
                f"{name} is for {tuple(value.shape)} places, and there are {tuple(places.shape)}: "
                "one for each is needed (labels that are shifted: next_tokens)"
            )
