"""Runs inside the sandbox: isolates itself, then calls one function on many inputs.

    python child.py CONFIG        (started by sandbox.py alone; CONFIG is JSON)

It reads one job from stdin and writes what the function returned.

Three processes where there is no bubblewrap: the launcher makes the namespaces; process 1 in them
builds a file system of a few read-only folders and waits, so that the kernel ends everything when
it ends; process 2, the worker, gives up its user, its capabilities and most system calls, and only
then reads the job. Under bubblewrap only the worker is ours. Standard library only; nothing here is
trusted by the grader: whatever runs below may rewrite this module, and can then only lie about what
its own function returned.

Out, on the pipe that was stdout, a JSON object a line: {"ready": true} before the code is run, or
{"setup": message} where it could not be isolated; then {"i": test, "t": CPU seconds, "value":
encoded} or {"i", "t", "large": true} for each test, or for the first that did not return, as the
last one, {"i", "t", "error"} or {"i", "t", "timeout": true}.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# beside this file, which is run as a script
from system_calls import seccomp_filter  # pyrefly: ignore
from values import TooLarge, decode, encode  # pyrefly: ignore

NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/seccomp.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_RECURSIVE, AT_FDCWD = 0x8000, -100
SYS_MOUNT_SETATTR = 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class Timeout(BaseException):
    """The time of one test is over."""


def call(name: str, result: int) -> None:
    """Raises OSError where a C call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(
    source: str, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    call(
        f"mount {target}",
        LIBC.mount(*arguments, ctypes.c_ulong(flags), options.encode() if options else None),
    )


def become(run: Callable[[], None]) -> None:
    """Runs `run` in a new process, and exits as that does (128 + signal where one ended it)."""
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    run()


def die_with_parent() -> None:
    call("prctl", LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def enter_namespaces(config: dict[str, Any]) -> None:
    """Leaves host files, network, processes and IPC behind.

    Root needs no user namespace: it changes its user later.
    """
    uid, gid = os.getuid(), os.getgid()
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    call("unshare", LIBC.unshare(spaces if uid == 0 else spaces | CLONE_NEWUSER))
    if uid != 0:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {uid} 1"),
            ("gid_map", f"{NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    die_with_parent()
    become(die_with_parent)  # from here on as process 1
    build_root(config["folders"], config["links"], config["scratch"])
    become(die_with_parent)  # as process 2


def build_root(folders: list[str], links: dict[str, str], scratch: int) -> None:
    """A root of `folders` alone, read-only, and an empty writable /tmp of `scratch` bytes."""
    os.umask(0o022)
    pivot_root = PIVOT_ROOT[platform.machine()]
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.makedirs("/tmp/old")
    call("pivot_root", LIBC.syscall(pivot_root, b"/tmp", b"/tmp/old"))
    os.chdir("/")
    os.makedirs("/new")
    mount("/new", "/new", None, MS_BIND)
    os.makedirs("/new/tmp")
    mount(
        "tmpfs", "/new/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,size={scratch}"
    )
    for path in folders:
        target = "/new" + path
        if os.path.isdir("/old" + path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "x").close()
        mount("/old" + path, target, None, MS_BIND | MS_REC)
    for path, target in links.items():
        os.symlink(target, "/new" + path)
    for path, flags, added, removed in (
        (b"/new", AT_RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0),
        (b"/new/tmp", 0, 0, MOUNT_ATTR_RDONLY),
    ):
        attributes = struct.pack("QQQQ", added, removed, 0, 0)
        call(
            "mount_setattr",
            LIBC.syscall(
                SYS_MOUNT_SETATTR,
                AT_FDCWD,
                path,
                flags,
                attributes,
                ctypes.c_size_t(len(attributes)),
            ),
        )
    os.chdir("/new")
    call("pivot_root", LIBC.syscall(pivot_root, b".", b"."))
    call("umount2", LIBC.umount2(b".", MNT_DETACH))
    os.chdir("/tmp")


def give_up_rights(config: dict[str, Any]) -> None:
    """No user, no capability, no way to regain one; limits; no system call of DENIED."""
    memory = config["memory"]
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_STACK, memory),
        (resource.RLIMIT_FSIZE, config["scratch"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 512),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    # SIGXCPU, then SIGKILL for those who ignore it
    resource.setrlimit(resource.RLIMIT_CPU, (config["cpu"], config["cpu"] + 1))
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    # version 3 of linux/capability.h, this process
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    call("capset", LIBC.capset(header, nothing))
    call("prctl", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    program = seccomp_filter(platform.machine())
    code = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    call(
        "seccomp",
        LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(descriptor), 0, 0),
    )


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises Timeout after `seconds` of CPU, or ten times as many on the clock.

    CPU time, so that another job on the machine does not change a verdict.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def out_of_time(number: int, frame: Any) -> None:
    raise Timeout


def run_job(job: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Calls the function of the code on the inputs of each group of tests until one raises.

    The code is executed once for each group, in a module of its own.
    """
    signal.signal(signal.SIGPROF, out_of_time)
    signal.signal(signal.SIGALRM, out_of_time)
    index = 0
    for group in job["groups"]:
        started = time.process_time()
        try:
            with at_most(group["load_limit"]):
                scope: dict[str, Any] = {}
                exec(job["code"], scope)
                function = scope[job["entry_point"]]
            for arguments, limit in zip(group["inputs"], group["limits"], strict=True):
                arguments = decode(arguments)
                started = time.process_time()
                try:
                    with at_most(limit):
                        text = json.dumps(encode(function(*arguments), job["most"]))
                except TooLarge:
                    text = ""
                message = {"value": text} if 0 < len(text) <= job["most"] else {"large": True}
                send({"i": index, "t": time.process_time() - started} | message)
                index += 1
        except Timeout:
            return send({"i": index, "t": time.process_time() - started, "timeout": True})
        except BaseException as error:  # SystemExit and KeyboardInterrupt are failures too
            return send(
                {
                    "i": index,
                    "t": time.process_time() - started,
                    "error": f"{type(error).__name__}: {error}"[:200],
                }
            )


def main() -> None:
    config = json.loads(sys.argv[1])
    channel = os.dup(1)

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(channel, data) :]

    try:
        if config["namespaces"]:
            enter_namespaces(config)
        else:
            os.chdir("/tmp")
        give_up_rights(config)
        job = json.load(sys.stdin)
    except (OSError, KeyError, ValueError) as error:
        send({"setup": str(error)})
        os._exit(1)
    for number in (0, 1):  # stdin and stdout become stderr, which is /dev/null
        os.dup2(2, number)
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    sys.path += config["packages"]
    send({"ready": True})
    run_job(job, send)
    os._exit(0)  # without atexit: what the code has registered there is not wanted


if __name__ == "__main__":
    main()
