"""Which system calls the code in the sandbox may make.

Standard library only: child.py imports it inside the sandbox.
"""

import struct

# linux/seccomp.h, linux/audit.h, linux/sched.h
SECCOMP_ALLOW, SECCOMP_ERRNO, SECCOMP_KILL_PROCESS = 0x7FFF0000, 0x50000, 0x80000000
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
CLONE_THREAD = 0x10000
EPERM, ENOSYS = 1, 38
# linux/bpf_common.h: LD|W|ABS, JMP|JEQ, JMP|JGE, JMP|JSET, RET
LOAD, EQUAL, AT_LEAST, ANY_BIT, GIVE = 0x20, 0x15, 0x35, 0x45, 0x06

# What a process without capabilities could still use to reach others, to multiply, or to hold
# memory that no limit counts; new user namespaces among them, which would give capabilities back.
# (asm/unistd_64.h; asm-generic/unistd.h)
DENIED = {
    "x86_64": {
        "socket": 41,
        "execve": 59,
        "execveat": 322,
        "fork": 57,
        "vfork": 58,
        "unshare": 272,
        "setns": 308,
        "ptrace": 101,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "pidfd_open": 434,
        "pidfd_getfd": 438,
        "kcmp": 312,
        "bpf": 321,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "io_uring_setup": 425,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "memfd_create": 319,
        "memfd_secret": 447,
        "shmget": 29,
        "msgget": 68,
        "semget": 64,
        "mq_open": 240,
    },
    "aarch64": {
        "socket": 198,
        "execve": 221,
        "execveat": 281,
        "unshare": 97,
        "setns": 268,
        "ptrace": 117,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "pidfd_open": 434,
        "pidfd_getfd": 438,
        "kcmp": 272,
        "bpf": 280,
        "perf_event_open": 241,
        "userfaultfd": 282,
        "io_uring_setup": 425,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "memfd_create": 279,
        "memfd_secret": 447,
        "shmget": 194,
        "msgget": 186,
        "semget": 190,
        "mq_open": 180,
    },
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435


def seccomp_filter(machine: str) -> bytes:
    """The classic-BPF program that filters system calls.

    Calls of another architecture end the process, DENIED ones fail with EPERM, and no process can
    be made, only threads.
    """
    refuse = SECCOMP_ERRNO | EPERM
    lines: list[tuple[int, int, int, int]] = [  # code, lines to skip if so, if not so, operand
        (LOAD, 0, 0, 4),  # seccomp_data.arch
        (EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (GIVE, 0, 0, SECCOMP_KILL_PROCESS),
        (LOAD, 0, 0, 0),  # seccomp_data.nr
        (AT_LEAST, 0, 1, X32_BIT),
        (GIVE, 0, 0, SECCOMP_KILL_PROCESS),
        # its flags lie in memory, which a filter cannot read; libc then uses clone
        (EQUAL, 0, 1, CLONE3),
        (GIVE, 0, 0, SECCOMP_ERRNO | ENOSYS),
    ]
    for number in DENIED[machine].values():
        lines += [(EQUAL, 0, 1, number), (GIVE, 0, 0, refuse)]
    lines += [
        (EQUAL, 0, 3, CLONE[machine]),
        (LOAD, 0, 0, 16),  # seccomp_data.args[0], low half
        (ANY_BIT, 1, 0, CLONE_THREAD),
        (GIVE, 0, 0, refuse),
        (GIVE, 0, 0, SECCOMP_ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
