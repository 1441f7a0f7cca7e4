"""Supervised fine-tuning with an objective that adapts to what the model already knows.

    from adaptsft import load_config
    from adaptsft.train import train

    train(load_config(["configs/sft.yaml", "model.path=…", "data.path=…", "run_dir=runs/first"]))

In another training loop: AdaptiveObjective (docs/api.md). Importing the package is quick; torch is
imported when something of it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptsft.config.resolve import load_config
    from adaptsft.controllers.adaptive_objective import AdaptiveObjective
    from adaptsft.controllers.base import Progress
    from adaptsft.objectives.loss import next_tokens

__version__ = "0.1.0"
__all__ = ["AdaptiveObjective", "Progress", "__version__", "load_config", "next_tokens"]

MODULES = {
    "AdaptiveObjective": "adaptsft.controllers.adaptive_objective",
    "Progress": "adaptsft.controllers.base",
    "load_config": "adaptsft.config.resolve",
    "next_tokens": "adaptsft.objectives.loss",
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(importlib.import_module(MODULES[name]), name)
    raise AttributeError(f"module 'adaptsft' has no attribute {name!r}")
