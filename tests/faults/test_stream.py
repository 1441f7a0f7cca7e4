"""kill -9 in a streamed set: in the middle of a shard and where shards meet; the shard of the
checkpoint may have been deleted by then."""

import os
import signal
import time
from pathlib import Path

import pytest

from adaptsft.config.schema import Config
from adaptsft.data.stream import Tokeniser
from adaptsft.train import train
from tests.faults.conftest import assert_same
from tests.faults.ranks import live
from tests.faults.test_kills import chain
from tests.runs import PROCESSES, metrics_of, write_data

# Five files of seven examples, two files in a shard, five examples in a step: the shards have the
# steps 1-2, 3-4, 5, 6-7 and 8-9, the last two in the second pass. Checkpoints are those of steps 2
# and 4, where shards meet, and of 6 and 8, in the middle.
STEPS = 9
IN_STEPS = [
    # resumes from 2: where shards 1 and 2 meet
    {"rank": 1, "at": "step", "step": 3},
    # from 6: in the middle of shard 4, which was deleted when shard 5 began
    {"rank": 0, "at": "step", "step": 8},
]
WHILE_WAITING = [
    {"rank": 0, "at": "wait", "step": 3},
    {"rank": 1, "at": "wait", "step": 5},
    {"rank": 0, "at": "lock"},
    {"rank": 1, "at": "flush", "step": 5},
    {"rank": 0, "at": "wait", "step": 6},
    {"rank": 0, "at": "begin", "step": 6},
    {"rank": 1, "at": "eval", "step": 8},
]


@pytest.fixture(scope="session")
def stream_config(make_config, folder):
    (folder / "shards").mkdir()
    for number in range(5):
        write_data(folder / "shards" / f"{number}.jsonl", 7, seed=number)
    write_data(folder / "validation.jsonl", 4, seed=9)

    def config(name: str) -> Config:
        return make_config(
            name,
            data__path=folder / "shards" / "*.jsonl",
            data__stream=2,
            data__validation_examples=0,
            data__validation_path=folder / "validation.jsonl",
            train__max_steps=STEPS,
        )

    return config


@pytest.fixture(scope="session")
def stream_reference(stream_config) -> Config:
    config = stream_config("stream-reference")
    life = live(config)
    assert life.codes == [0, 0], life.stderr[-4000:]
    return config


@pytest.mark.parametrize(
    "faults",
    [IN_STEPS, pytest.param(WHILE_WAITING, marks=pytest.mark.faults)],
    ids=["in-steps", "while-waiting"],
)
@pytest.mark.nightly
def test_killed_in_a_stream(faults, stream_config, stream_reference, tally, request):
    with tally("kill -9 in a streamed set") as trial:
        config = stream_config(f"stream-{request.node.callspec.id}")
        chain(trial, config, faults, lambda ended: assert_same(ended, stream_reference))


def test_one_rank_continues_where_two_have_stopped_with_the_same_tokens(
    stream_config, stream_reference
):
    config = stream_config("stream-one-rank")
    config.resume = str(Path(stream_reference.run_dir) / "checkpoints" / "step_00000004")
    train(config)
    ours, theirs = metrics_of(config), metrics_of(stream_reference)[4:]
    assert len(ours) == STEPS - 4
    for one, two in zip(ours, theirs, strict=True):
        for key in ("step", "epoch", "tokens", "all_tokens"):
            assert one[key] == two[key]
        # each rank draws its own dropout
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-2)


def _start_a_tokeniser_and_die(config: Config, note: Path) -> None:
    tokeniser = Tokeniser(config, None)
    note.write_text(str(tokeniser.process.pid))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.faults
def test_a_tokeniser_does_not_outlive_a_killed_run(stream_config, folder):
    process = PROCESSES.Process(
        target=_start_a_tokeniser_and_die, args=(stream_config("stream-orphan"), folder / "pid")
    )
    process.start()
    process.join()
    status = Path("/proc") / (folder / "pid").read_text() / "status"
    deadline = time.monotonic() + 600  # a last resort: how soon it ends depends on the machine
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.1)
