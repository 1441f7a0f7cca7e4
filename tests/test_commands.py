"""Commands answer --help and mistakes in their arguments before they import torch: in a moment."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO

COMMANDS = {
    "train": "",
    "plan": "a=b",
    "diagnose": "",
    "report": "RUN",
    "chat": "M",
    "export": "RUN OUT",
}
SETTINGS = ("train", "plan", "diagnose")  # commands whose arguments are a configuration
CASES = [(command, "--help", 0, "usage: ") for command in COMMANDS]
CASES += [(c, f"{others} --tempratur=3", 2, "--tempratur=3") for c, others in COMMANDS.items()]
CASES += [(command, "train.micro_batchsize=2", 2, "train.micro_batch_size") for command in SETTINGS]
CASES += [(command, "model.path=./no/such", 2, "no such folder") for command in SETTINGS]
CASES += [
    ("diagnose", "sample=0", 2, "sample=0: must be a number of examples"),
    ("chat", "M --temperature=-1", 2, "--temperature at least 0"),
    ("export", "RUN OUT --dtype=fp8", 2, "fp8"),
]

# all in one new interpreter; the first that imports torch is the one to blame
SCRIPT = """
import contextlib, io, json, runpy, sys
for command, arguments in json.loads(sys.argv[1]):
    sys.argv, code, output = [command, *arguments.split()], None, io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_module(f"adaptsft.{command}", run_name="__main__")
        except SystemExit as error:
            code = error.code
    slow = [name for name in ("torch", "transformers", "matplotlib") if name in sys.modules]
    print(json.dumps([code, output.getvalue(), slow]), flush=True)
"""


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], tuple[int, str, list[str]]]:
    asked = [case[:2] for case in CASES]
    environment = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(asked, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("command", "arguments", "code", "text"), CASES)
def test_the_first_answer_needs_no_torch(answers, command, arguments, code, text):
    found, output, slow = answers[command, arguments]
    assert slow == []
    assert found == code and text in output
