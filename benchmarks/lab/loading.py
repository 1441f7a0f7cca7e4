"""Families and regimes that are Python files: loaded by path, in every process that needs them."""

import functools
import importlib.util
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


def needs(package: str, version: str, what: str) -> None:
    """Raise ConfigError unless this very version of a package is installed."""
    from importlib.metadata import PackageNotFoundError, version as installed_version

    try:
        found = installed_version(package)
    except PackageNotFoundError:
        found = None
    require(
        found == version,
        f"{what} is made from the package {package} {version}, "
        + (f"and {found} is installed" if found else "which is not installed")
        + ": pip install 'adaptsft[lab]'",
    )
