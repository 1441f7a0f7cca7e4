"""The figures of a step, for a log."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from adaptsft.statistics.step import COLUMNS, StepStatistics

# columns of the statistics that are shown as means over the target tokens, and what they are called
SHOWN = {"loss": "loss", "nll": "nll", "p": "mean_p", "weight": "weight"}


def figures_of(
    statistics: StepStatistics, names: Sequence[str], used: Mapping[str, Tensor]
) -> dict[str, float]:
    """The means, and `tokens`; of each source too, as `NAME/nll`, where there are several. `used`
    is what the objective read in the step: [sources] each, or 0-d. Without a prefix it is the mean
    over sources. Waits for the device."""
    rows = {"": statistics.table.sum(0)}
    if len(names) > 1:
        rows |= {f"{name}/": row for name, row in zip(names, statistics.table, strict=True)}
    found: dict[str, float] = {}
    for number, (prefix, row) in enumerate(rows.items(), start=-1):
        sums = dict(zip(COLUMNS, row.tolist(), strict=False))
        tokens = found[f"{prefix}tokens"] = sums["tokens"]
        if tokens:
            found |= {f"{prefix}{name}": sums[key] / tokens for key, name in SHOWN.items()}
        for name, value in used.items():
            if not prefix:
                found[name] = float(value.mean())
            elif value.ndim:
                found[f"{prefix}{name}"] = float(value[number])
    return found
