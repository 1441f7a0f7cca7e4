"""One rank is asked to stop, computes NaN, disagrees, hangs or raises: all ranks end or continue
together."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from adaptsft.config.load import save_config
from tests.conftest import REPO
from tests.faults.ranks import HUNG, STOPPED, Started, live
from tests.runs import metrics_of, saved_state

# Place, and the last step that may be saved: the request is part of the step's all-reduce and is
# read one step later, so that no step waits for the device; one that comes behind the all-reduce is
# part of the next.
SIGNALS = [
    ({"rank": 1, "at": "step", "step": 3}, 4),
    ({"rank": 0, "at": "eval", "step": 2, "call": 2}, 4),
    ({"rank": 1, "at": "save", "step": 2, "op": 3}, 4),
    ({"rank": 0, "at": "save", "step": 2, "op": 12}, 4),
    ({"rank": 0, "at": "all_reduce", "step": 3}, 5),
    ({"rank": 1, "at": "optimizer", "step": 3}, 5),
]


@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.faults)])
def test_a_signal_to_one_rank_saves_and_stops_all(make_config, same, tally, which):
    for number, (place, latest) in enumerate(SIGNALS[:1] if which == "some" else SIGNALS):
        signal = ("SIGTERM", "SIGUSR1")[number % 2]
        where = {"eval": "an evaluation", "save": "a save"}.get(place["at"], "a step")
        with tally(f"SIGTERM or SIGUSR1 to one rank in {where}") as trial:
            trial.begin()
            config = make_config(f"signal-{which}{number}")
            life = live(config, place | {"do": signal})
            assert life.codes == [STOPPED] * 2, (place, life.codes, life.stderr[-3000:])
            assert place["step"] <= life.newest <= latest and life.newest == life.steps[-1]
            last = live(config)
            assert last.codes == [0, 0], last.stderr[-3000:]
            trial.resumed(life, last)
            same(config)


@pytest.mark.faults
def test_a_signal_in_the_last_step_comes_too_late(make_config, same, tally):
    with tally("SIGTERM or SIGUSR1 to one rank in a step") as trial:
        trial.begin()
        config = make_config("signal-last")
        assert live(config, {"rank": 1, "at": "step", "step": 6, "do": "SIGTERM"}).codes == [0, 0]
        same(config)


def all_states(config) -> list[dict[str, torch.Tensor]]:
    return [
        saved_state(path)
        for path in sorted((Path(config.run_dir) / "checkpoints").glob("step_????????"))
    ]


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_number_that_is_not_finite_on_one_rank_is_skipped_by_all(make_config, tally, kind):
    with tally("NaN or Inf on one rank") as trial:
        trial.begin()
        fault = {"rank": 1, "at": "step", "step": 3, "do": kind}
        whole, broken = (
            make_config(f"{kind}-{name}", checkpoint__every=1) for name in ("whole", "broken")
        )
        life = live(whole, fault)
        assert life.codes == [0, 0], life.stderr[-3000:]
        assert [row["skipped"] for row in metrics_of(whole)] == [
            False,
            False,
            True,
            False,
            False,
            False,
        ]
        (line,) = [
            json.loads(line)
            for line in (Path(whole.run_dir) / "nonfinite.jsonl").read_text().splitlines()
        ]
        assert line["step"] == 3 and len(line["examples"]) == whole.train.global_batch_size
        places = [f"{whole.data.path}:{number}" for number in range(1, 21)]
        assert set(line["examples"]) <= set(places)
        states = all_states(whole)
        assert any("exp_avg_sq" in key for key in states[1]) and any(
            key.startswith("tensors/") for key in states[1]
        )
        for key, tensor in states[1].items():
            assert torch.equal(tensor, states[2][key]), (
                f"{key} changed in the step that was skipped"
            )
            assert tensor.isfinite().all()
        # killed after it and resumed, it is still the same run
        first = live(broken, fault, {"rank": 0, "at": "step", "step": 5, "do": "kill"})
        last = live(broken)
        assert last.codes == [0, 0], last.stderr[-3000:]
        trial.resumed(first, last)
        assert metrics_of(broken) == metrics_of(whole)
        for ours, theirs in zip(all_states(broken), all_states(whole), strict=True):
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.faults
def test_too_many_in_a_row_end_the_run(make_config, tally):
    with tally("NaN or Inf on one rank") as trial:
        trial.begin()
        config = make_config("nan-many", train__max_nonfinite_steps=3)
        life = live(
            config, *({"rank": 1, "at": "step", "step": step, "do": "nan"} for step in (3, 4, 5))
        )
        assert life.codes == [5, 5], life.stderr[-3000:]
        lines = [
            json.loads(line)
            for line in (Path(config.run_dir) / "nonfinite.jsonl").read_text().splitlines()
        ]
        assert [line["step"] for line in lines] == [3, 4, 5]
        again = live(config)
        assert again.codes == [0, 0]
        trial.resumed(life, again)


def test_another_configuration_on_one_rank(make_config, tally):
    with tally("ranks disagree: configuration") as trial:
        trial.begin()
        config = make_config("other")
        life = live(config, overrides={1: ["train.lr=0.5"]})
        assert life.codes == [6, 6], life.stderr[-3000:]
        assert "DisagreementError" in life.stderr and "[1]" in life.stderr
        assert not Path(config.run_dir).exists(), "nothing may be written"


def test_another_control_on_one_rank(make_config, same, tally):
    with tally("ranks disagree: state") as trial:
        trial.begin()
        config = make_config("control")
        life = live(config, {"rank": 1, "at": "state", "step": 3})
        assert life.codes == [6, 6], life.stderr[-3000:]
        assert "DisagreementError" in life.stderr and "step 4" in life.stderr
        assert life.newest == 2, "what the ranks do not agree on must not be saved"
        last = live(config)
        assert last.codes == [0, 0], last.stderr[-3000:]
        trial.resumed(life, last)
        same(config)


HANGS = [
    {"rank": 1, "at": "step", "step": 3},
    {"rank": 0, "at": "eval", "step": 4},
    {"rank": 0, "at": "save", "step": 4, "op": 12},
    {"rank": 1, "at": "save", "step": 4, "op": 2},
]


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=pytest.mark.faults) for number in (1, 2, 3))]
)
def test_a_rank_that_hangs(make_config, same, tally, number):
    with tally("a rank hangs") as trial:
        trial.begin()
        config = make_config(f"hang{number}", train__hang_timeout=5)
        place = HANGS[number]
        life = live(config, place | {"do": "hang"})
        assert life.codes == [HUNG, HUNG] and life.ended_alone, (life.codes, life.stderr[-3000:])
        zero, one = life.stderr.split("[rank 1]")
        for number, text in enumerate((zero, one)):
            assert (
                f"rank {number}" in text and f"step {place['step']}" in text and "train.py" in text
            ), text[-3000:]
        assert "faulty.py" in (zero, one)[place["rank"]], "the stack shows where it hangs"
        config.train.hang_timeout = 100
        last = live(config)
        assert last.codes == [0, 0], last.stderr[-3000:]
        trial.resumed(life, last)
        same(config)


@pytest.mark.faults
@pytest.mark.parametrize(
    "place",
    [{"at": "step"}, {"at": "begin"}, {"at": "optimizer"}, {"at": "flush", "step": 4}],
    ids=lambda p: p["at"],
)
def test_an_error_on_one_rank_leaves_none_waiting(make_config, same, tally, place):
    with tally("an exception on one rank only") as trial:
        trial.begin()
        config = make_config(f"raise-{place['at']}")
        life = live(config, {"rank": 1, "step": 3, "do": "raise"} | place)
        assert life.codes[1] == 1 and life.codes[0] != 0 and life.seconds < 60, (
            life.codes,
            life.stderr[-3000:],
        )
        assert "a fault of the test, on one rank only" in life.stderr
        last = live(config)
        assert last.codes == [0, 0], last.stderr[-3000:]
        trial.resumed(life, last)
        same(config)


@pytest.mark.faults
def test_two_runs_in_one_folder(make_config, folder, same, tally):
    with tally("two runs in one folder") as trial:
        trial.begin()
        config = make_config("twice")
        first = Started(
            config,
            {"rank": 0, "at": "step", "step": 3, "do": "hold", "file": str(folder / "go")},
            tag="-first",
        )
        deadline = time.monotonic() + 60
        while not (folder / "go.held").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = live(config, tag="-second")
        (folder / "go").touch()
        assert second.codes == [2, 2] and config.run_dir in second.stderr, (
            second.codes,
            second.stderr[-3000:],
        )
        done = first.end()
        assert done.codes == [0, 0], done.stderr[-3000:]
        same(config)


@pytest.mark.faults
def test_a_clock_that_jumps(make_config, same, tally):
    with tally("a clock that jumps, back too") as trial:
        trial.begin()
        config = make_config("clock")
        clocks = [{"rank": number, "at": "run", "do": "clock"} for number in (0, 1)]
        life = live(config, *clocks, {"rank": 1, "at": "step", "step": 5, "do": "kill"})
        last = live(config, *clocks)
        assert last.codes == [0, 0], last.stderr[-3000:]
        trial.resumed(life, last)
        same(config)


def torchrun(config, faults: list[dict], *options: str) -> subprocess.CompletedProcess:
    file = Path(config.run_dir).with_suffix(".torchrun.yaml")
    save_config(config, file)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *options,
    ]
    environment = os.environ | {
        "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}",
        "FAULTS": json.dumps(faults),
        "OMP_NUM_THREADS": "1",
    }
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = (
        "1"  # as docs/cluster.md says: restarts need it
    )
    return subprocess.run(
        [*command, "-m", "tests.faults.faulty", str(file)],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.faults
def test_torchrun_starts_again_by_itself(make_config, same, tally):
    with tally("kill -9 under torchrun --max-restarts") as trial:
        trial.begin()
        config = make_config("restarts")
        done = torchrun(
            config, [{"rank": 1, "at": "step", "step": 3, "do": "kill"}], "--max-restarts", "1"
        )
        assert done.returncode == 0, done.stderr[-4000:]
        same(config)


@pytest.mark.faults
def test_torchrun_ends_the_others_when_one_rank_raises(make_config, same, tally):
    with tally("an exception on one rank only") as trial:
        trial.begin()
        config = make_config("raise-torchrun")
        began = time.monotonic()
        done = torchrun(config, [{"rank": 1, "at": "step", "step": 3, "do": "raise"}])
        assert done.returncode == 1 and time.monotonic() - began < 90
        assert "a fault of the test, on one rank only" in done.stderr
        assert live(config).codes == [0, 0]
        same(config)
