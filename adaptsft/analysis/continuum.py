"""The continuum from model-weak to model-strong of arXiv:2510.00526: its reference points, and what
its results advise at each place.

A model and a data set have a place there by their mean p (Eq. 5): the average, over the target
tokens of the training data, of the probability that the base model gives them.
"""

from typing import Any, NamedTuple


class Reference(NamedTuple):
    place: str
    model: str
    data: str
    mean_p: float
    above_055: float | None = None  # share of tokens with p > .55


# Table 6; the shares are those of Table 7. The paper's Section 3 has 0.76 for LLaMA-3.1-8B on
# mathematics, where its Table 6 has 0.80.
REFERENCES = (
    Reference("MS", "LLaMA-3.1-8B", "NuminaMath-CoT", 0.80, 0.728),
    Reference("MS", "DeepSeekMath-7B", "NuminaMath-CoT", 0.76, 0.767),
    Reference("MS", "Qwen2.5-Math-1.5B", "NuminaMath-CoT", 0.80, 0.806),
    Reference("MS", "Qwen2.5-Math-7B", "NuminaMath-CoT", 0.81, 0.812),
    Reference("MI", "LLaMA-3.2-3B", "m23k (medical)", 0.50),
    Reference("MI", "LLaMA-3.1-8B", "m23k (medical)", 0.53),
    Reference("MI", "Qwen2.5-1.5B", "m23k (medical)", 0.56),
    Reference("MI", "Qwen2.5-Math-7B", "m23k (medical)", 0.59),
    Reference("MW", "LLaMA-3.2-3B", "figfont puzzles", 0.01),
    Reference("MW", "LLaMA-3.1-8B", "figfont puzzles", 0.01),
    Reference("MW", "Qwen2.5-1.5B", "figfont puzzles", 0.01),
    Reference("MW", "Qwen2.5-7B", "figfont puzzles", 0.07),
)


class Place(NamedTuple):
    meaning: str
    objective: str  # the fixed objective that did best there in the paper
    evidence: str


PLACES = {
    "MW": Place(
        "model-weak: the base model knows next to nothing of the task",
        "objective.name=nll",
        "Table 4: on puzzles -p learns nothing (Qwen2.5-7B: exact match 35.20 with NLL, 0.00 "
        "with -p): a target of tiny p gets no gradient",
    ),
    "MI": Place(
        "model-intermediate: the base model knows part of it",
        "objective.name=nll",
        "Table 3: on medical questions neither -p nor NLL wins consistently; NLL is the one that "
        "cannot starve a token",
    ),
    "MS": Place(
        "model-strong: the base model half knows the answers",
        "objective.name=neg_p",
        "Table 2: on mathematics -p is ahead of NLL for all four base models, by 4 to 16 points "
        "(average of five benchmarks); objective.name=threshold objective.lower=0.2 is within 2 "
        "points of it either way",
    ),
}

# where `cautions` warns; ours, not the paper's
CONFLICT, SPLIT, MISCALIBRATED = 0.15, 0.25, 0.1


def borders() -> tuple[float, float]:
    """Mean p between MW and MI, and between MI and MS: half-way between the nearest reference
    points."""
    of = {
        place: [reference.mean_p for reference in REFERENCES if reference.place == place]
        for place in PLACES
    }
    return (max(of["MW"]) + min(of["MI"])) / 2, (max(of["MI"]) + min(of["MS"])) / 2


def place_of(mean_p: float) -> str:
    low, high = borders()
    return "MW" if mean_p < low else "MI" if mean_p < high else "MS"


def cautions(source: dict[str, Any]) -> list[str]:
    """What mean p alone does not show of a source, given its figures in base_stats.json."""
    found = []
    if source["conflict"] > CONFLICT:
        found.append(
            f"On {source['conflict']:.0%} of the tokens the base model gives *another* token p > "
            ".5. Either the labels are noisy there, and trusting the base is right, or the data "
            "redefines what it knows (a format, a convention), and trusting it is wrong. p cannot "
            "separate the two cases; whether these tokens improve when trained on can."
        )
    high, low = source["above_0.55"], source["below_0.2"]
    if min(low, high) > SPLIT:
        found.append(
            f"The mean hides two groups: {high:.0%} of the tokens have p > .55, {low:.0%} p < .2. "
            "A threshold or -p would leave the second group unlearned."
        )
    if source["ece"] > MISCALIBRATED:
        surer = source["overconfidence"] > 0
        way = "surer than it is right" if surer else "less sure than it is right"
        found.append(
            f"The base model is not calibrated on this data (ECE {source['ece']:.2f}, {way}); the "
            "paper takes p for knowledge because base models mostly are (its Appendix C.1)."
        )
    return found
