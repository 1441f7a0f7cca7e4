"""One bad line, reply or record costs itself, with its reason, and none of the others."""

import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from adaptsft.evals import samples
from adaptsft.evals.backends.replay import Replay
from adaptsft.evals.graders import pool
from adaptsft.evals.graders.registry import GRADERS
from tests.evals.pipeline import SCHEMA, evals

LONE = "half an emoji \ud83d"  # as JSON has it: "\ud83d"
Grade = Callable[[str, bytes], tuple[int, list[dict], str]]


@pytest.fixture
def grade(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Grade:
    """`grade GRADER` on some bytes; returns its exit code, verdicts and stderr."""

    def run(grader: str, content: bytes) -> tuple[int, list[dict], str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        capsys.readouterr()
        code = evals("grade", grader, *(["--workers", "1"] if grader.startswith("math") else []))
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.split("\n")[:-1]], err

    return run


def test_every_line_has_its_verdict(grade: Grade) -> None:
    good = json.dumps({"gold": "1", "response": "\\boxed{1}"}).encode()
    lines = {
        good + b"\r": None,
        b"": "the line is blank",
        b'{"gold": "1", "response"': "not JSON",
        b'{"gold": "1", "response": "\xff"}': "not JSON ('utf-8' codec can't decode byte 0xff",
        b"[" * 100_000: "not JSON (maximum recursion depth",
        b'{"gold": ' + b"1" * 5000 + b', "response": "1"}': "not JSON (Exceeds the limit",
        b"null": "a JSON object is needed, not None",
        b'{"response": "1"}': "math-paper reads gold",
        b'{"gold": null, "response": "1"}': "gold is None; it must be text",
        b'{"gold": NaN, "response": "1"}': "gold is nan; it must be text",
        b'{"gold": "1", "response": ["1"]}': "response is ['1']; it must be text",
        b'{"gold": "1", "response": "\\boxed{1} \\ud83d"}'.replace(b"\\b", b"\\\\b"): None,
        '{"gold": "1", "response": "\u2028 \\\\boxed{1}"}'.encode(): None,
        b"  ": "the line is blank",
    }
    code, verdicts, err = grade("math-paper", b"\xef\xbb\xbf" + b"".join(b + b"\n" for b in lines))
    for verdict, reason in zip(verdicts, lines.values(), strict=True):
        assert verdict["correct"] is (True if reason is None else None), verdict
        assert reason is None or verdict["error"].startswith(reason), verdict
    assert code == 3
    assert "9 of 14 lines could not be graded; the first is line 3: not JSON" in err
    assert "2 of 14 lines have no verdict; the first is line 2: the line is blank" in err


def test_blank_lines_alone_are_no_error(grade: Grade) -> None:
    code, verdicts, err = grade("figfont", b'{"output": "A", "answer": "A"}\n\n')
    assert code == 0 and [verdict["exact_match"] for verdict in verdicts] == [True, None]
    assert err == "1 of 2 lines have no verdict; the first is line 2: the line is blank\n"
    assert grade("figfont", b"")[:2] == (0, [])
    code, verdicts, err = grade("figfont", b'{"output": "A", "answer": "A"}')
    assert (code, len(verdicts), err) == (0, 1, "")


@pytest.mark.parametrize(
    ("name", "record", "bad", "reason"),
    [
        ("figfont", {"output": LONE, "answer": LONE}, {"output": 1}, "output is 1"),
        (
            "medical-m1",
            {"response": LONE + " \\boxed{A}", "options": {"A": LONE, "B": "b"}, "gold": "A"},
            {"options": {"A": 1, "B": None}},
            "",  # whatever the grader says of it
        ),
        (
            "medical-paper",
            {"response": "answer is A" + LONE, "options": {"A": "a", "B": "b"}, "gold": "A"},
            {"gold": "C"},
            "gold is 'C'",
        ),
        (
            "mmlu-prox",
            {"lang": "sw", "response": LONE + "Jibu ni (C).", "gold": "C"},
            {"lang": "xx"},
            "lang is 'xx'",
        ),
    ],
)
def test_a_record_that_a_grader_refuses(
    grade: Grade, name: str, record: dict, bad: dict, reason: str
) -> None:
    lines = [record, record | bad, record]
    code, verdicts, _ = grade(name, b"".join(json.dumps(one).encode() + b"\n" for one in lines))
    first = GRADERS[name].writes[0]
    assert code == 3
    assert [verdict[first] for verdict in verdicts] == [True, None, True]
    assert reason in verdicts[1]["error"]


def test_a_worker_that_is_killed_costs_one_record() -> None:
    worker = pool.Worker(GRADERS["math-paper"])
    record = {"gold": "1", "response": "\\boxed{1}"}
    assert worker.grade(record)["correct"]
    assert worker.process
    os.kill(worker.process.pid, signal.SIGSTOP)  # it cannot answer before it is killed
    threading.Timer(0.3, os.kill, (worker.process.pid, signal.SIGKILL)).start()
    verdict = worker.grade(record)
    assert verdict["correct"] is False
    assert verdict["error"] == "the grading process ended with exit code -9"
    assert worker.grade(record)["correct"], "another one was started"
    worker.close()


def test_lone_surrogates_are_read_as_they_were_written(tmp_path: Path) -> None:
    value = {"a": [LONE, "\\\udc80", "é \u2028 😀"], "\ud800": 1}
    samples.write_json(tmp_path / "a.json", value)
    samples.write_lines(tmp_path / "a.jsonl", [value, value])
    assert samples.read_json(tmp_path / "a.json") == value
    assert samples.read_lines(tmp_path / "a.jsonl")[0] == [value, value]
    assert "é \u2028 😀" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert samples.digest(value) == samples.digest(samples.read_json(tmp_path / "a.json"))


def test_a_sample_without_key_and_one_with_an_error(tmp_path: Path) -> None:
    lines = [
        {"key": "a", "error": "busy"},
        {"key": "a", "output": "1"},
        {"key": "b", "output": "2"},
    ]
    samples.write_lines(tmp_path / "samples.rank0.jsonl", lines)
    samples.write_lines(tmp_path / "samples.rank1.jsonl", [lines[0], {"key": "b", "output": "3"}])
    (tmp_path / "samples.rank1.jsonl").open("ab").write(b'\n{"key": "c", "out')
    found = samples.Samples(tmp_path, 0).records
    assert found == {"a": lines[1], "b": {"key": "b", "output": "3"}}
    samples.write_lines(tmp_path / "samples.rank2.jsonl", [{"item_id": "1"}])
    with pytest.raises(samples.DataError, match=r"rank2\.jsonl: .* it has no `key`"):
        samples.Samples(tmp_path, 0)


def test_recorded_outputs_of_any_editor(tmp_path: Path) -> None:
    rows = [("a", "x\u2028y\x85z"), ("b", LONE), ("c", None)]
    lines = [json.dumps({"item_id": i, "output": o}, ensure_ascii=i == "b") for i, o in rows]
    content = "\ufeff" + "\r\n\r\n".join(lines)
    (tmp_path / "o.jsonl").write_bytes(content.encode())
    answers = Replay(tmp_path / "o.jsonl", {}, "label").answers
    assert [answers[i][0].text for i, _ in rows] == ["x\u2028y\x85z", LONE, ""]
    assert answers["c"][0].error == "the recorded 'output' is None, not text"
    (tmp_path / "o.jsonl").write_text(lines[0] + "\n\n{\n")
    with pytest.raises(samples.DataError, match=r"o\.jsonl:3: not JSON"):
        Replay(tmp_path / "o.jsonl", {}, "label")


def test_an_item_that_no_tokenizer_reads(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"question": text, "answer": "#### 18"} for text in ("one", LONE, "three")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "extends: gsm8k\nsources: [{file: mine.jsonl, reader: gsm8k}]\nitems: 3\n"
    )
    settings = [
        "--tasks",
        tmp_path / "mine.yaml",
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path / "out",
    ]
    settings += ["--model", tiny_model("llama"), "--max-tokens", 4, "--temperature", 0]
    assert evals("run", *settings, "--workers", 1) == 0
    scored = samples.read_lines(tmp_path / "out" / "mine" / "greedy" / "scored.jsonl")[0]
    assert [bool(record["error"]) for record in scored] == [False, True, False]
    assert "lone surrogate" in scored[1]["error"]


