"""Runs untrusted Python: no network, host files or rights, little memory and time.

docs/code_execution.md has what it does not protect from. Bubblewrap isolates the child where it is
installed and works, else Linux namespaces do (child.py); `isolation` tries an escape of each kind
first, and refuses where one succeeds. The child gets code and inputs, and returns outputs as JSON
(values.py): it never holds an expected output, so that forging its results means to compute them.
"""

import functools
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError

CHILD = Path(__file__).with_name("child.py")
PACKAGES = ("numpy",)  # what code may import besides the standard library
SCRATCH = 64 * 2**20  # bytes of the child's /tmp, and of any file in it
NOBODY = "65534"
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    # a set of strings has one order in every run: the verdict on `list(set(…))` does not change
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

ESCAPES = """
import os, socket
import numpy

def attempts():
    def write(): open("/escaped", "w")
    def write_library(): open(os.__file__, "a")
    found = []
    for name, attempt in (
        ("write to the root", write),
        ("write to the standard library", write_library),
        ("open a socket", socket.socket),
        ("start a process", os.fork),
        ("become root", lambda: os.setuid(0)),
        ("read the host's passwords", lambda: open("/etc/passwd").read()),
    ):
        try:
            attempt()
        except OSError:
            continue
        found.append(name)
    if os.getppid() > 1:
        found.append("see the host's processes")
    return found
"""


class SandboxError(Exception):
    """The sandbox did not start: nothing of the code has run."""


class RunError(Exception):
    """The code ended its process, was ended, or wrote to the channel itself.

    The message is the reason to report.
    """


@dataclass(frozen=True)
class Limits:
    """What one child may use."""

    cpu: int  # seconds of CPU
    # seconds on the clock: for those that wait; on a busy machine it must not end one that computes
    wall: float
    memory: int = 4 * 2**30  # bytes of address space (evalplus 0.3.1: the same)


@functools.cache
def isolation() -> str:
    """The kind of isolation that works here, of bubblewrap and namespaces.

    It works where none of ESCAPES succeeds. Raises ConfigError where neither does.
    """
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ConfigError(
            f"code execution needs Linux on x86_64 or aarch64, this is {platform.system()} on "
            f"{platform.machine()}: run it in a Linux "
            f"virtual machine or container"
        )
    problems = []
    for kind in ("bubblewrap", "namespaces"):
        problem = probe(kind)
        if problem is None:
            return kind
        problems.append(f"{kind}: {problem}")
    raise ConfigError(
        "code of a model is only run in isolation, and no kind of it works here. "
        f"{'; '.join(problems)}. To fix this, install bubblewrap (the package is called so), or "
        "allow user namespaces (sysctl user.max_user_namespaces=10000; on Ubuntu also "
        "kernel.apparmor_restrict_unprivileged_userns=0), or start the container with "
        "`--security-opt seccomp=unconfined --cap-add SYS_ADMIN`, or grade the recorded outputs on "
        "a machine where one of these holds"
    )


def probe(kind: str) -> str | None:
    """Why code cannot be run under this kind of isolation, or None."""
    if kind == "bubblewrap" and shutil.which("bwrap") is None:
        return "no `bwrap` on PATH"
    group = {"inputs": [[]], "limits": [20.0], "load_limit": 20.0}
    job = {"code": ESCAPES, "entry_point": "attempts", "groups": [group], "most": 10_000}
    limits = Limits(cpu=20, wall=60.0)
    try:
        messages = list(run(json.dumps(job).encode(), [10_000], limits, kind=kind))
    except (SandboxError, RunError) as error:
        return str(error)
    if len(messages) != 1 or "value" not in messages[0]:
        return f"the trial ended early: {messages}"
    escapes = json.loads(messages[0]["value"])
    return f"code in it could {' and '.join(escapes)}" if escapes else None


