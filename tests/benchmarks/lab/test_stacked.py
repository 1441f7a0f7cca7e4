"""The lab's fast mode takes the steps of adaptsft.train."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.errors import ConfigError
from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import families, settings, tasks
from benchmarks.lab.__main__ import CONFIGS
from benchmarks.lab.regimes import find
from benchmarks.lab.runs import metrics_of
from benchmarks.lab.settings import Methods
from benchmarks.lab.stacked.examples import Examples
from benchmarks.lab.stacked.model import StackedLlama, config_of
from benchmarks.lab.stacked.training import StackedRun, train_stacked
from benchmarks.lab.training import configure, train_logged

STEPS, BATCH = 50, 8
METHODS = ["alpha_0", "deft", "eaft", "talr", "linear", "threshold_0.2", "auto"]
# batches are drawn, clipped and weighted by all that the trainer may be asked for
MORE = {
    "kept": {"objective": {"name": "threshold", "lower": 0.05, "normalizer": "kept"}},
    "exempt": {"objective": {"name": "neg_p", "exempt": "eos", "unit_mass": True}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_model(folder, tokenizer=tasks.tokenizer(families.find("letters")), hidden=32)


def sources_of(folder: Path, regime: str, lengths: bool) -> dict[str, Path]:
    family, paths = families.find("letters"), {}
    for part in find(regime)[0].parts:
        noise = tasks.Noise("cut", 0.5) if lengths else part.noise
        pairs, path = [(family.role(part.role), noise)], folder / f"{regime}-{part.role}.jsonl"
        paths[part.role] = tasks.write_examples(path, family, pairs, 150, False, part.role)
    return paths


@pytest.mark.nightly
@pytest.mark.parametrize(("regime", "lengths"), [("mix_strong_weak", False), ("mw_noisy", True)])
def test_stacked_runs_are_those_of_the_trainer(
    model: Path, tmp_path: Path, regime: str, lengths: bool
) -> None:
    keys = settings.read(Methods, CONFIGS / "methods.yaml", []).methods
    chosen: dict[str, Any] = {name: keys[name] for name in METHODS} | MORE
    train = {"max_steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 1, "lr": 3e-3}
    base = {"data": {"max_length": 128}, "train": train | {"device": "cpu"}}
    sources = sources_of(tmp_path, regime, lengths)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    weights, examples = dict(loaded.state_dict()), Examples.read(sources, tokenizer)
    runs = []
    for seed, (name, method) in enumerate(chosen.items()):
        config = configure(tmp_path / name, model, seed, sources, tmp_path / "cache", base, method)
        runs.append(StackedRun(config, examples, weights, tokenizer))
    stacked = StackedLlama(config_of(loaded.config), examples.ids.shape[1])
    for run, (found, lines) in zip(runs, train_stacked(stacked, runs), strict=True):
        train_logged(run.config)
        folder = Path(run.config.run_dir)
        right = AutoModelForCausalLM.from_pretrained(folder / "final").state_dict()
        for name, weight in right.items():
            # fp32, summed in another order, through AdamW's division by the root of tiny moments
            assert torch.allclose(found[name], weight, rtol=0, atol=1e-4), (folder.name, name)
        for line, metrics in zip(lines, metrics_of(folder), strict=True):
            for key, one, other in each(line, metrics):
                known = one is None or other is None  # a source without a token in the step
                close = one == (other if known else pytest.approx(other, rel=1e-5, abs=1e-5))
                assert close, (folder.name, line["step"], key, one, other)


def each(line: Any, metrics: Any) -> Any:
    """The numbers of `line` with those of the same name in `metrics`."""
    for key, value in line.items():
        yield from (
            each(value, metrics[key]) if isinstance(value, dict) else [(key, value, metrics[key])]
        )


def test_other_models_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, tied=True)
    with pytest.raises(ConfigError, match="plain Llama"):
        config_of(AutoModelForCausalLM.from_pretrained(folder).config)
