"""One run at a time writes to a folder, also where the file system knows no locks."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.files import lock
from adaptsft.train import train
from tests.runs import small_config, write_data


def failing(number: int):
    def flock(file, operation) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_mount_without_locks_can_be_trained_in(tmp_path, tiny_model, monkeypatch, capsys, number):
    config = small_config(tmp_path, tiny_model(), train__max_steps=1)
    monkeypatch.setattr(fcntl, "flock", failing(number))
    train(config)
    assert (Path(config.run_dir) / "final").is_dir()
    assert "its file system has no locks" in capsys.readouterr().err


def test_a_folder_that_another_run_holds_is_refused(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model(), train__max_steps=1)
    Path(config.run_dir).mkdir()
    held = lock(Path(config.run_dir))
    with pytest.raises(ConfigError, match="another run is writing to it"):
        train(config)
    held.close()
    train(config)


def test_a_finished_run_names_the_way_to_train_on(tmp_path, tiny_model, capsys):
    model = tiny_model()
    config = small_config(tmp_path, model, train__max_steps=1)
    train(config)
    way = f"model.path={config.run_dir}/final and another run_dir"
    train(config)
    assert way in capsys.readouterr().err
    with pytest.raises(ConfigError, match=way):
        train(small_config(tmp_path, model, train__max_steps=2))
    newest = Path(config.run_dir) / "checkpoints" / "step_00000001"
    with pytest.raises(CheckpointError, match=way):
        train(small_config(tmp_path, model, "other", train__max_steps=2, resume=newest))
    write_data(tmp_path / "data.jsonl", 30, seed=5)
    with pytest.raises(CheckpointError, match=f"data has changed.*{way}"):
        train(config)
    train(small_config(tmp_path, Path(config.run_dir) / "final", "on", train__max_steps=2))
    shutil.rmtree(Path(config.run_dir) / "final")
    with pytest.raises(ConfigError, match=r"undo the change$"):
        train(small_config(tmp_path, model, train__max_steps=2))


def test_another_error_of_the_lock_is_reported_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(CheckpointError, match=r"cannot be locked: .*Input/output error"):
        lock(tmp_path)
