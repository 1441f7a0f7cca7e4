"""What `make lint` checks, but for types, and how long files are."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

LONGEST = 350  # lines of a file of code
TABLES = ("adaptsft/config/schema.py",)  # may be longer
FOLDERS = ("adaptsft", "kernels", "benchmarks", "tools", "tests")


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["lint-imports"],
    ],
    ids=" ".join,
)
def test_lint(command):
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_long():
    paths = [path for folder in FOLDERS for path in (REPO / folder).rglob("*.py")]
    assert len(paths) > 300
    lines = {str(path.relative_to(REPO)): len(path.read_text().splitlines()) for path in paths}
    assert {name for name, count in lines.items() if count > LONGEST} == set(TABLES)
