"""Real runs with an objective and a controller of a user's own: every command that reads a
configuration, two ranks, what the run folder keeps, and what a run is continued with."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from adaptsft import chat, diagnose, export, plan, preview, report
from adaptsft.config.load import read_config
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.evals.backends.hf import locate
from adaptsft.train import main, train
from tests.conftest import REPO
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import metrics_of, small_config, write_data

SOURCE = """
import torch
from adaptsft.controllers.base import Controller
from shared_by_mine import LIMIT


def sharp(logp, alpha):
    return -torch.exp(alpha * logp).detach() * logp


class Rises(Controller):
    rate: float = 0.25

    def update(self, state, statistics, progress):
        return {"alpha": (state["alpha"] + self.rate).clamp(max=LIMIT)}
"""
NAMES = ["objective.name=mine_of_{}:sharp", "controller.name=mine_of_{}:Rises"]
STEPS = 4


@pytest.fixture
def work(tmp_path, tiny_model):
    """A folder with a user's modules, data, and a configuration of all but them."""
    (tmp_path / "shared_by_mine.py").write_text("LIMIT = 0.6\n")
    write_data(tmp_path / "data.jsonl", 20)
    settings = [
        f"model: {{path: {tiny_model()}}}",
        f"data: {{path: data.jsonl, cache_dir: {tmp_path / 'cache'}, max_length: 128}}",
        f"train: {{max_steps: {STEPS}, global_batch_size: 5, lr: 1e-2, device: cpu}}",
        "checkpoint: {every: 2, keep_last: 9}",
        "log: {every: 1, tensorboard: false}",
        "run_dir: run",
    ]
    (tmp_path / "base.yaml").write_text("\n".join(settings))
    return tmp_path


def named(work: Path, module: str) -> list[str]:
    """The arguments that name this module's objective and controller, which is then there."""
    (work / f"mine_of_{module}.py").write_text(SOURCE)
    return ["base.yaml", *(name.format(module) for name in NAMES)]


def _train_in(folders: list[Path], arguments: list[str]) -> int:
    os.chdir(folders[min(int(os.environ["RANK"]), len(folders) - 1)])
    return main(arguments)


def train_in(work: Path, *arguments: str, folders: list[Path] | None = None) -> tuple[int, str]:
    """adaptsft.train, on as many ranks as `folders` that they are started in, without the seconds
    of its imports: the exit code and what was printed."""
    folders = folders or [work]
    log, ranks = work / "log", len(folders)
    codes, printed = on_two_ranks(_train_in, folders, list(arguments), log=log, ranks=ranks)
    return max(codes), printed


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_ones_own_is_kept_and_continued_with_its_code_alone(work, monkeypatch, capsys):
    arguments = named(work, "run")
    code, said = train_in(work, *arguments)
    assert code == 0, said
    assert "objective: mine_of_run:sharp, mine_of_run:Rises controller" in said
    folder = work / "run"
    assert [row["alpha"] for row in rows(folder)] == pytest.approx([0.0, 0.25, 0.5, 0.6])
    assert rows(folder)[-1]["nll"] < rows(folder)[0]["nll"]
    kept = {path.relative_to(folder / "user_code"): path for path in folder.rglob("*.py")}
    both = ("mine_of_run.py", "shared_by_mine.py")
    assert {*map(str, kept)} == {
        f"{key}/{name}" for key in ("objective.name", "controller.name") for name in both
    }
    for path in kept.values():
        assert path.read_bytes() == (work / path.name).read_bytes()
    saved = read_config(folder / "config.yaml")
    assert saved.objective.name == "mine_of_run:sharp"
    assert saved.controller.name == "mine_of_run:Rises"

    # what reads the run does without the module
    monkeypatch.chdir(REPO)
    assert chat.main([str(folder), "--prompt", "2 + 2", "--max-new-tokens", "2"]) == 0
    assert report.main([str(folder), f"--out={work}"]) == 0
    assert "mine_of_run:sharp" in (work / "report.html").read_text()
    assert export.main([str(folder), str(work / "exported")]) == 0
    assert locate(str(folder))[2].startswith("mine_of_run:sharp")
    assert "mine_of_run" not in sys.modules
    capsys.readouterr()

    # as it was, it goes on; with another line beside it, it does not
    assert train_in(work, *arguments)[0] == 0
    for name, before in ((name, (work / name).read_text()) for name in both):
        (work / name).write_text(before + "# edited\n")
        code, said = train_in(work, *arguments)
        assert code == CheckpointError.exit_code, said
        expected = f"other code of yours (controller.name/{name}, objective.name/{name})"
        assert expected in said and "remove run/user_code" in said
        (work / name).write_text(before)
    (work / "mine_of_run.py").write_text(SOURCE.replace("0.25", "0.05"))
    shutil.rmtree(folder / "checkpoints" / "step_00000004")
    elsewhere = ["run_dir=other", "resume=run/checkpoints/step_00000002"]
    code, said = train_in(work, *arguments, *elsewhere)
    assert code == CheckpointError.exit_code
    assert "run/checkpoints/step_00000002 was trained with other code of yours" in said

    # unless its user says so
    shutil.rmtree(folder / "user_code")
    code, said = train_in(work, *arguments)
    assert code == 0, said
    assert [row["alpha"] for row in rows(folder)] == pytest.approx([0.0, 0.25, 0.5, 0.55])
    new = folder / "user_code" / "objective.name" / "mine_of_run.py"
    assert new.read_text() == (work / "mine_of_run.py").read_text()


