"""The installed package: one console script for every command, and types that a user's checker
sees. The wheel is built and installed into a folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adaptsft.__main__ import COMMANDS, MODULES
from tests.conftest import REPO

USER_FILE = """
from adaptsft import load_config
from adaptsft.train import train
from adaptsft_kernels import linear_objective

reveal_type(load_config([]).train.lr)
reveal_type(linear_objective)
train("not a configuration")
load_config([]).train.lrr
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package, as `pip install --target` leaves it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("adaptsft", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPO / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    done = subprocess.run([*pip, *build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", folder / "site", wheel]
    done = subprocess.run([*pip, *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def adaptsft(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, site / "bin" / "adaptsft", *arguments],
        cwd=site.parent,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


def test_the_script_lists_every_command(installed):
    done = adaptsft(installed, "--help")
    assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in COMMANDS)
    modules = {MODULES.get(name, name) for name in COMMANDS}
    own = {path.stem for path in (REPO / "adaptsft").glob("*.py") if "__main__" in path.read_text()}
    own |= {path.parent.name for path in (REPO / "adaptsft").glob("*/__main__.py")}
    assert modules == own - {"__main__"}, "each has its line, and each line is one"
    done = adaptsft(installed)
    assert done.returncode == 2 and done.stdout.startswith("usage: adaptsft COMMAND")
    assert adaptsft(installed, "--version").stdout == "adaptsft 0.1.0\n"


def test_a_misspelt_command(installed):
    done = adaptsft(installed, "trian", "model.path=x")
    assert done.returncode == 2
    assert done.stderr.startswith("adaptsft: trian: no such command; did you mean train?")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["train", "--help"], 0, "train.gc_every"),
        (["train", "train.lrr=1"], 2, "adaptsft.train: ConfigError: "),
        (["evals", "--help"], 0, "python -m adaptsft.evals"),
        (["export", "RUN", "OUT", "--dtype=fp8"], 2, "fp8"),
        (["chat", "no/such/run"], 4, "no/such/run"),
    ],
)
def test_a_command_is_its_module(installed, arguments, code, text):
    done = adaptsft(installed, *arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr


def test_the_types_are_seen_from_outside(installed, tmp_path):
    for package in ("adaptsft", "adaptsft_kernels"):
        assert (installed / package / "py.typed").is_file()
    (tmp_path / "mine.py").write_text(USER_FILE)
    (tmp_path / "pyrefly.toml").touch()  # a project: all checks
    pyrefly = Path(sys.executable).parent / "pyrefly"
    command = [pyrefly, "check", tmp_path / "mine.py", "--site-package-path", installed]
    command += ["--python-interpreter-path", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert "revealed type: float" in said
    assert "Literal['not a configuration']" in said and "lrr" in said
