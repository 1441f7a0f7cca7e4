"""Settings that have no effect. They are no errors: `load_config` prints a warning for each."""

from collections.abc import Iterable
from typing import Any


def unread(
    group: str, config: Any, keys: Iterable[str], beside: str, readers: Iterable[str]
) -> list[str]:
    """A warning for each of these keys of a group that does not have its default value.

    `beside` is the setting with which it has no effect, and `readers` are those with which it has.
    """
    default, warnings = type(config)(), []
    for key in keys:
        if (value := getattr(config, key)) != getattr(default, key):
            text = str(value).lower() if isinstance(value, bool) else value
            warnings.append(
                f"{group}.{key}={text} has no effect with {beside}; it is read by "
                f"{', '.join(readers)}"
            )
    return warnings
