"""Errors that a user can mend. They are printed as one message, without a traceback, and end the run on every rank."""


class UserError(Exception):
    """Something in the user's hands is wrong. The message names the file, line, key and value, and the fix."""

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
    """Ranks of one run that do not do the same: another configuration, step, control or statistics."""

    exit_code = 6


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
