"""The programs of examples/ run as they stand, and the pages show them as they are."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import write_data
from tools.docs import PROGRAM, WITH_PROGRAMS, with_program


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """A file of 80 questions and answers."""
    folder = tmp_path_factory.mktemp("questions")
    path = folder / "train.jsonl"
    rows = map(json.loads, write_data(folder / "data.jsonl", 80).read_text().splitlines())
    path.write_text(
        "".join(
            json.dumps({"question": row["prompt"], "answer": row["completion"]}) + "\n"
            for row in rows
        )
    )
    return path


def program(folder: Path, name: str, *arguments: object) -> int:
    os.chdir(folder)
    file = REPO / "examples" / name
    sys.argv, sys.path[0] = [str(file), *map(str, arguments)], str(file.parent)
    runpy.run_path(str(file), run_name="__main__")
    return 0


def run(folder: Path, name: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    found = subprocess.run(
        [sys.executable, str(REPO / "examples" / name), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow
def test_loops_of_ones_own_print_the_same_on_one_rank_and_on_two(tiny_model, questions, tmp_path):
    model, printed = tiny_model(), {}
    for name, ranks in (("plain_loop.py", 1), ("ddp.py", 2), ("fsdp2.py", 2)):
        codes, said = on_two_ranks(
            program, tmp_path, name, model, questions, log=tmp_path / "log", ranks=ranks
        )
        assert not any(codes), said
        printed[name] = [line for line in said.splitlines() if line.startswith("step ")]
    assert len(printed["plain_loop.py"]) == 2, "the first step and the tenth, which is the last"
    assert printed["ddp.py"] == printed["fsdp2.py"] == printed["plain_loop.py"]
    assert re.search(r"alpha 2\.0", printed["ddp.py"][-1]), "auto ends at 2"
    assert (tmp_path / "state.pt").is_file()


@pytest.mark.slow
@pytest.mark.nightly
def test_the_program_for_trl_trains_and_goes_on(tiny_model, questions, tmp_path):
    pytest.importorskip("trl", minversion="1.16")
    run(tmp_path, "trl_sft.py", tiny_model(), questions)
    (checkpoint,) = (tmp_path / "runs" / "trl").glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["log_history"][-1]["alpha"] > 1.5
    run(tmp_path, "trl_sft.py", tiny_model(), questions)  # finished: nothing is left to do
    assert list((tmp_path / "runs" / "trl").glob("checkpoint-*")) == [checkpoint]


@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: page.name)
def test_pages_show_the_programs_as_they_are(page):
    text = page.read_text()
    assert PROGRAM.search(text) and PROGRAM.sub(with_program, text) == text, "run make docs"
