"""What tests share: whether code can be run, data of programs, a server, runs to compare."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from adaptsft.errors import ConfigError
from adaptsft.evals import samples
from adaptsft.evals.code import sandbox
from tests.evals.odd_server import Server
from tests.evals.pipeline import evals

try:
    sandbox.isolation()
    WHY_NOT = ""
except ConfigError as error:
    WHY_NOT = str(error)
executes = pytest.mark.skipif(bool(WHY_NOT), reason=f"nothing isolates here: {WHY_NOT}")

DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return [2 * x]\n",
    "entry_point": "double",
    "base_input": [[1], [2]],
    "plus_input": [[-1], [0.5]],
    "atol": 0,
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data set of one problem, in two versions. The newer one is not the last by name."""
    for version in ("v9.9.9", "v9.9.10"):
        (tmp_path / f"HumanEvalPlus-{version}.jsonl.gz").write_bytes(
            gzip.compress(json.dumps(DOUBLE).encode())
        )
    return tmp_path


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Server.replies, Server.asked = {}, []
    monkeypatch.setattr("adaptsft.evals.backends.http.time.sleep", lambda seconds: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture
def evaluated(tmp_path, capsys):
    """`evaluated("a", [answer, …])`: a run with an answer to each of some questions, or with a list
    of answers, on disk and scored."""

    def run(
        name: str,
        answers: list,
        task: str = "letters",
        data: int | None = None,  # how many questions there are, where not all are asked
        graders: str = "medical-paper, medical-m1",
        more: str = "",  # lines of the task's file
    ) -> Path:
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True, exist_ok=True)
        number, several = data or len(answers), isinstance(answers[0], list)
        choices = {"label": ["A", "B"], "text": ["yes", "no"]}
        samples.write_lines(
            folder / "questions.jsonl",
            (
                {"id": f"q{i}", "question_stem": f"Question {i}?", "answerKey": "B"}
                | {"choices": choices}
                for i in range(number)
            ),
        )
        (folder / f"{task}.yaml").write_text(
            "extends: medqa\ncolumns: {Letters: medical-m1}\n"
            f"graders: [{graders}]\n"
            f"sources: [{{file: questions.jsonl, reader: openbookqa}}]\nitems: {number}\n{more}"
        )
        replay = tmp_path / f"{name}.jsonl"
        outputs = enumerate(answers if several else ([answer] for answer in answers))
        samples.write_lines(
            replay, ({"item_id": f"q{i}", "output": text} for i, texts in outputs for text in texts)
        )
        settings = ["--tasks", folder / f"{task}.yaml", "--data-dir", folder]
        settings += ["--limit", len(answers), "--backend", "replay", "--replay", replay]
        if several:
            settings += ["--temperature", 1, "--n", len(answers[0])]
        assert evals("generate", *settings, "--out", tmp_path / name) == 0
        assert evals("score", tmp_path / name) == 0
        capsys.readouterr()
        return tmp_path / name

    return run


@pytest.fixture
def compared(capsys, monkeypatch):
    """What `compare` prints for some arguments."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> str:
        assert evals("compare", *arguments) == 0
        return capsys.readouterr().out

    return run
