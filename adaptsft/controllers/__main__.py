"""`python -m adaptsft.controllers` prints a table of all controllers."""

import inspect

from adaptsft.controllers.base import parameters
from adaptsft.controllers.build import REGISTRY
from adaptsft.controllers.schedules import Schedule


def describe_controllers() -> str:
    """In Markdown: the rule, what it moves, the objective that it acts through, and its settings:
    keys of the group `controller`, and parameters with their defaults."""
    lines = ["| name | rule | moves | acts through | settings |", "|---|---|---|---|---|"]
    # the schedules last, whatever was imported first
    for name, cls in sorted(REGISTRY.items(), key=lambda entry: issubclass(entry[1], Schedule)):
        rule = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        moves = ", ".join([*cls.moves, *(["learning rate"] if cls.scales_lr else [])])
        through = cls.objective if cls.moves else f"any; {cls.objective} if none is set"
        if issubclass(cls, Schedule):
            moves, through = "`parameter`", "any that reads it"
        settings = [key for key in cls.reads if key != "parameter"]
        settings += [f"params.{key}={value:g}" for key, value in parameters(cls).items()]
        lines.append(f"| {name} | {rule} | {moves} | {through} | {', '.join(settings)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe_controllers())
