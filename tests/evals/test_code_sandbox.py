"""Programs that try to get out, or to look right without being it.

Every escape here has worked against a grader somewhere.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from adaptsft.errors import ConfigError
from adaptsft.evals.code import sandbox, values
from adaptsft.evals.code.sandbox import Limits, RunError
from tests.conftest import REPO

PROBLEMS = (
    {kind: sandbox.probe(kind) for kind in ("bubblewrap", "namespaces")}
    if sys.platform == "linux"
    else {}
)
KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            problem is not None, reason=f"{kind} does not work here: {problem}"
        ),
    )
    for kind, problem in PROBLEMS.items()
]
# time enough for a busy machine: tests of time have limits of their own
SMALL = Limits(memory=2**29, cpu=60, wall=600.0)
MESSAGE = 2**16


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def outcome(
    kind: str, code: str, *arguments: object, limits: Limits = SMALL, seconds: float = 6.0
) -> object:
    """What f(*arguments) returned in the sandbox, or {"error"/"timeout": …}. Raises RunError."""
    group = {
        "inputs": [[values.encode(argument) for argument in arguments]],
        "limits": [seconds],
        "load_limit": seconds,
    }
    job = json.dumps({"code": code, "entry_point": "f", "groups": [group], "most": 10**7}).encode()
    (message,) = sandbox.run(job, [MESSAGE], limits, kind=kind)
    return values.decode(json.loads(message["value"])) if "value" in message else message


def failed(result: object, *names: str) -> bool:
    """Whether the sandbox's answer is one of these exceptions."""
    return isinstance(result, dict) and str(result.get("error")).split(":")[0] in names


def test_an_honest_program_runs(kind: str) -> None:
    assert outcome(
        kind, "import numpy, re\ndef f(x): return x + [numpy.float64(0.5), {1: (2, {3})}]", [1]
    ) == [1, 0.5, {1: (2, {3})}]


def test_files_and_secrets_of_the_host_are_out_of_reach(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do not leak")
    secret = tmp_path / "secret"
    secret.write_text("do not leak")
    tmp_path.chmod(0o777)
    write = (
        "import os\n"
        "def f(path):\n"
        " file = os.open(path, os.O_CREAT | os.O_WRONLY)\n"
        " os.write(file, os.environ.get('SECRET_TOKEN', '').encode())"
    )
    assert failed(outcome(kind, write, str(tmp_path / "written")), "FileNotFoundError")
    assert os.listdir(tmp_path) == ["secret"]
    assert failed(
        outcome(kind, "def f(path): return open(path).read()", str(secret)), "FileNotFoundError"
    )
    look = (
        "import os\n"
        "def f():\n"
        " return [dict(os.environ), os.listdir('/'), os.listdir('/tmp'), os.getuid()]"
    )
    seen = outcome(kind, look)
    assert isinstance(seen, list) and "do not leak" not in str(seen) and seen[3] != 0
    # where the checkout or Python lie under /tmp, the folders that lead to them are there
    visible = [Path(place).parts for place in sandbox.visible()[0]]
    assert set(seen[2]) <= {parts[2] for parts in visible if parts[:2] == ("/", "tmp")}
    assert not {"proc", "sys", "home", "var", "mnt"} & set(seen[1])
    for place in (os.__file__, sandbox.__file__):
        assert failed(
            outcome(kind, "def f(path): open(path, 'a')", place), "PermissionError", "OSError"
        )


def test_no_network(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import socket\ndef f(port): socket.create_connection(('127.0.0.1', port), timeout=1)"
        )
        assert failed(outcome(kind, code, server.getsockname()[1]), "PermissionError")
    assert failed(
        outcome(kind, "import socket\ndef f(): socket.socket(socket.AF_UNIX)"), "PermissionError"
    )


@pytest.mark.parametrize(
    "attempt",
    [
        "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
        "os.execv(sys.executable, [sys.executable])",
        "importlib.reload(os).fork()",  # what a guard has overwritten, a reload brings back
        "subprocess.run([sys.executable, '-c', ''])",
        "[os.fork() for _ in iter(int, 1)]",
        "os.setuid(0)",
        "os.chroot('/tmp')",
    ],
)
def test_no_processes_and_no_rights(kind: str, attempt: str) -> None:
    code = f"import importlib, os, subprocess, sys\ndef f(): {attempt}"
    # EPERM; EINVAL where user 0 does not even exist
    assert failed(outcome(kind, code), "PermissionError", "OSError")


@pytest.mark.parametrize(
    "call",
    [
        "unshare(0x10000000)",
        "ptrace(16, 1, 0, 0)",
        "mount(b'none', b'/tmp', b'tmpfs', 0, 0)",
        "process_vm_readv(1, 0, 0, 0, 0, 0)",
    ],
)
def test_no_system_calls_that_undo_the_isolation(kind: str, call: str) -> None:
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"def f(): return [libc.{call}, ctypes.get_errno()]"
    )
    assert outcome(kind, code) == [-1, 1]  # EPERM


