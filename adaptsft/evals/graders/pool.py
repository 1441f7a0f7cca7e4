"""Grading in processes that can be killed.

A worker is this file run as a program: it reads a record per line from stdin and writes a verdict
per line to stdout, both JSON, so that nothing from a worker is ever unpickled. Its time limit is
the kernel's: a timer's signal with the default action ends the process in whatever code it hangs,
also when its parent is gone. The parent then starts another one. The limit is on CPU time, so that
verdicts do not depend on what else the machine does.
"""

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from adaptsft.errors import DataError
from adaptsft.evals.graders.registry import GRADERS, Grader

# Bytes of address space of a worker: 10^{10^{10}} must not exhaust the machine's memory before its
# time is up.
MEMORY = 4 << 30
WALL = 30.0  # seconds on the clock that a record may take, should it wait and not compute
READY = b"ready\n"
FAILED = {"correct": False, "extracted": "", "unparsed": False, "timeout": False}


class Worker:
    """One process at a time, started when a record comes, and again after it was killed."""

    def __init__(self, grader: Grader) -> None:
        self.grader = grader
        self.process: subprocess.Popen[bytes] | None = None

    def grade(self, record: dict) -> dict:
        """The verdict on a record."""
        try:
            self.grader.check(record)
            request = json.dumps(record).encode() + b"\n"
        except (DataError, RecursionError) as error:
            return self.grader.ungraded(str(error))
        process = self.process if self.process and self.process.poll() is None else self._start()
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has died: there is no answer either
            process.stdin.write(request)
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer.endswith(b"\n"):  # of one that died while it wrote there is a part
            code = process.wait()
            if code in (-signal.SIGPROF, -signal.SIGALRM):
                return FAILED | {"timeout": True}
            return FAILED | {"error": f"the grading process ended with exit code {code}"}
        return json.loads(answer)

    def _start(self) -> subprocess.Popen[bytes]:
        self.close()
        command = [sys.executable, "-W", "ignore", "-m", __name__]
        command += [self.grader.name, str(self.grader.seconds)]
        path = os.pathsep.join(folder for folder in sys.path if folder)
        environment = os.environ | {"PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdout
        if self.process.stdout.readline() != READY:  # its traceback is on stderr
            raise RuntimeError(f"{' '.join(command)} does not start")
        return self.process

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()


def grade_isolated(
    grader: Grader, records: list[dict], workers: int, progress: Callable[[int], object] | None
) -> list[dict]:
    """See grade_all. One thread per worker hands out the records."""
    count = max(1, min(workers or os.cpu_count() or 1, len(records)))
    everyone = [Worker(grader) for _ in range(count)]
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in everyone:
        idle.put(worker)

    def grade(record: dict) -> dict:
        worker = idle.get()
        try:
            return worker.grade(record)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(count)
    try:
        verdicts = []
        for verdict in threads.map(grade, records):
            verdicts.append(verdict)
            if progress:
                progress(1)
        return verdicts
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in everyone:
            worker.close()


def forbid(event: str, arguments: tuple) -> None:
    """An audit hook that stops a model's output, should a parser run it.

    A worker has nothing to write, to start or to connect to.
    """
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & writing
    reads = event in ("os.listdir", "os.scandir")  # of importlib
    acts = event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes.")) and not reads
    if writes or acts:
        raise PermissionError(f"a grading process may not {event}")


def set_timers(seconds: float) -> None:
    """Start both clocks, or stop them with 0."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL if seconds else 0)


def serve(name: str, seconds: float) -> None:
    """A worker: grades the records on stdin until it is closed."""
    grader = GRADERS[name]
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    # what libraries print must not reach the parent as a verdict
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    verdict_on = grader.verdict
    # loads the parsers and sympy's simplifier, so that their time is not that of the first answer
    verdict_on({"gold": "2k+2", "prediction": "2(k+1)"})
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.addaudithook(forbid)
    channel.write(READY)
    for line in sys.stdin:
        set_timers(seconds)
        try:
            verdict = {**verdict_on(json.loads(line)), "timeout": False}
        except DataError as error:
            verdict = grader.ungraded(str(error))
        except Exception as error:  # sympy gave up on this answer; the others must still be graded
            verdict = FAILED | {"error": f"{type(error).__name__}: {error}"[:200]}
        set_timers(0)
        channel.write(json.dumps(verdict).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
