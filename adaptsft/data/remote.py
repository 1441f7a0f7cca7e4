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


def list_remote(pattern: str) -> list[tuple[str, int]]:
    """(URL, bytes) of every file that the pattern matches, sorted. Raises DataError where there is none, or no access."""
    with _told(pattern):
        system, path = url_to_fs(pattern)
        found = system.glob(path, detail=True)
        files = {system.unstrip_protocol(name): info["size"] for name, info in found.items() if info["type"] == "file"}
    if not files:
        raise DataError(f"{pattern}: no file matches this pattern")
    if unknown := [url for url, size in files.items() if size is None]:
        raise DataError(f"{unknown[0]}: the server does not tell its size; download the files and name them")
    return sorted(files.items())


def copy_of(url: str, cache: Path) -> Path:
    """Where `fetch` puts the file."""
    return cache / "files" / (hashlib.sha256(url.encode()).hexdigest()[:32] + PurePosixPath(url).suffix)


def fetch(url: str, cache: Path, log: Callable[[str], None]) -> None:
    """Copy the file into `cache`, unless it is there: under another name first, so that half a file is never taken for it."""
    copy = copy_of(url, cache)
    if copy.is_file():
        return
    log(f"fetching {url}")
    partial = cache / f"{copy.stem}.{uuid.uuid4().hex}"
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
