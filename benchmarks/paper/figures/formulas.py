"""Fig. 2 of arXiv:2510.00526: how strongly an objective pulls at a token of probability p, from the
weight functions that train."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.drawing import NAMES, canvas, style
from adaptsft.errors import ConfigError
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.state import ObjectiveState, initial_state, per_token
from adaptsft.objectives.threshold import threshold
from adaptsft_kernels import TokenStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OTHERS = 100  # tokens that share 1 - p equally, for objectives that look at more than p
DEFAULTS = ("nll", "neg_p", "alpha:3", "log1mp")
# of ObjectiveConfig; others are objective.params, or a statistic in control
KEYS = (
    "alpha",
    "lower",
    "upper",
    "base",
)
STATISTICS = ("mean_p", "sequence_nll")


class Curve(NamedTuple):
    label: str
    w: Tensor  # fp64 [n]: s (1 - p), the size of the gradient on the target's logit
    beyond_p: bool  # it depends on how the other tokens share 1 - p


def weights(specifications: Sequence[str] = DEFAULTS, points: int = 10001) -> "Figure":
    """W(p) of objectives written NAME, NAME:VALUE or NAME:key=value,…: `alpha:3`, `focal:gamma=5`,
    `threshold:base=neg_p,lower=0.2`.

    VALUE is alpha where the objective reads it, else `lower`, else its first parameter. A dot marks
    the maximiser, at the end of the range where W grows towards it; the dashed line is p = .5.
    Raises ConfigError.
    """
    p = grid(points)
    curves = [curve(specification, p) for specification in specifications]
    figure, axes = canvas(1, 1, (6.4, 4.2))
    axis = axes[0, 0]
    axis.axvline(0.5, color="0.5", linestyle="--", linewidth=1, zorder=0)
    for number, one in enumerate(curves):
        look, peak = style(number), int(one.w.argmax())
        label = one.label + ("*" if one.beyond_p else "")
        axis.plot(
            p, one.w, label=label, linewidth=1.6, color=look["color"], linestyle=look["linestyle"]
        )
        axis.plot(
            p[peak],
            one.w[peak],
            look["marker"],
            color=look["color"],
            label="_maximiser",
            markersize=8,
            clip_on=False,
        )
        # in the legend the marker too: in grey the dashes alone would have to tell the lines apart
        axis.lines[-2].set(marker=look["marker"], markevery=[peak])
    axis.set(xlim=(0, 1), xlabel="p of the target", ylabel="W(p) = -f'(p) p (1-p)")
    axis.set_ylim(bottom=0)
    if any(one.beyond_p for one in curves):
        axis.set_title(f"*: where {OTHERS} other tokens share 1-p equally", fontsize=9)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def grid(points: int) -> Tensor:
    """p from 1e-6 to 1 - 1e-6, where log1mp ends being exact; fp64 [points]."""
    return torch.linspace(1e-6, 1 - 1e-6, points, dtype=torch.float64)


def curve(specification: str, p: Tensor) -> Curve:
    """W at every p, fp64 [n]. Raises ConfigError where the specification is not one, or
    adaptsft.objectives refuses it."""
    name, settings = parsed(specification)
    statistics = {key: settings.pop(key) for key in STATISTICS if key in settings}
    fields: dict[str, Any] = {key: settings[key] for key in KEYS if key in settings}
    parameters = {key: value for key, value in settings.items() if key not in KEYS}
    config = ObjectiveConfig(name=name, params=parameters, **fields)
    objective = build_objective(config)
    if "reference" in objective.needs:
        raise ConfigError(f"{specification}: W depends on the base model's p too, not on p alone")
    control = per_token(
        initial_state(config, 1, torch.device("cpu")), torch.zeros(len(p), dtype=torch.int64)
    )
    control = ObjectiveState(*(field.double() for field in control))
    if unread := [key for key in statistics if key not in objective.uses]:
        raise ConfigError(f"{specification}: {name} does not read {unread[0]}")
    control = control._replace(
        **{key: torch.full_like(p, float(value)) for key, value in statistics.items()}
    )
    spread, one = (objective(rows(p, others), control)[1] for others in (OTHERS, 1))
    shown = ", ".join(f"{key}={value}" for key, value in (settings | statistics).items())
    label = shown if name in settings else ", ".join(filter(None, [NAMES.get(name, name), shown]))
    return Curve(label, spread * (1 - p), not torch.allclose(spread, one, rtol=1e-9, atol=1e-12))


def parsed(specification: str) -> tuple[str, dict[str, Any]]:
    """(name, settings as numbers; `base` as text). Raises ConfigError."""
    name, _, rest = specification.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = _main_parameter(name, specification), part
        try:
            settings[key] = value if key == "base" else float(value)
        except ValueError:
            raise ConfigError(
                f"{specification}: {value} is no number; write NAME, NAME:VALUE or NAME:key=value,…"
            ) from None
        settings[key] = (
            int(settings[key]) if key != "base" and settings[key].is_integer() else settings[key]
        )
    return name, settings


def rows(p: Tensor, others: int) -> TokenStatistics:
    """What an objective sees of a target of probability p, where `others` tokens share the rest
    equally; fp64 [n]."""
    rest = ((1 - p) / others)[:, None].expand(-1, others)
    distribution = torch.cat([p[:, None], rest], dim=1)
    top = distribution.topk(min(20, others + 1), dim=1).values
    normalised = top / top.sum(1, keepdim=True)
    return TokenStatistics(
        logp=p.log(),
        one_minus_p=1 - p,
        entropy=-torch.special.xlogy(distribution, distribution).sum(1),
        collision=distribution.square().sum(1),
        top1=p >= rest[:, 0],
        top_logp=top[:, 0].log(),
        top_entropy=-torch.special.xlogy(normalised, normalised).sum(1),
    )


def _main_parameter(name: str, specification: str) -> str:
    objective = threshold(REGISTRY["nll"]) if name == "threshold" else REGISTRY.get(name)
    if objective is None:
        build_objective(ObjectiveConfig(name=name))  # says which name is near
        raise AssertionError("an unknown name is refused")
    for candidate in ("alpha", "lower", *objective.parameters):
        if candidate in objective.uses or candidate in objective.parameters:
            return candidate
    raise ConfigError(f"{specification}: {name} has no parameter that a number could set")
