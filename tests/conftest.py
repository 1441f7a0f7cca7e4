"""What the tests share: the repository's paths, tiny models, and skips that say why."""

import gc
import os

# before torch is imported: tests are small, and ranks share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is a bug
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adaptsft.model.tiny import make_tiny_model

REPO = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Beside a GPU, the tests for CPU and the runs that they start stay on the CPU, in fp32 and
    over gloo: `-m gpu` shows the GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            ""  # read when CUDA is first asked for, which importing torch does not do
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # item.keywords also holds the names of folders above
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))


def pytest_collection_finish() -> None:
    """No garbage collection of a test looks at what has been imported: an eighth of their time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is frozen when Python ends is reported as leaked


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets beside the repository; where it is absent, tests that ask for it are
    skipped."""
    path = REPO.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model("qwen2", tied=True, layers=1)`: the folder of a tiny random model with its
    tokenizer, made once per session."""
    made: dict[tuple, Path] = {}

    def folder(arch: str = "llama", **options) -> Path:
        key = (arch, *sorted(options.items()))
        if key not in made:
            made[key] = make_tiny_model(tmp_path_factory.mktemp(arch) / "model", arch, **options)
        return made[key]

    return folder
