"""Replies that are no answers: each is recorded with its reason, through a real server."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adaptsft.evals.alpaca import judge_prompt
from tests.evals.odd_server import Server, stop
from tests.evals.pipeline import SCHEMA, evals, results_of, samples_of

LONE = "half an emoji \ud83d"  # as JSON has it: "\\ud83d"


# reply -> (text, finish reason, what the error says)
ODD: list[tuple[Any, str, str | None, str | None]] = [
    ({"finish_reason": "stop"}, "", "error", "no message in the choice"),
    ({"message": None}, "", "error", "no message in the choice"),
    (stop(content=3), "", "error", "no message in the choice"),
    (stop(content=None), "", "stop", "no content"),
    (stop(content=None, reasoning_content="hm"), "", "stop", 'only reasoning_content: "hm"'),
    (
        stop(content="", reasoning="hm") | {"finish_reason": "length"},
        "",
        "length",
        "only reasoning",
    ),
    (
        stop(content=None, tool_calls=[{"id": "1"}]) | {"finish_reason": "tool_calls"},
        "",
        "tool_calls",
        "only tool_calls",
    ),
    (stop(content=None, refusal="No."), "", "stop", 'only refusal: "No."'),
    (stop(content=[{"type": "text", "text": "a"}, {"type": "x"}, "b"]), "ab", "stop", None),
    (stop(content="a") | {"finish_reason": "content_filter"}, "a", "content_filter", None),
    (stop(content="a") | {"finish_reason": None}, "a", None, None),
    (stop(content="a") | {"finish_reason": "eos"}, "a", "eos", None),
    (stop(content=LONE), LONE, "stop", None),
    ((200, b'{"choices": []}'), "", "error", 'no choices in {"choices": []}'),
    ((200, b'{"choices": [], "usage": null, "error": {"code": 1}}'), "", "error", "no choices in"),
    ((200, b'{"error": "\xff"}'), "", "error", "utf-8"),
    ((200, b"<html>busy</html>"), "", "error", "Expecting value"),
    ((200, b'{"choices": [CUT'), "", "error", "IncompleteRead"),
    ((400, b"the context is too long"), "", "error", "400 the context is too long"),
    ((500, b"<html>\xff</html>"), "", "error", "500 <html>"),
    ((504, b"late"), "", "error", "504 late"),
]


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    """A task of as many questions as there are odd replies, and two more, in tmp_path."""
    names = [f"Question {i:02}" for i in range(len(ODD) + 2)]  # none is part of another
    rows = [{"question": name, "answer": f"{LONE} #### 18"} for name in names]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        f"extends: gsm8k\nsources: [{{file: mine.jsonl, reader: gsm8k}}]\nitems: {len(rows)}\n"
    )
    return names


def asking(tmp_path: Path, url: str, *more: str) -> list[object]:
    common = ["--tasks", tmp_path / "mine.yaml", "--data-dir", tmp_path, "--out", tmp_path / "out"]
    common += ["--backend", "http", "--url", url, "--model", "m", "--temperature", 0]
    return [*common, *more]


def test_odd_replies_are_recorded_and_the_others_kept(
    url: str, questions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Server.replies = {name: reply for name, (reply, *_) in zip(questions, ODD, strict=False)}
    assert evals("generate", *asking(tmp_path, url)) == 0
    folder = tmp_path / "out" / "mine" / "greedy"
    found = {
        record["prompt"][-1]["content"].split("\n")[0]: record
        for record in samples_of(folder).values()
    }
    for name, (_, text, reason, error) in zip(questions, ODD, strict=False):
        record = found[name]
        assert (record["output"], record["finish_reason"]) == (text, reason), record
        assert (error is None) == (record["error"] is None) and (error or "") in (
            record["error"] or ""
        )
    assert all(found[name]["error"] is None for name in questions[len(ODD) :])
    assert "--retry-errors asks again" in capsys.readouterr().err

    asked = len(Server.asked)
    assert evals("generate", *asking(tmp_path, url)) == 0
    assert len(Server.asked) == asked, "recorded errors are not met again"

    assert evals("score", tmp_path / "out", "--workers", 1) == 0
    shown = capsys.readouterr().out
    assert "answers with errors:" in shown and "content_filter 4.3 %" in shown
    result = results_of(tmp_path / "out")["mine/greedy"]
    jsonschema.validate(result, SCHEMA)
    n = len(questions)
    odd = sum(error is not None or reason != "stop" for *_, reason, error in ODD)
    assert result["rates"]["error"] == pytest.approx(odd / n)
    assert result["rates"]["finish_reasons"]["null"] == pytest.approx(1 / n)
    assert result["metrics"]["math-robust"]["value"] == pytest.approx(2 / n)
    assert evals("report", tmp_path / "out") == 0

    Server.replies = {}
    assert evals("generate", *asking(tmp_path, url, "--retry-errors")) == 0
    assert len(Server.asked) == asked + sum(error is not None for *_, error in ODD)
    assert not any(record["error"] for record in samples_of(folder).values())


@pytest.mark.parametrize(
    ("status", "text"), [(400, "no such parameter: seed"), (401, "who are you"), (404, "no model")]
)
def test_a_server_that_refuses_everything_ends_the_run(
    url: str, questions: list[str], tmp_path: Path, status: int, text: str, capsys: Any
) -> None:
    Server.replies = dict.fromkeys([*questions, "Hello"], (status, text.encode()))
    Server.replies.pop(questions[0])  # one is answered before
    if status == 400:
        Server.replies[questions[0]] = Server.replies["Hello"]
    assert evals("generate", *asking(tmp_path, url)) == 3
    assert f"{status} {text}. Recorded answers are kept" in capsys.readouterr().err
    found = samples_of(tmp_path / "out" / "mine" / "greedy").values()
    assert not any(record["error"] for record in found)
    Server.replies = {}
    assert evals("generate", *asking(tmp_path, url)) == 0
    assert len(samples_of(tmp_path / "out" / "mine" / "greedy")) == len(questions)


def test_tokens_of_a_judge_with_spaces_and_emphasis() -> None:
    for m, big in ((" m", "M "), ("m\n", "**M"), ("\u2581m", "\u0120M"), ("`m`", '"M')):
        found = judge_prompt.preference({m: -1.0, big: -2.0, "x": 0.0}, is_switched=True)
        assert found == judge_prompt.preference({"m": -1.0, "M": -2.0}, is_switched=True)
    halves = {"m": -1.7, " m": -1.7, " M": -1.0}
    assert judge_prompt.preference(halves, True) == pytest.approx(1 + 2 / (2 + 2.718281828**0.7))
    as_published = {"m": -1.0, "M": -2.0, " M": -9.0}
    assert judge_prompt.preference(as_published, True) == judge_prompt.preference(
        {"m": -1.0, "M": -2.0}, True
    )
    assert judge_prompt.switched(LONE) in (True, False)


def test_pairs_without_judgement_are_counted(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokens(**logprobs: float) -> dict:
        top = [{"token": token.replace("_", " "), "logprob": p} for token, p in logprobs.items()]
        return {"logprobs": {"content": [{"top_logprobs": top}]}}

    files = []
    for name in ("own", "other"):
        rows = [
            {"instruction": f"Question {i}", "output": f"{name} {LONE}", "generator": name}
            for i in range(4)
        ]
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(rows))
    replies = [tokens(_M=-0.1, m=-3.0), tokens(The=-0.1), {"message": {}}, (400, b"too long")]

    Server.replies = {f"Question {i}": reply for i, reply in enumerate(replies)}
    Server.replies["Hello"] = tokens(m=-0.1)
    command = [*files, "--out", tmp_path / "out", "--url", url, "--judge", "j"]
    assert evals("judge", *command) == 0
    assert "own: 3 of 4 pairs unjudged, and left out" in capsys.readouterr().out
    judged = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [record["preference"] is None for record in judged] == [False, True, True, True]
    assert judged[0]["output_2"] == f"own {LONE}" and "error" not in judged[1]
    assert "answers without logprobs" in judged[2]["error"]
    assert judged[3]["error"] == "400 too long"
    asked = len(Server.asked)
    assert evals("judge", *command) == 0 and len(Server.asked) == asked
    Server.replies = dict.fromkeys(Server.replies, tokens(m=-0.1, M=-3.0))
    assert evals("judge", *command, "--retry-errors") == 0 and len(Server.asked) == asked + 2
    assert "own: 1 of 4 pairs unjudged" in capsys.readouterr().out
