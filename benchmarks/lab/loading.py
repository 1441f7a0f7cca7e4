"""Families and regimes that are Python files: loaded by path, in every process that needs them."""

import functools
import hashlib
import importlib
import importlib.util
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError, UserError, require


@functools.cache
def attribute(path: Path, name: str) -> Any:
    """What the file calls `name`; the file is run once in a process. Raises ConfigError."""
    require(path.is_file(), f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"lab_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    with errors_of(path):
        spec.loader.exec_module(module)
    require(hasattr(module, name), f"{path}: has no {name}; the lab reads it from there")
    return getattr(module, name)


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """What the file's code raises becomes a ConfigError that names its line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = f"{path}, line {line}" if line else f"{path}"
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None


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
