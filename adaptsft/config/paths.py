"""What is a path on this machine, and whether it is there; torch is not needed to find out."""

from pathlib import Path

from adaptsft.config.schema import ModelConfig
from adaptsft.errors import ConfigError, did_you_mean


def local_model_folder(config: ModelConfig) -> Path | None:
    """The folder that model.path names, or None where it is a name on the hub.

    Raises ConfigError where it looks like a path and is none, with the nearest folder beside it.
    """
    folder = Path(config.path)
    if folder.is_dir():
        if config.revision:
            raise ConfigError(
                f"model.revision={config.revision}: {config.path} is a folder here, not a model on "
                "the hub: leave it out"
            )
        return folder
    beside = folder.parent
    relative_to_a_folder = beside != Path(".") and beside.is_dir()
    if folder.is_absolute() or config.path.startswith(".") or relative_to_a_folder:
        names = [str(path) for path in beside.iterdir() if path.is_dir()] if beside.is_dir() else []
        hint = did_you_mean(config.path, names)
        raise ConfigError(f"model.path={config.path}: no such folder{hint}")
    return None
