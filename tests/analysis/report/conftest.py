"""Two runs, and their page."""

from pathlib import Path

import pytest

from adaptsft.train import train
from tests.analysis.report.pages import Page, report
from tests.runs import small_config, write_data


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_model) -> list[Path]:
    """Two runs of eight steps on two sources, by NLL and by a threshold, with held-out data."""
    folder = tmp_path_factory.mktemp("runs")
    sources = [
        {"name": name, "path": str(write_data(folder / f"{name}.jsonl", 12, seed))}
        for seed, name in enumerate(("sums", "more"))
    ]
    settings = {
        "data__path": "",
        "data__sources": sources,
        "data__validation_examples": 4,
        "eval__every": 4,
        "train__max_steps": 8,
    }
    folders = []
    for name, keys in (
        ("nll", {}),
        (
            "kept",
            {"objective__name": "threshold", "objective__lower": 0.02, "train__clip_norm": 0.5},
        ),
    ):
        config = small_config(
            folder, tiny_model("llama"), name, checkpoint__every=0, **settings, **keys
        )
        train(config)
        folders.append(Path(config.run_dir))
    return folders


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory) -> Page:
    return report(tmp_path_factory.mktemp("report"), *runs)