def test_a_broken_record_is_left_out_of_the_mean_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"A": "a", "B": "b"}
    golds = ["A", "A", "C", "A"]  # the third one is no option
    rows = [{"question": f"q{i}", "options": options, "gold": gold} for i, gold in enumerate(golds)]
    folder = tmp_path / "out" / "broken" / "greedy"
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps(row | {"answer_idx": "A"}) + "\n" for row in rows)
    )
    (tmp_path / "broken.yaml").write_text(
        "extends: gsm8k\nsources: [{file: mine.jsonl, reader: choices}]\nitems: 4\n"
        "graders: [medical-m1]\ncolumns: {Mine: medical-m1}\n"
    )
    (tmp_path / "o.jsonl").write_text(
        "".join(
            json.dumps({"item_id": str(i), "output": "\\boxed{A}" + LONE}) + "\n" for i in range(4)
        )
    )
    settings = ["--tasks", tmp_path / "broken.yaml", "--data-dir", tmp_path, "--out"]
    settings += [tmp_path / "out", "--backend", "replay", "--replay", tmp_path / "o.jsonl"]
    assert evals("generate", *settings, "--temperature", 0) == 0
    items, _ = samples.read_lines(folder / "items.jsonl")
    samples.write_lines(
        folder / "items.jsonl",
        [item | {"fields": row} for item, row in zip(items, rows, strict=True)],
    )
    assert evals("score", folder) == 0
    assert "left out of the means: medical-m1 25.0 %" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["rates"]["ungraded"] == {"medical-m1": 0.25}
    assert (result["metrics"]["medical-m1"]["value"], result["metrics"]["medical-m1"]["n"]) == (
        1,
        3,
    )
    scored, _ = samples.read_lines(folder / "scored.jsonl")
    assert scored[0]["output"].endswith("\ud83d") and "remarks" not in scored[0]
    assert scored[2]["remarks"]["medical-m1"].startswith("gold is 'C'")
