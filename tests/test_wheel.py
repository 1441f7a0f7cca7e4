"""The installed packages: one console script for every command, types that a user's checker sees,
and the kernels alone. The wheels are built and installed into folders."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adaptsft.__main__ import COMMANDS, MODULES
from tests.conftest import REPO

KERNELS_README = REPO / "kernels" / "adaptsft_kernels" / "README.md"
USER_FILE = """
from adaptsft import load_config
from adaptsft.train import train
from adaptsft_kernels import linear_objective

reveal_type(load_config([]).train.lr)
reveal_type(linear_objective)
train("not a configuration")
load_config([]).train.lrr
"""


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def install(source: Path, folder: Path) -> Path:
    """A folder with what the sources build, as `pip install --target` leaves it."""
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    done = subprocess.run([*PIP, *build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    command = [*PIP, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def copy(name: str, folder: Path) -> None:
    """Sources that no earlier build has left anything in."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    shutil.copytree(REPO / name, folder / name, ignore=ignore)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("adaptsft", "kernels"):
        copy(name, folder / "source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, folder / "source")
    return install(folder / "source", folder)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Path:
    """adaptsft-kernels alone, of nothing but its own folder."""
    folder = tmp_path_factory.mktemp("kernels")
    copy("kernels", folder)
    return install(folder / "kernels", folder)


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


def test_the_kernels_alone_need_torch_and_triton(kernels):
    (found,) = importlib.metadata.distributions(path=[str(kernels)])
    assert found.metadata["Name"] == "adaptsft-kernels"
    required = [re.split(r"\W", line)[0] for line in found.requires or []]
    assert required == ["torch", "triton"]
    assert sorted(path.name for path in kernels.iterdir()) == [
        "adaptsft_kernels",
        f"adaptsft_kernels-{found.version}.dist-info",
    ]
    page = found.metadata.get_payload()
    assert page.startswith("# adaptsft_kernels")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert all(link.startswith("https://") for link in links), "others lead nowhere on PyPI"


def test_the_kernels_run_where_adaptsft_is_not(kernels):
    """The README's first example, in an interpreter that has only what lies beside torch."""
    example = re.search(r"```python\n(.*?)```", KERNELS_README.read_text(), re.DOTALL)
    assert example
    code = "import sys\nsys.modules['adaptsft'] = None  # importing it is an error\n" + example[1]
    code += "\nimport adaptsft_kernels\nprint(adaptsft_kernels.__file__)"
    # not all below the checkout: the environment may lie there
    beside = [path for path in sys.path if path and Path(path) not in (REPO, REPO / "kernels")]
    done = subprocess.run(
        # -S: no .pth of an editable install
        [sys.executable, "-S", "-c", code],
        cwd=kernels.parent,
        env={"PYTHONPATH": os.pathsep.join([str(kernels), *beside])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said, file = done.stdout.splitlines()
    assert said.startswith("NLL ") and file == str(kernels / "adaptsft_kernels" / "__init__.py")


def test_both_packages_hold_the_same_kernels_and_another_version_is_refused(
    kernels, installed, tmp_path
):
    """Installed together, whichever comes last, they are the same files; of two versions adaptsft
    does not run with the other's."""
    files = sorted(path.name for path in (kernels / "adaptsft_kernels").iterdir())
    assert "py.typed" in files and len(files) > 8
    assert files == sorted(path.name for path in (installed / "adaptsft_kernels").iterdir())
    for name in files:
        ours, alone = (site / "adaptsft_kernels" / name for site in (installed, kernels))
        assert name == "__pycache__" or ours.read_bytes() == alone.read_bytes(), name

    # without the compiled file, which a change of the same length within a second leaves valid
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(kernels / "adaptsft_kernels", tmp_path / "adaptsft_kernels", ignore=ignore)
    version = tmp_path / "adaptsft_kernels" / "version.py"
    version.write_text(version.read_text().replace("0.1.0", "0.2.0"))
    done = subprocess.run(
        [sys.executable, "-c", "import adaptsft.objectives.base"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"found 0.2.0 in {version}: pip uninstall adaptsft-kernels" in done.stderr
