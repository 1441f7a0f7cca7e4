"""What folders are called where several are shown side by side."""

from collections.abc import Sequence
from pathlib import Path

from adaptsft.errors import ConfigError


def distinct(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart. Raises ConfigError where one is named twice."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(
        f"{', '.join(map(str, folders))}: the same folder is named twice: name it once"
    )
