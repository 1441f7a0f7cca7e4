"""Runs inside the sandbox: shuts itself in, reads one job from stdin, calls one function on many
inputs, writes what came back.

    python child.py CONFIG        (started by sandbox.py alone; CONFIG is JSON)

Three processes where there is no bubblewrap: the launcher makes the namespaces; process 1 in them
builds a file system of a few read-only folders and waits, so that the kernel ends everything when
it ends; process 2, the worker, gives up its user, its capabilities and most system calls, and only
then reads the job. Under bubblewrap only the worker is ours. Standard library only; nothing here is
trusted by the grader: whatever runs below may rewrite this module, and can then only lie about what
its own function returned.

Out, on the pipe that was stdout, a JSON object a line: {"ready": true} before the code is run, or
{"setup": message} where it could not be shut in; then {"i": test, "t": CPU seconds, "value":
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

from values import TooLarge, decode, encode  # pyrefly: ignore  (beside this file, which is run as a script)

NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/seccomp.h, linux/filter.h, linux/audit.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
CLONE_THREAD = 0x10000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, AT_RECURSIVE, AT_FDCWD = (
    1,
    2,
    4,
    0x8000,
    -100,
)
SYS_MOUNT_SETATTR = 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_ERRNO, SECCOMP_KILL_PROCESS = (
    2,
    0x7FFF0000,
    0x50000,
    0x80000000,
)
EPERM, ENOSYS = 1, 38

# What a process without capabilities could still use to reach others, to multiply, or to hold
# memory that no limit counts; new user namespaces among them, which would give capabilities back.
# (asm/unistd_64.h; asm-generic/unistd.h)
DENIED = {
    "x86_64": {
        "socket": 41, "execve": 59, "execveat": 322, "fork": 57, "vfork": 58, "unshare": 272, "setns": 308, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_open": 434, "pidfd_getfd": 438, "kcmp": 312, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "add_key": 248, "request_key": 249, "keyctl": 250,
        "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240,
    },
    "aarch64": {
        "socket": 198, "execve": 221, "execveat": 281, "unshare": 97, "setns": 268, "ptrace": 117,
        "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_open": 434, "pidfd_getfd": 438, "kcmp": 272, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "add_key": 217, "request_key": 218, "keyctl": 219,
        "memfd_create": 279, "memfd_secret": 447, "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180,
    },
}  # fmt: skip
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000


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
    """Runs `run` in a new process, waits for it, and ends as it ended (128 + signal where one ended
    it).
    """
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
    """No user, no capability, no way to regain one, little memory and time, and no system call of
    DENIED.
    """
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
    resource.setrlimit(
        resource.RLIMIT_CPU, (config["cpu"], config["cpu"] + 1)
    )  # SIGXCPU, and SIGKILL for those who ignore it
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, nothing = (
        struct.pack("Ii", 0x20080522, 0),
        bytes(24),
    )  # version 3 of linux/capability.h, this process
    call("capset", LIBC.capset(header, nothing))
    call("prctl", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    program = seccomp_filter(platform.machine())
    code = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    call(
        "seccomp",
        LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(descriptor), 0, 0),
    )


def seccomp_filter(machine: str) -> bytes:
    """The classic-BPF program: another architecture's calls end the process, DENIED ones fail with
    EPERM, and only threads may be made.
    """
    load, equal, at_least, any_bit, give = (
        0x20,
        0x15,
        0x35,
        0x45,
        0x06,
    )  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ, JMP|JGE, JMP|JSET, RET
    refuse = SECCOMP_ERRNO | EPERM
    lines: list[tuple[int, int, int, int]] = [  # code, lines to skip if so, if not so, operand
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (give, 0, 0, SECCOMP_KILL_PROCESS),
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, 0, 1, X32_BIT),
        (give, 0, 0, SECCOMP_KILL_PROCESS),
        (
            equal,
            0,
            1,
            CLONE3,
        ),  # its flags lie in memory, which a filter cannot read; libc then uses clone
        (give, 0, 0, SECCOMP_ERRNO | ENOSYS),
    ]
    for number in DENIED[machine].values():
        lines += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    lines += [
        (equal, 0, 3, CLONE[machine]),
        (load, 0, 0, 16),  # seccomp_data.args[0], low half
        (any_bit, 1, 0, CLONE_THREAD),
        (give, 0, 0, refuse),
        (give, 0, 0, SECCOMP_ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises Timeout after `seconds` of CPU, or ten times as many on the clock: another job on the
    machine must not change a verdict.
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
    """Executes the code once for each group of tests, in a module of its own, and calls its
    function on the inputs until one raises.
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
