"""Supervised fine-tuning with an objective that adapts to what the model already knows.

    from adaptsft import load_config
    from adaptsft.train import train

    train(load_config(["configs/sft.yaml", "model.path=…", "data.path=…", "run_dir=runs/first"]))

Importing the package is quick; torch is imported when something of it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptsft.config.resolve import load_config

__version__ = "0.1.0"
__all__ = ["__version__", "load_config"]


def __getattr__(name: str) -> Any:
    if name == "load_config":
        return importlib.import_module("adaptsft.config.resolve").load_config
    raise AttributeError(f"module 'adaptsft' has no attribute {name!r}")
