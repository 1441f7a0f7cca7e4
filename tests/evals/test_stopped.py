"""What was answered before a server or a disk gives up is kept, and the message says so."""

import json
import resource
from pathlib import Path

import pytest

from tests.evals.hub import hub_folder, openbookqa_records
from tests.evals.odd_server import Server, echo, stop
from tests.evals.pipeline import evals, samples_of


@pytest.fixture
def likelihoods(tmp_path: Path, url: str) -> list[object]:
    """The settings of a task of lm-eval: 20 likelihoods, asked one after the other."""
    pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install 'adaptsft[harness]'"
    )
    splits = dict.fromkeys(("train", "validation", "test"), openbookqa_records())
    hub_folder(tmp_path / "data" / "allenai" / "openbookqa", "main", splits)
    (tmp_path / "five.yaml").write_text("extends: openbookqa_likelihood\nitems: 5\n")
    settings: list[object] = ["--tasks", tmp_path / "five.yaml", "--data-dir", tmp_path / "data"]
    settings += ["--out", tmp_path / "out", "--backend", "http", "--url", url, "--model", "m"]
    return [*settings, "--batch-size", 1]


def test_a_task_of_lm_eval_keeps_what_was_answered(
    likelihoods: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Server.replies = {"": echo, "fog around: a tundra": (401, b"who are you")}
    assert evals("generate", *likelihoods) == 3
    err = capsys.readouterr().err
    assert "adaptsft.evals: DataError: --url " in err
    assert "401 who are you. Recorded answers are kept: the same command resumes" in err
    kept = len(samples_of(tmp_path / "out" / "five" / "harness"))
    assert kept == len(Server.asked) - 1 and kept % 8, "it ended within a batch"
    Server.replies, Server.asked[:] = {"": echo}, []
    assert evals("run", *likelihoods) == 0
    assert len(Server.asked) == 20 - kept


def test_a_server_without_logprobs(
    likelihoods: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    Server.replies = {"": {"text": "x", "finish_reason": "length"}}
    assert evals("generate", *likelihoods) == 3
    assert "DataError: --url" in (err := capsys.readouterr().err)
    assert "m gives no logprobs with echo" in err and len(Server.asked) == 1


def test_a_judge_that_stops_is_a_mistake_in_data(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name in ("own", "other"):
        rows = [{"instruction": f"Q{i}", "output": name, "generator": name} for i in range(3)]
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(rows))
    judged = {"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": -0.1}]}]}}
    Server.replies = {"": stop(content="m") | judged, "Q2": (401, b"who are you")}
    command = [*files, "--out", tmp_path / "out", "--url", url, "--judge", "j", "--batch-size", 1]
    assert evals("judge", *command) == 3
    assert "adaptsft.evals: DataError: --url" in capsys.readouterr().err
    Server.replies = {"": Server.replies[""]}
    assert evals("judge", *command) == 0
    assert len(Server.asked) == 4


@pytest.mark.parametrize("address", ["myserver/v1", "127.0.0.1:8811/v1"])
def test_an_address_without_its_scheme(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "Q", "output": "a"}]))
    (tmp_path / "other.json").write_text(json.dumps([{"instruction": "Q", "output": "b"}]))
    asked = ["--tasks", "gsm8k", "--backend", "http", "--model", "m"]
    judged = [tmp_path / "own.json", tmp_path / "other.json", "--judge", "j"]
    for command in (["run", *asked], ["judge", *judged]):
        assert evals(*command, "--out", tmp_path / "out", "--url", address) == 2
        assert f"--url {address}: write http:// or https:// before it" in capsys.readouterr().err


def test_a_disk_that_is_full(
    likelihoods: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel lets no file grow beyond some size: the error of a disk that is full."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = tmp_path / "out" / "five" / "harness" / "samples.rank0.jsonl"

    def full(prompt: str) -> dict:
        if len(Server.asked) == 9:  # the first of the second batch
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, was[1]))
        return echo(prompt)

    Server.replies = {"": full}
    try:
        assert evals("generate", *likelihoods) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    err = capsys.readouterr().err
    assert "CheckpointError" in err and f"{file}: cannot be written: " in err
    kept = len(samples_of(file.parent))
    assert kept == 8
    Server.replies, Server.asked[:] = {"": echo}, []
    assert evals("generate", *likelihoods) == 0
    assert len(Server.asked) == 20 - kept
