"""Files that appear whole, and names for folders."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adaptsft.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which then replaces `path` in one step: no reader ever sees half a file.

    It is `path` with ".tmp" behind it. Where the writing raises, `path` is left as it was.
    """
    partial = path.with_name(path.name + ".tmp")
    yield partial
    partial.replace(path)


def write_atomically(path: Path, content: str | bytes, sync: bool = False) -> None:
    """Replace the content of a file in one step; with `sync` it is on the disk when this returns."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


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
