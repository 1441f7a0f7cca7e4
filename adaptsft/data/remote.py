"""Files behind a URL that fsspec knows (hf://datasets/…, s3://…, https://…): listed by a pattern,
copied here when they are needed."""

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from adaptsft.errors import DataError

# seconds before a second and a third attempt: transfers break off, and servers restart
WAITS = (2.0, 20.0)
STALLED = 60.0  # seconds without a byte after which a web server is given up
PROGRESS_EVERY = 5.0  # seconds


def list_remote(pattern: str) -> list[str]:
    """The URL of every file that the pattern matches, sorted. Raises DataError where there is no
    file, or no access."""
    with _as_data_error(pattern):
        system, path = _system_of(pattern)
        signs = "*[" if _is_web(pattern) else "*?["  # in a web address, ? begins the query
        if any(sign in path for sign in signs):
            found = system.glob(path, detail=True)
        else:  # glob would not give the reason why one name cannot be read
            found = {path: system.info(path)}
        files = sorted(
            system.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file"
        )
    if not files:
        raise DataError(f"{pattern}: no file matches this pattern")
    return files


def copy_of(url: str, cache: Path) -> Path:
    """Where `fetched` puts the file."""
    suffix = "".join(PurePosixPath(url.partition("?")[0]).suffixes[-2:])
    return cache / "files" / (hashlib.sha256(url.encode()).hexdigest()[:32] + suffix)


@contextmanager
def fetched(url: str, cache: Path, log: Callable[[str], None]) -> Iterator[None]:
    """With a copy of the file in `cache`. A copy that leads to a DataError is deleted: once the
    file is repaired, it must be fetched again."""
    copy = copy_of(url, cache)
    if not copy.is_file():
        log(f"fetching {url}")
        _fetch(url, copy, log)
    try:
        yield
    except DataError:
        copy.unlink(missing_ok=True)
        raise


def _fetch(url: str, copy: Path, log: Callable[[str], None]) -> None:
    """Copy the file, under another name first, so that half a file is never taken for it. What may
    be a passing fault is tried again."""
    # in the folder where the leftovers of a killed process are looked for
    partial = copy.parent.parent / f"{copy.stem}.{uuid.uuid4().hex}"
    try:
        with _as_data_error(url):
            copy.parent.mkdir(parents=True, exist_ok=True)
            system, path = _system_of(url)
            for wait in (*WAITS, None):
                try:
                    with _progress(url, partial, system.size(path), log):
                        system.get_file(path, str(partial))
                    break
                except Exception as error:
                    if wait is None or _is_final(error):
                        raise
                    log(f"fetching {url}: {_reason(error)}; again in {wait:g} s")
                    time.sleep(wait)
            partial.rename(copy)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _progress(
    url: str, partial: Path, size: int | None, log: Callable[[str], None]
) -> Iterator[None]:
    """A line every few seconds. By the size of the file, not by fsspec's callback, with which the
    hub's client would give up its fast way."""
    over, started = threading.Event(), time.monotonic()

    def report() -> None:
        while not over.wait(PROGRESS_EVERY):
            done = partial.stat().st_size if partial.is_file() else 0
            line = f"fetching {url}: {done / 1e6:,.0f} MB"
            if size and done:
                left = (time.monotonic() - started) * (size - done) / done
                line += f", {done / size:.0%}, ETA {left:.0f} s"
            log(line)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _system_of(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system, and the path in it."""
    system, path = url_to_fs(url)
    if _is_web(url):
        import aiohttp  # what fsspec reads the web with; slow to import

        # its own limit is five minutes for a whole file, however large
        system.client_kwargs.setdefault(
            "timeout", aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
        )
    return system, path


@contextmanager
def _as_data_error(url: str) -> Iterator[None]:
    """Any error as a DataError that names the URL: every file system's client raises classes of its
    own."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{url}: cannot be read: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    error = _unwrapped(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would fail too: no such file, or no access to it."""
    error = _unwrapped(error)
    final_status = getattr(error, "status", None) in (401, 403, 404, 410)
    return isinstance(error, FileNotFoundError | PermissionError) or final_status


def _unwrapped(error: BaseException) -> BaseException:
    """fsspec's web client raises FileNotFoundError whatever happened, with what happened as its
    cause."""
    wrapped = isinstance(error, FileNotFoundError) and error.__cause__ is not None
    return error.__cause__ if wrapped and error.__cause__ else error
