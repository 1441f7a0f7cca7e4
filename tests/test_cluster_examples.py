"""The examples of docs/cluster, run as far as one machine can: stubs stand for srun and scontrol,
two torchrun agents for two nodes.

What they cannot show: that SLURM delivers the signal and requeues, and that Kubernetes starts the
pods.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from adaptsft.config.load import save_config
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.distributed import checkpoint
from adaptsft.train import train
from tests.conftest import REPO
from tests.runs import PROCESSES, metrics_of, small_config

CLUSTER = REPO / "docs" / "cluster"
PATIENCE = 600  # seconds without any progress after which a job counts as hung
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}",
}
SRUN = """#!/bin/bash
# two tasks on this machine, as srun would start one on each of two nodes; it passes on the signals
# it receives, as srun does
"$@" & first=$!
"$@" & second=$!
trap 'kill -USR1 $first $second' USR1
trap 'kill $first $second' TERM
wait $first; one=$?
[ $one -gt 128 ] && { wait $first; one=$?; }
wait $second; two=$?
exit $((one > two ? one : two))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


def free_port(begin: int, end: int) -> int:
    for port in range(begin + os.getpid() % 5000, end):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def two_ranks_config(folder: Path, model: Path, name: str) -> Config:
    settings = {"train__max_steps": 40, "train__global_batch_size": 2, "log__every": 1}
    return small_config(folder, model, name, checkpoint__every=7, **settings)


