"""The quick start's own configuration; what it hands to the trainer is checked there."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from adaptsft.config import require
from adaptsft.errors import ConfigError
from adaptsft.quickstart.tasks import TASKS

FREE = ("run_dir", "seeds", "objectives", "workers")  # may change in a folder that holds results: every run stands for itself


@dataclass
class Settings:
    """configs/quickstart.yaml says what each key means."""

    run_dir: str = "runs/quickstart"
    known: str = "upper"
    new: str = "cipher"
    noise: float = 0.3
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    held_out: int = 512
    workers: int = 2
    model: dict[str, Any] = field(default_factory=dict)
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, Any] = field(default_factory=dict)

    def tasks(self) -> tuple[str, str]:
        return self.known, self.new


def load(arguments: list[str]) -> Settings:
    """The settings from `CONFIG.yaml [key=value …]`. Raises ConfigError."""
    path, overrides = Path(arguments[0]), arguments[1:]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.load(path), OmegaConf.from_dotlist(overrides))
        settings = cast(Settings, OmegaConf.to_object(merged))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(arguments)}: {str(error).splitlines()[0]}") from None
    for key, task in (("known", settings.known), ("new", settings.new)):
        require(task in TASKS, f"{key}={task}: no such task. Choose one of: {', '.join(TASKS)}")
    require(settings.known != settings.new, f"known and new are both {settings.new}: the model is pretrained on all tasks but the new one")
    require(0 <= settings.noise < 1, f"noise={settings.noise}: must lie in [0, 1)")
    require(1 <= settings.held_out <= 10_000, f"held_out={settings.held_out}: must lie in [1, 10000]")
    require(settings.workers >= 1, f"workers={settings.workers}: must be at least 1")
    require(len(settings.seeds) > 0 and len(settings.objectives) > 0, "seeds and objectives must not be empty")
    for key, part in (("pretrain", settings.pretrain), ("finetune", settings.finetune)):
        for name in ("max_steps", "global_batch_size"):
            value = (part.get("train") or {}).get(name)
            require(
                isinstance(value, int) and value > 0, f"{key}.train.{name} must be set, and above 0: it says how much data is generated"
            )
    for name in settings.objectives:
        require(re.fullmatch(r"[\w.-]+", name) is not None, f"objectives: {name!r} becomes a folder: use letters, digits, _, - and . only")
    return settings


def claim(folder: Path, settings: Settings) -> None:
    """Make the folder and write the settings into it. Raises ConfigError where it holds results of other settings."""
    saved = folder / "quickstart.yaml"
    now = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(settings)))
    if saved.is_file():
        before = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(saved)))
        changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
        require(
            not changed, f"run_dir={folder} holds results with another {', '.join(changed)}: set another run_dir, or delete that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    saved.write_text(OmegaConf.to_yaml(OmegaConf.create(now)))
