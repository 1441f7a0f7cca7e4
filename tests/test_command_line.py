"""Quick answers: what a command can tell without torch, it tells without importing it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import adaptsft
from adaptsft.command_line import first_answer
from tests.conftest import REPO

# what takes seconds to import
SLOW = ("torch", "transformers", "datasets", "numpy", "matplotlib")
WATCH = """
import runpy, sys
try:
    {code}
finally:
    print("IMPORTED", *sorted({slow!r} & sys.modules.keys()))
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Python that ends by printing which of SLOW it has imported."""
    program = WATCH.format(code=code, slow=set(SLOW))
    environment = {"PYTHONPATH": f"{REPO}:{REPO / 'kernels'}"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )


def command(*arguments: str) -> str:
    return (
        f"sys.argv[1:] = {list(arguments)!r}; "
        "runpy.run_module('adaptsft.train', run_name='__main__', alter_sys=True)"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "usage: torchrun"),
        ([], 2, "usage: torchrun"),
        (["train.lrr=1"], 2, "unknown key train.lrr; did you mean train.lr?"),
        (["train.lr=fast"], 2, "train.lr"),
        (["missing.yaml"], 2, "missing.yaml: no such configuration file"),
        (["model.path=./modell"], 2, "model.path=./modell: no such folder; did you mean model?"),
    ],
)
def test_a_first_answer_needs_no_torch(tmp_path, arguments, code, text):
    (tmp_path / "model").mkdir()
    done = run(command(*arguments), tmp_path)
    assert done.returncode == code, done.stderr
    assert text in (done.stdout if code == 0 or not arguments else done.stderr)
    assert done.stdout.splitlines()[-1] == "IMPORTED", "nothing slow"


def test_importing_the_package_needs_no_torch(tmp_path):
    code = "import adaptsft; adaptsft.__version__; print(dir(adaptsft) and adaptsft.__all__)"
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "IMPORTED"


def test_the_public_api_is_imported_when_it_is_used():
    from adaptsft.config import resolve

    assert adaptsft.load_config is resolve.load_config
    with pytest.raises(AttributeError, match="no attribute 'load_confg'"):
        adaptsft.load_confg  # noqa: B018


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert adaptsft.__version__ == project["version"]


def test_help_names_the_tables_and_errors_are_printed_once_per_node(capsys, monkeypatch):
    assert first_answer(["--help"]) == 0
    text = capsys.readouterr().out
    assert "python -m adaptsft.objectives" in text and "python -m adaptsft.controllers" in text
    assert first_answer(["train.lr=1e-4"]) is None
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert first_answer(["train.lrr=1"]) == 2 and first_answer(["--help"]) == 0
    out = capsys.readouterr()
    assert out.out == out.err == ""
