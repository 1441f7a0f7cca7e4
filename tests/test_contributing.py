"""What CONTRIBUTING shows is true: its patches apply, and the tests that they add pass."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPO

PATCHES = re.findall(r"```diff\n(.*?)```", (REPO / "CONTRIBUTING.md").read_text(), re.DOTALL)
LONGEST = 25  # lines of a patch
# what the patches add
TESTS = [
    "tests/objectives/test_library.py",
    "tests/objectives/test_build.py",
    "tests/controllers/test_build.py",
    "tests/controllers/test_mean_p.py",
    "tests/data/test_question.py",
    "tests/evals/test_math500_greedy.py",
    "tests/model/test_loss.py",
    "tests/model/test_tiny.py",
]


@pytest.mark.nightly
def test_every_walk_is_a_short_patch_that_applies_and_passes_its_test(tmp_path):
    assert len(PATCHES) == 5, "objective, controller, data layout, evaluation task, architecture"
    assert all(len(patch.splitlines()) <= LONGEST for patch in PATCHES)
    copy = tmp_path / "adaptsft"
    for name in (
        "adaptsft",
        "kernels",
        "tests",
        "docs",
        "examples",
        "tools",
        "README.md",
        "pyproject.toml",
    ):
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    for patch in PATCHES:
        subprocess.run(
            ["git", "apply", "--unidiff-zero"], input=patch, text=True, cwd=copy, check=True
        )
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'kernels'}"}
    subprocess.run([sys.executable, "tools/docs.py"], cwd=copy, env=environment, check=True)
    wanted = "sqrt or mean_p or question or math500_greedy or olmo2 or documentation"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted, *TESTS]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= len(PATCHES) + 2
