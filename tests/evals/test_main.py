"""The command line: mistakes are answered with the fix."""

import os
import subprocess
import sys

import pytest

from adaptsft.config.schema import DataConfig, EvalConfig
from adaptsft.errors import ConfigError
from adaptsft.evals import generate, in_training
from adaptsft.evals.__main__ import parser
from adaptsft.evals.graders import grading
from tests.conftest import REPO
from tests.evals.pipeline import evals


def test_mistakes_on_the_command_line(tiny_model, tmp_path, capsys, shared_data):
    common = ["--out", tmp_path, "--data-dir", shared_data]
    assert evals("run", "--tasks", "humaneval", "--model", tiny_model("llama"), *common) == 2
    assert "--allow-code-exec" in capsys.readouterr().err
    assert evals("run", "--tasks", "gms8k", "--model", tiny_model("llama"), *common) == 2
    assert "did you mean gsm8k" in capsys.readouterr().err
    assert evals("generate", "--tasks", "gsm8k", "--out", tmp_path) == 2
    assert "--model" in capsys.readouterr().err
    assert evals("score", tmp_path / "nothing") == 3
    assert evals("report", tmp_path / "nothing") == 3
    assert "run `python -m adaptsft.evals score" in capsys.readouterr().err
    assert evals("report") == 2
    with pytest.raises(SystemExit):
        evals("generate", "--tasks", "gsm8k", "--out", tmp_path, "--temperature", "-1")
    assert "0 (greedy) or above" in capsys.readouterr().err
    for option, value, message in (
        ("--temperature", "0;1", "0;1: write a temperature"),
        ("--limit", "x", "x: must be a whole number, 1 or more"),
    ):
        with pytest.raises(SystemExit):
            evals("generate", "--tasks", "gsm8k", "--out", tmp_path, option, value)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evals("judge", tmp_path, tmp_path, "--out", tmp_path, "--limit", 0)
    assert "--limit: 0: must be a whole number, 1 or more" in capsys.readouterr().err
    for option, value, reader in (
        ("--url", "http://localhost:1/v1", "http"),
        ("--tensor-parallel", 2, "vllm"),
        ("--max-model-len", 512, "vllm"),
    ):
        command = ["generate", "--tasks", "gsm8k", "--model", tiny_model("llama"), *common]
        assert evals(*command, option, value) == 2
        refusal = f"{option} {value}: --backend hf does not read it; it is of --backend {reader}"
        assert refusal in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        evals("--help")
    assert ended.value.code == 0
    assert "three stages" in capsys.readouterr().out


def test_a_grader_that_cannot_grade_is_known_before_anything_is_generated(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "find_spec", lambda name: None if name == "math_verify" else name)
    missing = r"grader math-robust needs math_verify: pip install 'adaptsft\[eval\]'"
    options = parser().parse_args(
        ["run", "--tasks", "gsm8k", "--model", "none/such", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(ConfigError, match=missing):
        generate.answer(options)
    with pytest.raises(ConfigError, match=missing):
        in_training.prepare(EvalConfig(tasks=["gsm8k"]), None, DataConfig(), 0)
    monkeypatch.setattr(grading, "find_spec", lambda name: None)
    options.tasks = "humaneval"
    with pytest.raises(ConfigError, match="grader code needs tree_sitter, tree_sitter_python"):
        generate.answer(options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--tsks", "x"], ["judge", "--help"]])
def test_help_and_misspelt_options_are_answered_without_torch(arguments: list[str]) -> None:
    program = f"""
import sys
from adaptsft.evals.__main__ import main
try: main({arguments!r})
except SystemExit: pass
print({{"torch", "transformers"}} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == "set()"
