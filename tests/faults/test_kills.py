"""kill -9 of one rank, anywhere: the same command continues from the newest complete checkpoint,
and ends bitwise as if not killed."""

import shutil
from pathlib import Path

import pytest

from tests.faults.ranks import KILLED, live

# places in the steps; the rank changes from place to place
STEPS = [
    {"at": "step", "step": 1},
    {"at": "lock"},
    {"at": "begin", "step": 2},
    {"at": "all_reduce", "step": 2},
    {"at": "step", "step": 2, "call": 2},
    {"at": "flush", "step": 2},
    {"at": "eval", "step": 2},
    {"at": "step", "step": 3},
    {"at": "load"},
    {"at": "optimizer", "step": 3},
    {"at": "all_reduce", "step": 4},
    {"at": "eval", "step": 4, "call": 2},
    {"at": "step", "step": 5},
    {"at": "optimizer", "step": 6},
    {"at": "flush", "step": 6},
    {"at": "export"},
]


def killed(trial, config, fault, previous):
    trial.begin()
    life = live(config, fault | {"do": "kill"})
    assert life.codes[fault["rank"]] == KILLED, (
        f"{fault} did not strike: {life.codes}\n{life.stderr[-3000:]}"
    )
    assert life.codes[1 - fault["rank"]] != 0
    if previous is not None:
        assert life.newest >= previous.newest, "a complete checkpoint is gone"
        trial.resumed(previous, life)
    return life


def chain(trial, config, faults, same) -> None:
    previous = None
    for fault in faults:
        previous = killed(trial, config, fault, previous)
    last = live(config)
    assert last.codes == [0, 0], last.stderr[-3000:]
    trial.resumed(previous, last)
    same(config)


@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.faults)])
def test_killed_in_steps(make_config, same, tally, which):
    places = [place | {"rank": number % 2} for number, place in enumerate(STEPS)]
    with tally("kill -9 in a step, evaluation, start or export") as trial:
        chain(
            trial,
            make_config(f"killed-{which}"),
            [places[0], *places[7:9], places[11]] if which == "some" else places,
            same,
        )


@pytest.fixture(scope="module")
def until_2(make_config):
    """A run whose ranks died in step 3, with the checkpoint of step 2; and the file operations of
    its next save, by rank."""
    config = make_config("until2", checkpoint__keep_last=1)
    assert live(config, {"at": "step", "step": 3, "do": "kill"}).newest == 2
    shutil.copytree(config.run_dir, Path(config.run_dir).with_name("until2-probe"))
    probe = make_config("until2-probe", checkpoint__keep_last=1)
    life = live(probe, {"at": "step", "step": 5, "do": "kill"})
    return Path(config.run_dir), [
        [line for line in each if line["save"] == 4] for each in life.operations
    ]


def kill_in_saves(trial, make_config, same, start, points, name, **overrides):
    """Die at each point of the save of step 4. Dead before it is complete, the next life comes to
    the same save again, and to what the last one left of it; otherwise the run is finished,
    compared, and begun again from its start."""
    run = previous = None
    for number, (rank, operation) in enumerate(points):
        if run is None:
            run = make_config(f"{name}{number}", checkpoint__keep_last=1, **overrides)
            shutil.copytree(start, run.run_dir)
        previous = killed(
            trial, run, {"rank": rank, "at": "save", "step": 4, "op": operation}, previous
        )
        assert previous.newest in (2, 4)
        if previous.newest == 4 or number + 1 == len(points):
            last = live(run)
            assert last.codes == [0, 0], last.stderr[-3000:]
            trial.resumed(previous, last)
            same(run)
            run = previous = None


def committing(operations: list[dict]) -> int:
    """The operation of the save that gives the checkpoint its name; the deletion of the old one
    follows."""
    return max(line["op"] for line in operations if line["what"] == "os.rename")


@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.faults)])
@pytest.mark.nightly
def test_killed_in_saves(make_config, same, tally, until_2, which):
    start, operations = until_2
    counts, named = [len(each) for each in operations], committing(operations[0])
    assert counts[0] >= 30 and counts[1] >= 6, operations
    points = [(1, k) for k in range(1, counts[1] + 1)] + [(0, k) for k in range(1, named)]
    if which == "some":
        points = [(1, 3), (0, 5), (0, named - 1)]
    with tally("kill -9 in a save, at every file operation") as trial:
        kill_in_saves(trial, make_config, same, start, points, f"saves-{which}")
    with tally("kill -9 after a save, while the old checkpoint is deleted") as trial:
        for k in (
            [counts[0] - 3] if which == "some" else range(named, counts[0] + 1, 2)
        ):  # each on a run of its own
            kill_in_saves(trial, make_config, same, start, [(0, k)], f"prune-{which}-{k}-")


@pytest.mark.faults
def test_what_a_killed_deletion_leaves_is_deleted_later(make_config, tally, until_2):
    start, operations = until_2
    with tally("leftovers of a killed deletion do not stay") as trial:
        for operation in (committing(operations[0]) + 5, len(operations[0])):
            trial.begin()
            config = make_config(f"leftover{operation}", checkpoint__keep_last=1)
            shutil.copytree(start, config.run_dir)
            assert (
                live(config, {"at": "save", "step": 4, "op": operation, "do": "kill"}).newest == 4
            )
            assert live(config).codes == [0, 0]
            assert [path.name for path in (Path(config.run_dir) / "checkpoints").iterdir()] == [
                "step_00000006"
            ]


@pytest.mark.faults
def test_killed_in_saves_in_the_background(make_config, same, tally, until_2):
    start, operations = until_2
    points = [(1, 2), *((0, k) for k in range(2, len(operations[0]) - 4, 5))]
    with tally("kill -9 in a background save") as trial:
        kill_in_saves(
            trial, make_config, same, start, points, "background", checkpoint__async_save=True
        )
