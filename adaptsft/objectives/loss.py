"""The loss of target tokens under an objective and its state: from hidden states, or from log
probabilities that another program has computed."""

from typing import Any

import torch
from torch import Tensor

from adaptsft.objectives.base import Objective
from adaptsft.objectives.state import ObjectiveState, per_token, with_exempt_tokens
from adaptsft_kernels import TokenOutputs, TokenStatistics, linear_objective


def loss_of_hidden(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    objective: Objective,
    state: ObjectiveState | None,
    *,
    source: Tensor,
    reference: Any = None,
    **settings: Any,
) -> tuple[Tensor, TokenOutputs, Tensor]:
    """What `linear_objective` returns, and which tokens the objective keeps, bool [n].

    targets and source int64 [n]; hidden, weight, reference and `settings` are those of
    `linear_objective`, `target_idx` among them. Tokens of objective.exempt are left to NLL.
    """
    if state is not None:
        state, source = with_exempt_tokens(state, source, targets, objective.exempt)
    loss, tokens = linear_objective(
        hidden, weight, targets, objective, state, source=source, reference=reference, **settings
    )
    masking = state is not None and objective.mask is not None
    of_tokens = per_token(state, source) if masking else None
    return loss, tokens, objective.keep(tokens, of_tokens, reference)


def loss_of_logps(
    logps: Tensor,
    objective: Objective,
    state: ObjectiveState,
    *,
    source: Tensor,
    targets: Tensor | None = None,
    token_weight: Tensor | None = None,
    **known: Any,
) -> tuple[Tensor, TokenOutputs, Tensor]:
    """As `loss_of_hidden`, from logps [n], log p of the targets, through which the gradient goes:
    d loss / d log p = -weight. Here the loss is that of each target, [n].

    `known` are other fields of TokenStatistics; those that are not given are NaN in the result, and
    an objective that reads one raises ValueError. 1 - p is as accurate as log p. `targets` int64
    [n] are needed where tokens are exempt.
    """
    if objective.exempt is not None:
        if targets is None:
            raise ValueError("objective.exempt needs the targets: give targets=")
        state, source = with_exempt_tokens(state, source, targets, objective.exempt)
    logp, of_tokens = logps.detach().float(), per_token(state, source)
    fields = {"logp": logp, "one_minus_p": -torch.expm1(logp)} | known
    tokens = TokenStatistics(
        **{name: _or_unknown(fields.get(name), name) for name in TokenStatistics._fields}
    )
    loss, weight = (result.detach().to(logp.dtype) for result in objective(tokens, of_tokens))
    kept = objective.keep(tokens, of_tokens, tokens.reference)
    if token_weight is not None:
        loss, weight = loss * token_weight, weight * token_weight
    unknown = torch.full_like(logp, torch.nan)
    shown = [unknown if isinstance(field, Unknown) else field for field in tokens[:6]]
    # the value of the objective, with the gradient of the likelihood that its weights weigh
    likelihood = -weight * logps.to(logp.dtype)
    value = likelihood + (loss - likelihood).detach()
    return value, TokenOutputs._make([*shown, loss, weight]), kept


def check_given(objective: Objective, sequence: Tensor | None, reference: Any) -> None:
    """Raise ValueError for what the objective reads and the caller of a loss did not give."""
    if sequence is None and "sequence_nll" in objective.uses:
        raise ValueError(
            f"objective {objective.name} reads the NLL of sequences: give sequence=, or targets "
            "[B, L]"
        )
    if reference is None and "reference" in objective.needs:
        raise ValueError(f"objective {objective.name} reads the base model: give reference=")


def next_tokens(labels: Tensor, ignore_index: int = -100) -> Tensor:
    """The targets of the hidden states of a causal language model, [..., L], from its labels, [...,
    L], as transformers has them: each position's token is what the position before it predicts."""
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def share_of(num_tokens: float | Tensor | None, chosen: Tensor) -> float | Tensor:
    """What a sum over targets is multiplied by; 1 where there are none, whose sum is 0."""
    if num_tokens is None:
        num_tokens = len(chosen)
    if isinstance(num_tokens, Tensor):
        count = num_tokens.to(chosen.device, torch.float32)
        return 1.0 / torch.where(count == 0, 1.0, count)
    return 1.0 / (num_tokens or 1)


class Unknown:
    """Stands for a statistic that was not given: whatever reads it raises ValueError."""

    def __init__(self, name: str):
        self._name = name

    def _refuse(self, *arguments: Any) -> Any:
        raise ValueError(f"{self._name} is read, and was not given to the loss: give {self._name}=")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any, kwargs: Any) -> Any:
        found = [each for each in (*arguments, *(kwargs or {}).values()) if isinstance(each, cls)]
        return found[0]._refuse()

    def __getattr__(self, name: str) -> Any:
        return self._refuse()

    __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __neg__ = __lt__ = __gt__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __le__ = __ge__ = _refuse


def _or_unknown(value: Any, name: str) -> Any:
    # `sequence` and `reference` have errors of their own where they are missing
    return Unknown(name) if value is None and name not in ("sequence", "reference") else value
