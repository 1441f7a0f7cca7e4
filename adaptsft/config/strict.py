"""`strict_reproduction`: what the authors' training code does and their paper does not say, as options that are off by default.

Sources, differences that remain, and what changes: docs/strict_reproduction.md. The arithmetic is where its counterpart is:
micro-batches in data/plan.py and train.py, dtypes in model/build.py.
"""

from adaptsft.config.schema import Config
from adaptsft.errors import require


def validate(config: Config) -> None:
    """Refuse what has no meaning beside summed micro-batches. How rows divide among ranks, BatchSampler checks."""
    if not config.strict_reproduction.summed_micro_batches:
        return
    start, train = "strict_reproduction.summed_micro_batches=true", config.train
    require(
        not config.data.packing,
        f"{start} with data.packing=true: how many packs a step has depends on its lengths, and with it the size of the summed gradient; "
        "the code reproduced pads one example per row: set data.packing=false",
    )
    require(
        not config.objective.unit_mass,
        f"{start} with objective.unit_mass=true: the one keeps the gradient's size from depending on the objective, the other multiplies "
        "it by the number of micro-batches; set objective.unit_mass=false",
    )
    require(
        train.global_batch_size % train.micro_batch_size == 0,
        f"{start}: train.global_batch_size={train.global_batch_size} is no multiple of train.micro_batch_size={train.micro_batch_size}, "
        "and the examples of a smaller micro-batch would weigh more; choose sizes that divide",
    )


def pinned(config: Config) -> set[str]:
    """Keys that may usually change when a run is resumed, and that these options make part of what is learned."""
    keys: set[str] = set()
    if config.strict_reproduction.summed_micro_batches:
        keys |= {"train.micro_batch_size"}
    if config.strict_reproduction.bf16_masters:
        keys |= {
            "train.reduce_every_micro_batch"
        }  # the sum over micro-batches is then rounded to bf16 after each
    return keys


def describe(config: Config, ranks: int) -> list[str]:
    """Lines for the beginning of a run; none where both options are off."""
    strict, train, lines = config.strict_reproduction, config.train, []
    if strict.summed_micro_batches:
        tokens = "kept tokens" if config.objective.normalizer == "kept" else "target tokens"
        count = train.global_batch_size // (ranks * train.micro_batch_size)
        lines.append(
            f"strict_reproduction.summed_micro_batches: each micro-batch is averaged over its own {tokens}, and the gradients of "
            f"{count} per rank are summed"
        )
    if strict.bf16_masters:
        lines.append(
            "strict_reproduction.bf16_masters: weights, gradients and AdamW's moments are bf16; updates below half an ulp are lost"
        )
    return lines
