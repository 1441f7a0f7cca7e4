"""Messages for the user about their own input: errors, which are printed as one message, without a
traceback, and end the run on every rank; and warnings."""

import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can fix. The message names the file, line, key and value, and the
    fix."""

    exit_code = 1


class ConfigError(UserError):
    """A key, value or combination of keys in the configuration."""

    exit_code = 2


class DataError(UserError):
    """A data file, a line in it, or a field of that line."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or belongs to another configuration."""

    exit_code = 4


class NonFiniteError(UserError):
    """Too many optimizer steps in a row had a loss or gradient that is not finite."""

    exit_code = 5


class DisagreementError(UserError):
    """Ranks of one run that do not do the same: another configuration, step, objective's state or
    statistics."""

    exit_code = 6


class HubError(UserError):
    """The run is done and its model is in final/, and the upload to the hub has failed."""

    exit_code = 8


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_installed(package: str, extra: str, what: str) -> None:
    """Raise ConfigError where an optional package is not there that `what` needs."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{what} needs {package}, which is not installed: pip install 'adaptsft[{extra}]'"
        )


def reason_of(error: Exception) -> str:
    """What an error of another library says, with its kind where its words alone may not tell."""
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return kind + (str(error).strip() or "no reason given")


def did_you_mean(value: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean NAME?` with the nearest of the names, or nothing."""
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def require_known(
    what: str, value: str, names: Iterable[str], error: type[Exception] = ConfigError
) -> None:
    """Raise unless `value` is one of the names; `what` begins the message, which lists them."""
    names = list(names)
    if value not in names:
        choices = ", ".join(names) or "none"
        hint = did_you_mean(value, names)
        ask = f"{hint} Choose" if hint else "; choose"
        raise error(f"{what}{ask} one of: {choices}")


@functools.cache  # a configuration is parsed several times in a process
def warn(message: str) -> None:
    """Print a warning, once in a process and on the first rank only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {message}", file=sys.stderr, flush=True)