def test_no_process_of_the_host_can_be_killed(kind: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        code = """
import os
def f(pids):
    for pid in [*pids, os.getppid(), -1]:
        try:
            os.kill(pid, 9)
        except OSError:
            pass
    return "still here"
"""
        with suppress(RunError):  # it may well have killed itself
            assert outcome(kind, code, [bystander.pid, os.getpid()]) == "still here"
        assert bystander.poll() is None
        bystander.kill()


def test_memory_threads_and_files_are_limited(kind: str) -> None:
    assert failed(
        outcome(kind, "def f():\n x = []\n while True: x.append(bytearray(2**24))"), "MemoryError"
    )
    # not Thread.start, which waits forever for a thread that has no memory left to begin
    grow = (
        "import _thread, time\n"
        "_thread.stack_size(2**26)\n"
        "def f():\n"
        " for _ in range(10**4): _thread.start_new_thread(time.sleep, (60,))"
    )
    assert failed(outcome(kind, grow), "RuntimeError", "MemoryError")
    fill = "def f():\n for n in range(100): open(f'/tmp/{n}', 'wb', 0).write(bytes(2**24))"
    assert failed(outcome(kind, fill), "OSError")


def test_output_is_limited(kind: str) -> None:
    noisy = (
        "import os\n"
        "def f():\n"
        " for _ in range(10**4): print('x' * 1000); os.write(2, b'x' * 1000)\n"
        " return 1"
    )
    assert outcome(kind, noisy) == 1
    with pytest.raises(RunError, match="output too large"):
        outcome(kind, "def f(): return 'x' * 10**6")
    flood = (
        "import os\n"
        "def f():\n"
        " while True:\n"
        "  for number in range(64):\n"
        "   try: os.write(number, b'x' * 10**5)\n"
        "   except OSError: pass"
    )
    with pytest.raises(RunError, match="output too large"):
        outcome(kind, flood)


def test_time_is_limited(kind: str) -> None:
    loop = "def f():\n while True: pass"
    result = outcome(kind, loop, seconds=0.2)
    assert isinstance(result, dict) and result["timeout"]
    asleep = "import time\ndef f(): time.sleep(100)"
    result = outcome(kind, asleep, seconds=0.05)
    assert isinstance(result, dict) and result["timeout"]
    deaf = (
        "import signal\n"
        "for n in range(1, 32):\n"
        " try: signal.signal(n, signal.SIG_IGN)\n"
        " except (OSError, ValueError): pass\n"
    )
    with pytest.raises(RunError, match=r"timeout|CPU time"):
        outcome(kind, deaf + loop, limits=Limits(memory=2**29, cpu=1, wall=20.0), seconds=0.2)
    with pytest.raises(RunError, match="timeout"):
        outcome(kind, deaf + asleep, limits=Limits(memory=2**29, cpu=5, wall=1.0), seconds=0.05)


def alive(mark: int) -> list[str]:
    """Processes that were started with this many bytes of memory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if f'"memory": {mark}' in text:
            found.append(path.parent.name)
    return found


@pytest.mark.parametrize("grader_dies", [False, True])
def test_nothing_is_left_behind(kind: str, grader_dies: bool) -> None:
    mark = 2**29 + 4096 * (os.getpid() % 5000) + 2 * grader_dies + (kind == "bubblewrap")
    code = "import os, time\\nos.setsid()\\ndef f(): time.sleep(100)"
    program = f"""
import json
from adaptsft.evals.code.sandbox import Limits, run
group = {{"inputs": [[]], "limits": [50.0], "load_limit": 50.0}}
job = json.dumps({{"code": "{code}", "entry_point": "f", "groups": [group], "most": 100}}).encode()
limits = Limits(memory={mark}, cpu=5, wall={60.0 if grader_dies else 1.0})
list(run(job, [100], limits, kind="{kind}"))
"""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL
    ) as grader:
        while not alive(mark):
            assert grader.poll() is None
            time.sleep(0.02)
        if grader_dies:
            time.sleep(0.2)
            grader.kill()
        grader.wait()
    deadline = time.monotonic() + 300  # a last resort: the kernel ends them at once
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(mark) == []


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can take its own rights away with setpriv",
)
def test_without_isolation_nothing_is_run() -> None:
    """Root without CAP_SYS_ADMIN, as in a container, can neither unshare nor run bubblewrap."""
    program = (
        "from adaptsft.evals.code import sandbox\n"
        "try: sandbox.isolation()\n"
        "except sandbox.ConfigError as error: print(error)"
    )
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    command = [*drop, sys.executable, "-c", program]
    result = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "namespaces: " in result.stdout
        and "install bubblewrap" in result.stdout
        and "Operation not permitted" in result.stdout
    )


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    sandbox.isolation.cache_clear()
    with pytest.raises(ConfigError, match="needs Linux"):
        sandbox.isolation()
    sandbox.isolation.cache_clear()


def test_exit_codes_are_put_into_words() -> None:
    assert sandbox._ended(128 + signal.SIGXCPU) == "timeout"
    assert sandbox._ended(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert sandbox._ended(0) == "exited with 0 before its last test"
