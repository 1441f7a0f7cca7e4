"""Files that appear whole, folders that one process holds, and names for folders."""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from adaptsft.errors import CheckpointError, ConfigError

HELD = (errno.EWOULDBLOCK, errno.EACCES)  # by another process
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """A path to write to, which then replaces `path` in one step: no reader sees half a file.

    It is `path` with ".tmp" behind it; with `sync`, its content is on the disk before it replaces
    `path`. Where the writing raises, `path` is left as it was.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def write_atomically(path: Path, content: str | bytes, sync: bool = False) -> None:
    """Replace the content of a file in one step. Lone surrogates, not in UTF-8, are escaped."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    with replacing(path, sync) as partial:
        partial.write_bytes(content)


def lock(folder: Path) -> TextIO:
    """Lock a folder until this process exits, for any reason.

    Raises ConfigError where another process holds it. A file system without locks (some network
    mounts) is used without one, with a warning.
    """
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            print(
                f"{folder}: its file system has no locks ({error.strerror}): two runs that write "
                "to it at the same time would not be noticed",
                file=sys.stderr,
            )
            return file
        file.close()
        if error.errno in HELD:
            raise ConfigError(
                f"{folder}: another run is writing to it; wait for it, or choose another folder"
            ) from None
        raise CheckpointError(f"{folder}: cannot be locked: {error}") from None
    return file


def distinct(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart. Raises ConfigError where one
    is named twice."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(
        f"{', '.join(map(str, folders))}: the same folder is named twice: name it once"
    )
