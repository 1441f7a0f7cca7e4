"""Files behind a URL that fsspec knows (hf://datasets/…, s3://…, https://…): listed by a pattern, copied here when their turn has come."""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fsspec.core import url_to_fs

from adaptsft.errors import DataError


def is_remote(path: str) -> bool:
    return "://" in path


def list_remote(pattern: str) -> list[str]:
    """The URL of every file that the pattern matches, sorted. Raises DataError where there is none, or no access."""
    with _told(pattern):
        system, path = url_to_fs(pattern)
        found = system.glob(path, detail=True)
        files = sorted(system.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file")
    if not files:
        raise DataError(f"{pattern}: no file matches this pattern")
    return files


def copy_of(url: str, cache: Path) -> Path:
    """Where `fetched` puts the file."""
    return cache / "files" / (hashlib.sha256(url.encode()).hexdigest()[:32] + PurePosixPath(url).suffix)


@contextmanager
def fetched(url: str, cache: Path, log: Callable[[str], None]) -> Iterator[None]:
    """With a copy of the file in `cache`. One that leads to a DataError is deleted: once mended, the file must be fetched again."""
    copy = copy_of(url, cache)
    if not copy.is_file():
        log(f"fetching {url}")
        _fetch(url, copy)
    try:
        yield
    except DataError:
        copy.unlink(missing_ok=True)
        raise


def _fetch(url: str, copy: Path) -> None:
    """Under another name first, so that half a file is never taken for it."""
    partial = copy.parent.parent / f"{copy.stem}.{uuid.uuid4().hex}"  # where the leftovers of a killed process are looked for
    try:
        with _told(url):
            copy.parent.mkdir(parents=True, exist_ok=True)
            system, path = url_to_fs(url)
            system.get_file(path, str(partial))
            partial.rename(copy)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Any error as a DataError that names the URL: every file system's client raises classes of its own."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{url}: cannot be read: {reason}") from None
