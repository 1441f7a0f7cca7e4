"""What the lab asks of adaptsft: configurations, what the pretrained model makes of the data, and
training with a log per run."""

import contextlib
import io
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers.utils import logging

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.diagnose import Options, diagnose
from adaptsft.train import train


def configure(
    run_dir: Path, model: Path, seed: int, sources: dict[str, Path], cache: Path, *keys: Any
) -> Config:
    """The trainer's configuration, left in `run_dir`.yaml so that any run can be repeated by hand.
    Raises ConfigError."""
    data: dict[str, Any] = {"template": "plain", "prompt_template": "{prompt}"}
    data["cache_dir"] = str(cache)
    if len(sources) == 1:
        data["path"] = str(*sources.values())
    else:
        data["sources"] = [{"name": name, "path": str(path)} for name, path in sources.items()]
    places = {"run_dir": str(run_dir), "seed": seed, "model": {"path": str(model)}, "data": data}
    files = {"checkpoint": {"export_dtype": "fp32"}, "log": {"trackers": []}}
    path = Path(f"{run_dir}.yaml")  # not with_suffix: the name of a method may hold a dot
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.merge(*keys, places, files)))
    return load_config([str(path)])


def measure_base(config: Config) -> str:
    """The path of what objective.base_tokens reads, of the model and the data of a run: left beside
    it, in `run_dir`.diagnosis. Raises UserError."""
    logging.disable_progress_bar()
    out = f"{config.run_dir}.diagnosis"
    with contextlib.redirect_stderr(io.StringIO()):
        diagnose(Options(sample=None, out=out, per_token=True), config)
    return f"{out}/base_tokens.safetensors"


def train_logged(config: Config) -> None:
    """Train; the trainer's lines go to `run_dir`.log. Raises KeyboardInterrupt where the run was
    asked to stop: there is no trained model."""
    logging.disable_progress_bar()
    with contextlib.ExitStack() as stack:
        # line by line: another process shows the last one
        log = stack.enter_context(Path(f"{config.run_dir}.log").open("w", buffering=1))
        stack.enter_context(contextlib.redirect_stderr(log))
        if train(config).get("stopped"):
            raise KeyboardInterrupt  # a signal asked the trainer to save and stop
