"""The examples of docs/cluster, run as far as one machine can: stubs stand for srun and scontrol, two torchrun agents for two nodes.

What they cannot show: that SLURM delivers the signal and requeues, and that Kubernetes starts the pods.
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

from adaptsft.config.load import save_config
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.distributed import checkpoint
from tests.conftest import REPO
from tests.runs import PROCESSES, metrics_of, small_config

CLUSTER = REPO / "docs" / "cluster"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}",
}
SRUN = """#!/bin/bash
# two tasks on this machine, as srun would start one on each of two nodes; it passes on the signals it receives, as srun does
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


def arguments(config: Config) -> list[str]:
    file = Path(f"{config.run_dir}.yaml")
    save_config(config, file)
    return [str(file)]


def two_ranks_config(folder: Path, model: Path, name: str) -> Config:
    return small_config(folder, model, name, train__max_steps=40, checkpoint__every=7, log__every=1)


def _rank(config: Config, rank: int, port: int) -> None:
    from adaptsft.train import train

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
        rank.join(120)
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


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.005)


@contextlib.contextmanager
def started(
    command: list[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen]:
    """A process whose descendants do not outlive the test."""
    with log.open("a") as output:
        process = subprocess.Popen(
            command, cwd=REPO, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_the_slurm_job_saves_when_asked_requeues_itself_and_goes_on(folder, reference, tiny_model):
    stubs, requeued, log = folder / "stubs", folder / "requeued", folder / "slurm.log"
    stubs.mkdir()
    torchrun = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", torchrun)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    config = two_ranks_config(folder, tiny_model(), "slurm")
    job = free_port(20000, 29999) - 20000  # the script makes its port of the job's number
    environment = ENVIRONMENT | {
        "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
        "REQUEUED": str(requeued),
    }
    environment |= {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    command = ["bash", str(CLUSTER / "train.sbatch"), *arguments(config)]

    with started(command, log, environment) as batch:
        wait_for(lambda: steps_recorded(config) >= 2, batch, log)
        batch.send_signal(signal.SIGUSR1)  # to the batch script alone, as --signal=B:USR1 does
        assert batch.wait(60) == 75, log.read_text()[-4000:]
    saved = checkpoint.complete_checkpoints(Path(config.run_dir) / "checkpoints")[-1]
    checkpoint.verify(saved)
    assert requeued.read_text() == f"requeue {job}\n"
    assert f"asked to stop: saved after step {int(saved.name[5:])}" in log.read_text()
    assert steps_recorded(config) == int(saved.name[5:]) < 40

    with started(command, log, environment) as batch:  # what SLURM does with a requeued job
        assert batch.wait(120) == 0, log.read_text()[-4000:]
    assert requeued.read_text() == f"requeue {job}\n", "a run that is done is not requeued"
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
    done = subprocess.run(
        ["bash", str(CLUSTER / "train.sbatch"), "no.yaml"], env=environment, timeout=60
    )
    assert done.returncode == 2 and not requeued.exists()


def test_a_killed_rank_is_restarted_and_the_run_ends_bitwise_as_if_it_had_not_been(
    folder, reference, tiny_model
):
    config, log = two_ranks_config(folder, tiny_model(), "elastic"), folder / "elastic.log"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "2",
    ]
    environment = ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # see docs/cluster.md
    with started(
        [*torchrun, "-m", "adaptsft.train", *arguments(config)], log, environment
    ) as agent:
        wait_for(
            lambda: steps_recorded(config) >= 10, agent, log
        )  # beyond the checkpoint of step 7
        ranks = [
            int(pid)
            for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        ]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert agent.wait(120) == 0, log.read_text()[-4000:]
    assert "Signal 9 (SIGKILL)" in log.read_text() or "exitcode: -9" in log.read_text()
    assert_same_run(config, reference)


def test_the_slurm_script_leaves_time_to_save():
    text = (CLUSTER / "train.sbatch").read_text()
    assert subprocess.run(["bash", "-n", str(CLUSTER / "train.sbatch")]).returncode == 0
    before_limit = int(text.split("--signal=B:USR1@")[1].split()[0])
    assert 30 < int(text.split("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=")[1].split()[0]) < before_limit


# names that the operator's CRD (kubeflow.org/v1) knows; Kubernetes drops others without a word
KNOWN = {
    "spec": {"elasticPolicy", "nprocPerNode", "pytorchReplicaSpecs", "runPolicy"},
    "elasticPolicy": {
        "maxReplicas", "maxRestarts", "metrics", "minReplicas", "nProcPerNode", "rdzvBackend", "rdzvConf", "rdzvHost", "rdzvId", "rdzvPort",
        "standalone",
    },
    "runPolicy": {"activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy", "schedulingPolicy", "suspend",
                  "ttlSecondsAfterFinished"},
    "Worker": {"replicas", "restartPolicy", "template"},
}  # fmt: skip


def test_the_pytorchjob_is_what_operator_torchrun_and_adaptsft_expect(monkeypatch):
    from torch.distributed.run import get_args_parser

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
        assert found[part].keys() <= known, part
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch" and worker["restartPolicy"] == "OnFailure"
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (
        30
        < int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        < pod["terminationGracePeriodSeconds"]
    )

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