def run(
    job: bytes, most_bytes: list[int], limits: Limits, *, kind: str | None = None
) -> Generator[dict[str, Any], None, None]:
    """The child's messages (child.py), one for each test until the first that did not return.

    They are hostile data: only "i" is sure.

    job: JSON, see `child.run_job`. most_bytes: size of each test's message, at most. Closing the
    iterator ends the child. Raises SandboxError where the child could not start; RunError where it
    then ended early, was too slow, wrote too much or out of order.
    """
    memory = os.memfd_create("job")
    try:
        with open(os.devnull, "r+b") as null:
            with open(memory, "wb", closefd=False) as file:
                file.write(job)
            os.lseek(memory, 0, os.SEEK_SET)
            child = subprocess.Popen(
                command(kind or isolation(), limits),
                stdin=memory,
                stdout=subprocess.PIPE,
                stderr=null,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
    finally:
        os.close(memory)
    assert child.stdout is not None
    try:
        yield from _messages(child, most_bytes, time.monotonic() + limits.wall)
    finally:
        if child.poll() is None:
            # with the group's leader the kernel ends all in its process namespace
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()


def command(kind: str, limits: Limits) -> list[str]:
    """The child's command line under `kind` of isolation."""
    folders, links, packages = visible()
    config = {
        "namespaces": kind == "namespaces",
        "folders": folders,
        "links": links,
        "packages": packages,
        "scratch": SCRATCH,
        "memory": limits.memory,
        "cpu": limits.cpu,
    }
    # -I would ignore PYTHONHASHSEED; -s -S leave out site-packages all the same
    python = [os.path.realpath(sys.executable), "-s", "-S", "-B", str(CHILD), json.dumps(config)]
    if kind == "namespaces":
        return python
    parents = {parent for path in folders for parent in Path(path).parents}
    above = {str(parent) for parent in parents if parent.parent != parent}
    # made here: those that bubblewrap makes by itself cannot be entered by the user nobody
    binds = [part for path in sorted(above) for part in ("--dir", path)]
    binds += [part for path in folders for part in ("--ro-bind", path, path)]
    binds += [part for path, target in links.items() for part in ("--symlink", target, path)]
    # the child of root becomes nobody by itself: in a user namespace it would stay the host's root
    if os.getuid() == 0:
        rights = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        rights = ["--unshare-user", "--uid", NOBODY, "--gid", NOBODY, "--cap-drop", "ALL"]
    spaces = [f"--unshare-{space}" for space in ("pid", "net", "ipc", "uts")]
    spaces += ["--die-with-parent", "--new-session"]
    scratch = ["--perms", "1777", "--size", str(SCRATCH), "--tmpfs", "/tmp"]
    bubblewrap = shutil.which("bwrap") or "bwrap"
    return [bubblewrap, *spaces, *rights, *scratch, *binds, "--remount-ro", "/", "--", *python]


@functools.cache
def visible() -> tuple[list[str], dict[str, str], list[str]]:
    """(folders and files that the child sees, symbolic links beside them, folders of PACKAGES).

    They are read-only: the C library, Python with its standard library, the packages, and this
    folder. No data, no expected outputs, no configuration.
    """
    links = {path: os.readlink(path) for path in ("/lib", "/lib64") if os.path.islink(path)}
    wanted = [
        path
        for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
        if os.path.isdir(path) and path not in links
    ]
    wanted += [
        f"{sys.base_prefix}/lib",
        sysconfig.get_path("stdlib"),
        os.path.realpath(sys.executable),
        str(CHILD.parent),
    ]
    wanted += ["/etc/ld.so.cache"] if os.path.isfile("/etc/ld.so.cache") else []
    packages = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            place = Path(next(iter(spec.submodule_search_locations)))
            packages.append(str(place.parent))
            beside = place.with_name(f"{name}.libs")
            wanted += [str(path) for path in (place, beside) if path.is_dir()]
    folders: list[str] = []
    for path in sorted(set(wanted)):
        # below another folder it is seen through that one
        if not any(path.startswith(f"{above}/") for above in folders):
            folders.append(path)
    return folders, links, packages


def _messages(
    child: subprocess.Popen[bytes], most_bytes: list[int], deadline: float
) -> Generator[dict[str, Any], None, None]:
    """The child's messages on the tests, as they come; "i" of each is its place."""
    lines = _lines(child, deadline)
    next(lines)
    try:
        first = json.loads(lines.send(10_000))
    except RunError as error:
        raise SandboxError(str(error)) from None
    if first != {"ready": True}:
        raise SandboxError(str(first.get("setup")))
    for index, most in enumerate(most_bytes):
        line = lines.send(most + 1000)  # the object around the value
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise RunError("forged results") from None
        if not isinstance(message, dict) or message.get("i") != index:
            raise RunError("forged results")
        yield message
        if "value" not in message and "large" not in message:
            return  # the child stops at the first test that does not return


def _lines(child: subprocess.Popen[bytes], deadline: float) -> Generator[bytes, int, None]:
    """Lines of the child's pipe.

    Each is asked for by sending the most bytes that it may have (after a first `next`).
    """
    assert child.stdout is not None
    pipe = child.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    buffer, line = bytearray(), b""
    while True:
        most = yield line
        searched = 0
        while (end := buffer.find(b"\n", searched)) < 0 or end > most:
            searched = len(buffer)
            if searched > most:
                raise RunError("output too large")
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                raise RunError("timeout")
            data = os.read(pipe, 1 << 16)
            if not data:
                raise RunError(_ended(child.wait(timeout=10)))
            buffer += data
        line = bytes(buffer[:end])
        del buffer[: end + 1]


def _ended(code: int) -> str:
    """The meaning of an exit code: 128 + signal where one ended the child (child.become; bwrap)."""
    number = -code if code < 0 else code - 128
    if number == signal.SIGXCPU:
        return "timeout"
    if number == signal.SIGKILL:
        return "killed for its memory or CPU time"
    if number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return f"exited with {code} before its last test"