def test_a_run_without_a_checkpoint_begins_again_with_other_code(work):
    arguments = [*named(work, "again"), "objective.name=mine_of_again:late"]
    broken = "\n\ndef late(logp, alpha):\n    if float(alpha.max()) == 0.25: raise KeyError(7)\n"
    (work / "mine_of_again.py").write_text(f"{SOURCE}{broken}    return -logp * (1 + alpha)\n")
    code, said = train_in(work, *arguments)
    assert code == 1 and "KeyError: 7" in said
    assert (work / "run" / "user_code").is_dir() and not any((work / "run").glob("checkpoints/*"))
    (work / "mine_of_again.py").write_text(
        f"{SOURCE}\n\ndef late(logp, alpha):\n    return -logp * (1 + alpha)\n"
    )
    assert train_in(work, *arguments)[0] == 0


def test_two_ranks_do_what_one_does_and_must_have_the_same_files(work):
    arguments = named(work, "ranks")
    assert train_in(work, *arguments, "run_dir=one")[0] == 0
    code, said = train_in(work, *arguments, "run_dir=two", folders=[work, work])
    assert code == 0, said
    for ours, theirs in zip(rows(work / "two"), rows(work / "one"), strict=True):
        assert ours["alpha"] == theirs["alpha"]
        for key in ("loss", "grad_norm", "nll"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)

    for rank in range(2):  # as on two nodes without a shared folder
        (work / f"node{rank}").mkdir()
        edited = SOURCE.replace("0.25", f"0.2{rank}")
        (work / f"node{rank}" / "mine_of_ranks.py").write_text(edited)
        for name in ("base.yaml", "data.jsonl", "shared_by_mine.py"):
            shutil.copy(work / name, work / f"node{rank}")
    nodes = [work / "node0", work / "node1"]
    code, said = train_in(work, *arguments, f"run_dir={work / 'three'}", folders=nodes)
    assert code != 0
    assert "ranks [1] were started with another configuration than rank 0" in said
    assert "other code of yours by the same name" in said
    assert not (work / "three").exists()


def test_every_command_of_a_configuration_takes_it(work, monkeypatch, capsys):
    arguments = named(work, "commands")
    monkeypatch.chdir(work)
    assert plan.main([*arguments, "--gpus", "2", "--gpu-memory", "80"]) == 0
    assert "fits: 80 GiB" in capsys.readouterr().out
    assert preview.main([*arguments, "--examples", "1"]) == 0
    assert "⟦" in capsys.readouterr().out
    assert diagnose.main([*arguments, "sample=4"]) == 0
    assert (work / "run" / "diagnosis" / "base_stats.json").is_file()
    for command in (plan, preview):
        assert command.main([*arguments, "objective.name=mine_of_commands:sharpp"]) == 2
        assert "did you mean sharp?" in capsys.readouterr().err
    code, said = train_in(work, *arguments, "controller.name=mine_of:Rises")
    assert code == ConfigError.exit_code
    assert said.count("no module mine_of in the current directory") == 1, said


def test_the_example_of_the_docs_trains(tmp_path, tiny_model):
    place = REPO / "examples" / "own.py"
    config = small_config(
        tmp_path,
        tiny_model(),
        objective__name=f"{place}:sure_of_it",
        objective__params={"scale": 4.0},
        controller__name=f"{place}:RunningP",
        controller__params={"decay": 0.5},
    )
    train(config)
    lines = metrics_of(config)
    assert lines[-1]["nll"] < lines[0]["nll"] and 0 < lines[-1]["alpha"] < 1


@pytest.mark.nightly
def test_autograd_trains_as_the_weight_by_hand_does(tmp_path, tiny_model):
    """f_alpha as a function of log p and alpha, under our own linear schedule; and as the base of a
    threshold."""
    file = tmp_path / "own_f_alpha.py"
    file.write_text(
        "import torch\n\n\ndef f_alpha(logp, alpha):\n"
        "    return -torch.expm1(alpha * logp) / alpha\n"
    )
    moved = {"controller__name": "linear", "controller__start": 0.2, "controller__end": 1.0}
    masked = {"objective__name": "threshold", "objective__alpha": 0.5, "objective__lower": 0.002}
    for number, (settings, key) in enumerate(
        ((moved, "objective__name"), (masked, "objective__base"))
    ):
        runs = []
        for name in ("alpha", f"{file}:f_alpha"):
            given = settings | {key: name}
            config = small_config(tmp_path, tiny_model(), f"run{number}{len(runs)}", **given)
            train(config)
            runs.append(metrics_of(config))
        for ours, theirs in zip(*runs, strict=True):
            for name in ("loss", "grad_norm", "nll", "alpha"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
