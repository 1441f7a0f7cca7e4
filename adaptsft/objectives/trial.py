"""An objective of the user's own is called on eight tokens before anything is loaded: by the fused
loss, as in training, and on the CPU."""

from pathlib import Path

import torch

from adaptsft.config.user_code import errors_of
from adaptsft.errors import require, warn
from adaptsft.objectives.base import Objective
from adaptsft.objectives.reference import Reference
from adaptsft.objectives.state import READABLE, ObjectiveState, per_token
from adaptsft_kernels import linear_objective

TOKENS, VOCABULARY, CHUNK = 8, 50, 3
STATE = {"alpha": 0.5, "lower": 0.1, "upper": 0.9, "floor": 0.1, "mean_p": 0.5, "sequence_nll": 1.0}
REFERENCE = {"logp": -1.0, "entropy": 1.5, "collision": 0.3, "top_logp": -0.7, "top_entropy": 1.2}
REFERENCE["mass"] = 0.6


def try_out(start: str, objective: Objective, path: Path) -> None:
    """Raise ConfigError, which begins with `start`, for what an objective of this file raises, for
    a result that is not finite, and where that of a token depends on the tokens beside it, or on
    chance. Warns where it unlearns."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(TOKENS, VOCABULARY, generator=generator)
    targets = logits.topk(TOKENS, dim=1).indices.diagonal()  # from the likeliest to the eighth
    # p of the first rounds to 1, and that of the last is 1e-30: training meets both
    logits[0, targets[0]] += 30
    logits[-1, targets[-1]] -= 60
    hidden, head = torch.eye(TOKENS), logits.T.contiguous()
    # what it has not said that it reads is not there
    read = {name: STATE[name] if name in objective.uses else torch.nan for name in READABLE}
    others = {"mass": 1.0, "exempt": 0.0}
    state = ObjectiveState(**{name: torch.tensor([x]) for name, x in (read | others).items()})
    spread = torch.linspace(0.8, 1.2, TOKENS)
    reference = Reference(**{name: value * spread for name, value in REFERENCE.items()})
    sequence = torch.arange(TOKENS) // CHUNK

    with errors_of(path, f"{start}: "):
        whole, parts = (
            linear_objective(
                hidden,
                head,
                targets,
                objective,
                state,
                sequence=sequence,
                reference=reference if "reference" in objective.needs else None,
                chunk_size=size,
            )[1]
            for size in (TOKENS, CHUNK)
        )
        source = torch.zeros(TOKENS, dtype=torch.int64)
        kept = objective.keep(whole, per_token(state, source), reference)
    require(
        kept.dtype == torch.bool and kept.shape == targets.shape,
        f"{start}: its mask must return bool [n], found {kept.dtype} {list(kept.shape)}",
    )
    for name, ours, theirs in (
        ("loss", whole.loss, parts.loss),
        ("weight", whole.weight, parts.weight),
    ):
        bad = (~ours.isfinite()).nonzero().flatten().tolist()
        require(
            bad == [],
            f"{start}: gives a {name} that is not finite, at p = "
            f"{', '.join(f'{float(whole.logp[i].exp()):.3g}' for i in bad[:3])}; of `state` it may "
            "read what @register(…, uses=[…]) names",
        )
        require(
            torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6),
            f"{start}: the {name} of a token depends on the tokens beside it, or on chance, and "
            "would change with the size of a chunk; @register(…, whole_batch=True) gives it a "
            "micro-batch at once",
        )
    if bool((unlearned := whole.weight < 0).any()):
        p = whole.logp[unlearned].exp()
        warn(
            f"{start}: its weight is negative, so that tokens are unlearned, such as at p = "
            f"{float(p[0]):.3g}: is its sign right?"
        )
