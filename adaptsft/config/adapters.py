"""What model.lora must be; which layers a model has, adaptsft.model.lora finds out."""

import re
from typing import Any

from adaptsft.config.schema import ModelConfig
from adaptsft.errors import ConfigError, require, require_installed


def check_adapters(model: ModelConfig) -> None:
    """Raise ConfigError for what cannot be, whatever the model, and for other keys that do not go
    with it."""
    lora = model.lora
    require(lora.alpha > 0, f"model.lora.alpha={lora.alpha}: must be above 0")
    require(
        0 <= lora.dropout < 1,
        f"model.lora.dropout={lora.dropout}: must lie in [0, 1)",
    )
    targets: Any = lora.target_modules
    names = [targets] if isinstance(targets, str) else targets
    require(
        isinstance(names, list) and names != [] and all(isinstance(n, str) and n for n in names),
        f"model.lora.target_modules={targets}: must be all-linear, a list of names such as "
        "[q_proj, v_proj], or a regular expression",
    )
    require(
        names == [targets] or "all-linear" not in names,
        f"model.lora.target_modules={targets}: write all-linear alone, not in a list",
    )
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except re.error as error:
        raise ConfigError(
            f"model.lora.target_modules={targets} is not a regular expression: {error}"
        ) from None
    if lora.rank == 0:
        return
    start = f"model.lora.rank={lora.rank}"
    require_installed("peft", "lora", start)
    require(
        model.freeze == [],
        f"model.freeze={model.freeze} with {start}: all of the model is frozen already; leave it "
        "out, and choose the layers with adapters by model.lora.target_modules",
    )
    require(
        model.add_tokens == [],
        f"model.add_tokens={model.add_tokens} with {start}: embeddings are frozen, and final/ has "
        "none, so new tokens would never be learned; leave them out, or train all weights "
        "(model.lora.rank=0)",
    )
