"""`python -m adaptsft.model` prints which types of models are trained, and which are refused."""

from collections import defaultdict
from typing import Any

from adaptsft.model.supported import MODES, is_exact, reason, verified

FIGURES = (*MODES, "bf16", "router", "export", "compile")
# of real runs of one variant of each type
ON_GPUS = ("varlen", "graphs")  # where packed
TRAINED = ("first_step", "two_ranks", "resumed", "final", "context_parallel", *ON_GPUS)


def describe_models() -> str:
    """In Markdown: a row for every variant that trains as transformers computes it in some way, and
    the other types by the reason why not."""
    content = verified()
    rows = content["variants"]
    trained = {name: row for name, row in rows.items() if any(is_exact(row, m) for m in MODES)}
    types = {row["model_type"] for row in trained.values()}
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines = [f"{len(trained)} variants of {len(types)} types, with {versions}:", ""]
    figures = [figure.replace("_", " ") for figure in (*FIGURES, *TRAINED)]
    lines += [
        f"| model type: variant | {' | '.join(figures)} | why not |",
        "|---" * (len(figures) + 2) + "|",
    ]
    for name, row in trained.items():
        why = next((reason([row], mode) for mode in MODES if not is_exact(row, mode)), "")
        cells = [name, *(_cell(row, figure) for figure in (*FIGURES, *TRAINED)), why]
        lines.append(f"| {' | '.join(cells)} |")
    refused: dict[str, list[str]] = defaultdict(list)
    for row in rows.values():
        if row["model_type"] not in types:
            untried = "no tiny model of it was tried" if "untried" in row else ""
            why = row.get("refused") or untried or reason([row], "padded")
            refused[why].append(row["model_type"])
    lines += ["", "Refused:", "", "| why | model types |", "|---|---|"]
    lines += [
        f"| {why} | {', '.join(dict.fromkeys(kinds))} |" for why, kinds in sorted(refused.items())
    ]
    return "\n".join(lines)


def _cell(row: dict[str, Any], figure: str) -> str:
    if is_exact(row, figure):
        return f"{row[figure]:.0e}" if row[figure] else "0"
    return "" if row.get(figure) is None else "no"


if __name__ == "__main__":
    print(describe_models())
