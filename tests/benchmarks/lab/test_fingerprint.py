"""A result is used again only while the code that it depends on is the same."""

import shutil
from pathlib import Path

import pytest

from benchmarks.lab import fingerprint
from tests.conftest import REPO

PACKAGE, KERNELS = REPO / "adaptsft", REPO / "kernels" / "adaptsft_kernels"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The packages' sources, to be edited."""
    for package in (PACKAGE, KERNELS):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, tmp_path / package.name, ignore=ignored)
    return tmp_path


def of(folder: Path) -> str:
    package, kernels = folder / PACKAGE.name, folder / KERNELS.name
    return fingerprint.sources_fingerprint(
        {package: fingerprint.TRAINER, kernels: fingerprint.KERNELS}
    )


def test_any_file_that_trains_changes_the_fingerprint(copied: Path) -> None:
    seen = {of(copied)}
    trains = ["train.py", "config", "controllers", "data", "distributed", "model", "objectives"]
    places = [PACKAGE.name + "/" + name for name in [*trains, "statistics", "training"]]
    for place in [*places, KERNELS.name]:
        path = copied / place
        edited = path if path.is_file() else next(p for p in path.rglob("*.py") if p.stat().st_size)
        edited.write_text(edited.read_text() + "\n# edited\n")
        after = of(copied)
        assert after not in seen, f"{edited} is not part of the fingerprint"
        seen.add(after)
    (copied / PACKAGE.name / "objectives" / "new.py").touch()
    assert of(copied) not in seen, "a new file"


def test_a_program_that_does_not_train_changes_nothing(copied: Path) -> None:
    before = of(copied)
    (copied / PACKAGE.name / "report.py").write_text("# edited\n")
    assert of(copied) == before


def test_a_pattern_that_matches_nothing_is_an_error(copied: Path) -> None:
    """After a move, less code would be hashed and results of other code be used."""
    shutil.move(copied / PACKAGE.name / "controllers", copied / PACKAGE.name / "control")
    with pytest.raises(FileNotFoundError, match="controllers"):
        of(copied)


def test_the_code_that_runs_is_that_of_the_checkout() -> None:
    patterns = {PACKAGE: fingerprint.TRAINER, KERNELS: fingerprint.KERNELS}
    lab = {REPO / "benchmarks" / "lab": fingerprint.LAB}
    assert fingerprint.sources_fingerprint(patterns | lab) == fingerprint.CODE
