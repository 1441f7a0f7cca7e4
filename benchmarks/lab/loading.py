"""Families and regimes that are Python files: loaded by path, in every process that needs them."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from adaptsft.config.user_code import import_file
from adaptsft.errors import ConfigError, require


def attribute(path: Path, name: str) -> Any:
    """What the file calls `name`; the file is run once in a process. Raises ConfigError."""
    module = import_file(path)
    require(hasattr(module, name), f"{path}: has no {name}; the lab reads it from there")
    return getattr(module, name)


def package(module: str, requirement: str) -> Any:
    """A module of a package that only some families need. Raises ConfigError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the package {requirement} is needed, and cannot be imported ({error}): pip install "
            "'adaptsft[lab]'"
        ) from None


def require_data(content: Any, sha256: str, requirement: str) -> None:
    """Raise ConfigError unless what a package gave is what the family was made from. `content` is
    anything that JSON can write."""
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    require(
        found == sha256,
        f"the data of {requirement} are others here ({found}, not {sha256}), and results would not "
        "compare: pip install 'adaptsft[lab]'",
    )
