"""The run folder: one run at a time writes to it; it holds the configuration, the versions, and
what code of the user's own the run is of."""

import json
import os
import shutil
from pathlib import Path

import torch.distributed as dist

from adaptsft.config.load import differences, read_config, save_config
from adaptsft.config.schema import Config
from adaptsft.config.user_code import of_config
from adaptsft.distributed import checkpoint
from adaptsft.distributed.ranks import rank, world_size
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.files import lock, replacing
from adaptsft.model.language import is_adapter
from adaptsft.training.environment import environment

CODE = "user_code"  # folder of the user's own code, by the key that names it


def check_writable(run: Path) -> None:
    """Raise ConfigError unless the folder, or the nearest existing one above it, is writable."""
    parent = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir={run}: {parent} is not a folder that can be written to")


def write_what_is_run(config: Config, chosen: dict[str, str], skipped: list[str]) -> None:
    """config.yaml, environment.json with what was `chosen` for auto, the user's own code and, where
    records were left out, skipped_records.txt."""
    run = Path(config.run_dir)
    _write_code(config, run)
    if skipped:
        with replacing(run / "skipped_records.txt") as partial:
            partial.write_text("".join(f"{line}\n" for line in skipped))
    with replacing(run / "config.yaml") as partial:
        save_config(config, partial)
    found = environment() | {"chosen": chosen}
    (run / "environment.json").write_text(json.dumps(found, indent=1))


def _code_of(config: Config) -> dict[str, bytes]:
    """The user's own code, by its place in the folder CODE."""
    return {
        f"{key}/{name}": content
        for key, code in of_config(config).items()
        for name, content in code.files.items()
    }


def _write_code(config: Config, run: Path) -> None:
    """All of it or nothing."""
    folder, partial, files = run / CODE, run / f"{CODE}.tmp", _code_of(config)
    if not files or _saved_code(folder) == files:
        return
    for old in (folder, partial):
        shutil.rmtree(old, ignore_errors=True)
    for name, content in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    partial.rename(folder)


def _saved_code(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _changed_code(config: Config, run: Path) -> list[str]:
    """Files of the user's own code that are not what the run in this folder began with. None where
    the folder has no copy: its user has removed it, to go on with other code."""
    then, now = _saved_code(run / CODE), _code_of(config)
    if not then:
        return []
    return [name for name in sorted(then | now) if then.get(name) != now.get(name)]


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from, verified, or None for a new run. Writes nothing.

    Raises ConfigError or CheckpointError rather than mix two runs in one folder.
    """
    run = Path(config.run_dir)
    saved = run / "config.yaml"
    if rank() == 0 and (run / ".lock").is_file():
        lock(run).close()  # refuse now, not after loading the model
    if saved.is_file():
        if config.resume == "never":
            raise ConfigError(
                f"run_dir={run} holds a run already and resume=never: choose another run_dir, or "
                "resume=auto to continue it"
            )
        if changed := differences(read_config(saved), config):
            raise ConfigError(
                f"run_dir={run} holds a run with another configuration ({'; '.join(changed)}): "
                f"choose another run_dir, or undo the change{train_on(run)}"
            )
    check_writable(run)
    complete = checkpoint.complete_checkpoints(run / "checkpoints")
    if config.resume == "auto":
        found = complete[-1] if complete else None
    else:
        found = None if config.resume == "never" else Path(config.resume)
    if found is None:
        return None
    if not found.is_dir():
        raise CheckpointError(f"resume={found}: no such checkpoint folder")
    origin = found.parent.parent / "config.yaml"
    if origin.is_file() and (changed := differences(read_config(origin), config)):
        raise CheckpointError(
            f"resume={found} belongs to a run with another configuration ({'; '.join(changed)}): "
            f"undo the change, or leave resume out{train_on(origin.parent)}"
        )
    if changed_files := _changed_code(config, origin.parent):
        raise CheckpointError(
            f"{found} was trained with other code of yours ({', '.join(changed_files)}): undo the "
            f"change, or choose another run_dir; to go on from there with the new code, remove "
            f"{origin.parent / CODE}, which holds the old{train_on(origin.parent)}"
        )
    if rank() == 0:
        checkpoint.verify(found)
    return found


def train_on(run: Path) -> str:
    """The end of a message: how to go on from the model of a finished run."""
    if not (run / "final").is_dir():
        return ""
    if is_adapter(run / "final"):
        return (
            ". To train its model on, with other data, steps or settings: python -m "
            f"adaptsft.export {run} OUT --merge, then model.path=OUT and another run_dir"
        )
    return (
        f". To train its model on, with other data, steps or settings: model.path={run / 'final'} "
        "and another run_dir"
    )


def check_same_checkpoint(found: Path | None) -> None:
    """Raise unless all ranks have found the same: without a shared run folder they would not."""
    seen: list[str | None] = [None] * world_size()
    dist.all_gather_object(seen, None if found is None else found.name)
    if len(set(seen)) > 1:
        raise CheckpointError(
            f"ranks find different checkpoints in run_dir ({seen}): it must be on storage that all "
            "nodes share"
        )
