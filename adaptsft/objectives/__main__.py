"""`python -m adaptsft.objectives` prints a table of all objectives."""

from adaptsft.objectives.build import NLL, REGISTRY
from adaptsft.objectives.threshold import threshold


def describe_objectives() -> str:
    """In Markdown: loss, weight, parameters with defaults, and what else each objective reads."""
    table = [("name", "loss", "weight", "parameters", "reads"), ("---",) * 5]
    for name, objective in [*REGISTRY.items(), ("threshold", threshold(NLL))]:
        document = threshold.__doc__ if name == "threshold" else objective.function.__doc__
        lines = dict(
            line.strip().split(": ", 1)
            for line in (document or "").splitlines()
            if line.strip().startswith(("loss: ", "weight: "))
        )
        parameters = ", ".join(f"{key}={value:g}" for key, value in objective.parameters.items())
        reads = ", ".join(sorted(objective.uses | objective.needs))
        weight = lines.get("weight", "-d loss / d log p")
        table.append((name, lines.get("loss", ""), weight, parameters, reads))
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in table
    )


if __name__ == "__main__":
    print(describe_objectives())