def _rank(config: Config, rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def reference(folder, tiny_model) -> Config:
    """The same run on two ranks, never interrupted."""
    config, port = two_ranks_config(folder, tiny_model(), "reference"), free_port(35000, 45000)
    ranks = [PROCESSES.Process(target=_rank, args=(config, rank, port)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(PATIENCE)
        assert rank.exitcode == 0
    return config


def assert_same_run(config: Config, reference: Config) -> None:
    assert metrics_of(config) == metrics_of(reference)
    ours, theirs = (
        load_file(Path(c.run_dir) / "final" / "model.safetensors") for c in (config, reference)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def steps_recorded(config: Config) -> int:
    file = Path(config.run_dir) / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


class Job:
    """The batch script in a process of its own. However busy the machine is, waiting for it ends
    only when it does, or when neither its log nor its run folder has changed for PATIENCE seconds.
    """

    def __init__(self, config: Config, log: Path, environment: dict[str, str]):
        file = Path(f"{config.run_dir}.yaml")
        save_config(config, file)
        self.run, self.log = Path(config.run_dir), log
        with log.open("a") as output:
            self.process = subprocess.Popen(
                ["bash", str(CLUSTER / "train.sbatch"), str(file)],
                cwd=REPO,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        for _ in self._polls():
            if condition():
                return
            assert self.process.poll() is None, self.log.read_text()[-4000:]

    def exit_code(self) -> int:
        return next(code for _ in self._polls() if (code := self.process.poll()) is not None)

    def _polls(self) -> Iterator[None]:
        seen, since = self._traces(), time.monotonic()
        while True:
            for _ in range(200):  # the traces of many files only now and then
                yield
                time.sleep(0.005)
            if (now := self._traces()) != seen:
                seen, since = now, time.monotonic()
            assert time.monotonic() - since < PATIENCE, self.log.read_text()[-4000:]

    def ranks(self) -> list[int]:
        """Process ids of the ranks: what the torchruns below the script have started."""
        found, family = [], [self.process.pid]
        while family:
            pid = family.pop()
            with contextlib.suppress(OSError):  # it has ended
                words = set(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
                if "adaptsft.train" in words and not words & {"torchrun", "torch.distributed.run"}:
                    found.append(pid)
                family += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def _traces(self) -> list[tuple[str, int]]:
        files = [self.log, *self.run.rglob("*")]
        with contextlib.suppress(OSError):  # a file was removed meanwhile
            return [(str(file), file.stat().st_mtime_ns) for file in files]
        return []


@contextlib.contextmanager
def started(config: Config, log: Path, environment: dict[str, str]) -> Iterator[Job]:
    """A job whose descendants do not outlive the test."""
    job = Job(config, log, environment)
    try:
        yield job
    finally:
        if job.process.poll() is None:
            ranks = job.ranks()
            job.process.terminate()
            job.process.wait(PATIENCE)
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.nightly
def test_the_slurm_job_saves_when_asked_requeues_itself_and_survives_a_killed_rank(
    folder, reference, tiny_model
):
    """It ends bitwise as a run that nothing happened to."""
    stubs, requeued, log = folder / "stubs", folder / "requeued", folder / "slurm.log"
    stubs.mkdir()
    torchrun = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", torchrun)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    config = two_ranks_config(folder, tiny_model(), "slurm")
    number = free_port(20000, 29999) - 20000  # the script makes its port of the job's number
    environment = ENVIRONMENT | {
        "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
        "REQUEUED": str(requeued),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }

    def newest() -> int:
        complete = checkpoint.complete_checkpoints(Path(config.run_dir) / "checkpoints")
        return int(complete[-1].name.removeprefix("step_")) if complete else 0

    with started(config, log, environment) as job:
        job.wait_until(lambda: steps_recorded(config) >= 2)
        job.process.send_signal(signal.SIGUSR1)  # to the batch script alone: --signal=B:USR1
        assert job.exit_code() == 75, log.read_text()[-4000:]
    saved = newest()
    checkpoint.verify(Path(config.run_dir) / "checkpoints" / f"step_{saved:08}")
    assert requeued.read_text() == f"requeue {number}\n"
    assert f"asked to stop: saved after step {saved}" in log.read_text()
    assert steps_recorded(config) == saved < 40

    with started(config, log, environment) as job:  # what SLURM does with a requeued job
        job.wait_until(lambda: newest() > saved)
        ranks = job.ranks()
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert job.exit_code() == 0, log.read_text()[-4000:]
    text = log.read_text()
    assert "Signal 9 (SIGKILL)" in text or "exitcode: -9" in text
    assert text.count("resuming from") == 2, "once when requeued, once when restarted"
    assert requeued.read_text() == f"requeue {number}\n", "a run that is done is not requeued"
    assert_same_run(config, reference)


def test_the_slurm_job_does_not_requeue_an_error(folder):
    requeued = folder / "requeued_error"
    (folder / "failing").mkdir()
    for name, text in (("srun", "#!/bin/bash\nexit 2\n"), ("scontrol", SCONTROL)):
        (folder / "failing" / name).write_text(text)
        (folder / "failing" / name).chmod(0o755)
    environment = ENVIRONMENT | {
        "PATH": f"{folder / 'failing'}{os.pathsep}{os.environ['PATH']}",
        "REQUEUED": str(requeued),
    }
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node0", "SLURM_JOB_NUM_NODES": "1"}
    command = ["bash", str(CLUSTER / "train.sbatch"), "no.yaml"]
    done = subprocess.run(command, env=environment, timeout=PATIENCE)
    assert done.returncode == 2 and not requeued.exists()


def test_the_slurm_script_leaves_time_to_save():
    text = (CLUSTER / "train.sbatch").read_text()
    assert subprocess.run(["bash", "-n", str(CLUSTER / "train.sbatch")]).returncode == 0
    before_limit = int(text.split("--signal=B:USR1@")[1].split()[0])
    assert 30 < int(text.split("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=")[1].split()[0]) < before_limit


# names that the operator's CRD (kubeflow.org/v1) knows; Kubernetes drops others without a word
KNOWN = {
    "spec": "elasticPolicy nprocPerNode pytorchReplicaSpecs runPolicy",
    "elasticPolicy": "maxReplicas maxRestarts metrics minReplicas nProcPerNode rdzvBackend rdzvConf"
    " rdzvHost rdzvId rdzvPort standalone",
    "runPolicy": "activeDeadlineSeconds backoffLimit cleanPodPolicy managedBy schedulingPolicy"
    " suspend ttlSecondsAfterFinished",
    "Worker": "replicas restartPolicy template",
}


def test_the_pytorchjob_is_what_operator_torchrun_and_adaptsft_expect(monkeypatch):
    job = yaml.safe_load((CLUSTER / "pytorchjob.yaml").read_text())
    spec, worker = job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    found = {
        "spec": spec,
        "elasticPolicy": spec["elasticPolicy"],
        "runPolicy": spec["runPolicy"],
        "Worker": worker,
    }
    for part, known in KNOWN.items():
        assert found[part].keys() <= set(known.split()), part
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch" and worker["restartPolicy"] == "OnFailure"
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    to_save = int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 30 < to_save < pod["terminationGracePeriodSeconds"]

    # the command, with the variables that the operator adds, as torchrun and adaptsft read it
    policy = spec["elasticPolicy"]
    monkeypatch.setenv("PET_NNODES", f"{worker['replicas']}:{worker['replicas']}")
    monkeypatch.setenv("PET_RDZV_BACKEND", policy["rdzvBackend"])
    monkeypatch.setenv("PET_MAX_RESTARTS", str(policy["maxRestarts"]))
    parsed = get_args_parser().parse_args([*container["command"][1:], *container["args"]])
    assert (parsed.nnodes, parsed.rdzv_backend, int(parsed.max_restarts)) == ("4:4", "c10d", 10)
    assert parsed.module and parsed.training_script == "adaptsft.train"
    assert int(parsed.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    file, *settings = parsed.training_script_args
    assert Path(file).name in {path.name for path in (REPO / "configs").iterdir()}
    config = load_config([str(REPO / "configs" / Path(file).name), *settings])
    assert worker["replicas"] % config.train.replicas == 0
