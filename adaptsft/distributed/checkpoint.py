"""Checkpoints that are whole or absent: temporary folder -> fsync -> sha256 manifest -> rename ->
prune.

The sharded state (what is trained of the model, optimizer, the objective's tensors) goes through
torch.distributed.checkpoint (DCP) and loads on any number of ranks; the rest of a run's state is a
few numbers in state.json. Frozen parameters are read again from model.path, whose fingerprint is
among these. Data order and random numbers are pure functions of (seed, step, rank)
and need no state. DCP loads a bit-flipped file silently and unpickles its metadata, so nothing is
read before its checksum has been verified.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from adaptsft.config.schema import CheckpointConfig
from adaptsft.distributed.ranks import print0, rank, sync_errors
from adaptsft.errors import CheckpointError
from adaptsft.files import write_atomically

MANIFEST = "manifest.json"


class Checkpointer:
    """Saves to `folder/step_00000042`, keeps the newest `keep_last`, and never deletes one before
    the next one is complete."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        self.folder, self.keep_last, self.on_error = folder, config.keep_last, config.on_error
        # a group of its own: the background save communicates while the training loop does
        self.group: Any = dist.new_group(backend="gloo") if config.async_save else None
        self.background = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        """A background save ends, also where the run ends by an exception and the ranks no longer
        communicate."""
        self.background.shutdown()

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        tensors: dict[str, torch.Tensor],
        numbers: dict[str, Any],
    ) -> None:
        """Write the state after `step` steps. In the background with async_save; then the state is
        copied to memory first."""
        self.wait()
        final = self.folder / f"step_{step:08d}"
        temporary = final.with_suffix(".tmp")

        def make_folder() -> None:
            if rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)

        def finish() -> None:
            if rank() == 0:
                _write_json(temporary / "state.json", {"step": step} | numbers | _base_of(model))
                commit(temporary, final)
                self._prune()

        def write() -> None:
            if not temporary.is_dir():
                raise OSError(
                    f"{temporary}, which rank 0 made, is not there on rank {rank()}: all nodes "
                    "must share the run folder"
                )
            writer = dcp.FileSystemWriter(temporary, sync_files=True, thread_count=4)
            if self.group is None:
                dcp.save(state, storage_writer=writer)
                finish()
            else:
                saved: Any = dcp.async_save(state, storage_writer=writer, process_group=self.group)
                self.pending = self.background.submit(lambda: (saved.result(), finish())[1])

        state = full_state(model, optimizer, tensors)
        if self._on_all_ranks(make_folder):
            self._on_all_ranks(write)

    def wait(self) -> None:
        """Until a background save, if there is one, is complete on disk. All ranks call it
        together."""
        pending, self.pending = self.pending, None
        if self.group is not None:
            self._on_all_ranks(lambda: None if pending is None else pending.result())

    def _on_all_ranks(self, work: Callable[[], None]) -> bool:
        """Run on every rank; True if storage failed on none. A failure on any is raised on all, or
        only printed (checkpoint.on_error=continue)."""
        error = None
        try:
            work()
        except (OSError, dcp.api.CheckpointException) as caught:
            error = CheckpointError(
                f"{self.folder}: a checkpoint could not be saved: {caught}. Earlier checkpoints "
                "are intact"
            )
        try:
            sync_errors(error)
        except CheckpointError as error:
            if self.on_error == "stop":
                raise
            print0(f"{error}; training continues (checkpoint.on_error=continue)")
            return False
        return True

    def _prune(self) -> None:
        complete = complete_checkpoints(self.folder)
        # of a crash; no save is under way
        leftovers = [path for path in self.folder.glob("step_*") if path not in complete]
        for old in [*complete[: -self.keep_last], *leftovers]:
            try:
                delete(old)
            except OSError as error:
                print0(f"could not delete the old checkpoint {old}: {error}; training continues")


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    trained = _without_frozen(model_state, model)
    return {"model": trained, "optimizer": optimizer_state, "tensors": tensors}


def _without_frozen(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Not DCP's own ignore_frozen_params, which leaves the other name of a tied parameter."""
    named = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def _base_of(model: nn.Module) -> dict[str, str]:
    """What identifies the weights that a checkpoint leaves out."""
    fingerprint: Any = getattr(model, "frozen_fingerprint", None)
    return {"base": fingerprint} if fingerprint else {}


def _check_base(checkpoint: Path, model: nn.Module) -> None:
    """Raise CheckpointError where the frozen weights of the checkpoint's run were others. Those of
    the release before hold all weights."""
    saved = read_run_state(checkpoint).get("base")
    if saved is not None and saved != _base_of(model).get("base"):
        raise CheckpointError(
            f"{checkpoint}: holds what was trained beside frozen weights, and those in model.path "
            "have changed since: put the folder back as it was (of a model on the hub, set "
            "model.revision to the commit that the run began with)"
        )


def commit(temporary: Path, final: Path) -> None:
    """Seal a folder: checksum every file, make all of it durable, and give it its final name in one
    atomic step."""
    files = sorted(path for path in temporary.iterdir() if path.name != MANIFEST)
    metadata = dcp.FileSystemReader(temporary).read_metadata()
    named = {entry.relative_path for entry in metadata.storage_data.values()}
    if absent := sorted(named - {path.name for path in files}):
        raise OSError(
            f"{absent[0]}, which a rank has written, is not there: all nodes must share the run "
            "folder"
        )
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(_sha256, files)
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, digests, strict=True)
        }
    _write_json(temporary / MANIFEST, manifest)
    _sync_folder(temporary)
    # only ever there when a run repeats a step after resuming from an earlier one
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync_folder(final.parent)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first. A folder that a crash left unfinished has another name
    and is not among them."""
    named = (path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name))
    return sorted(path for path in named if (path / MANIFEST).is_file())


def delete(checkpoint: Path) -> None:
    # the manifest first: a deletion cut short must not leave what looks complete
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def verify(checkpoint: Path) -> None:
    """Raise CheckpointError, naming the file, unless every file is there with the size and checksum
    that were written."""
    others = [str(path) for path in complete_checkpoints(checkpoint.parent) if path != checkpoint]
    fix = "there is no other checkpoint beside it"
    if others:
        fix = f"resume from another one with resume={others[-1]}"
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except OSError:
        raise CheckpointError(
            f"{checkpoint}: not a complete checkpoint, it has no {MANIFEST}; {fix}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{checkpoint / MANIFEST}: damaged; {fix}") from None

    def check(item: tuple[str, tuple[int, str]]) -> str | None:
        name, (size, digest) = item
        path = checkpoint / name
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != size:
            return f"{path}: truncated or changed, {path.stat().st_size} bytes instead of {size}"
        if _sha256(path) != digest:
            return f"{path}: damaged, its sha256 is not the one written"
        return None

    with ThreadPoolExecutor(8) as pool:
        for problem in pool.map(check, expected.items()):
            if problem:
                raise CheckpointError(f"{problem}; {fix}")


def read_run_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text())


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Load a verified checkpoint into the model, the optimizer and `tensors`, in place, on any
    number of ranks."""
    _check_base(checkpoint, model)
    state = full_state(model, optimizer, tensors)
    reader = dcp.FileSystemReader(checkpoint)
    moments = state["optimizer"]["state"]
    unmoved = _without_moments(moments, reader)
    # loaded in place: those of `unmoved` stay what they were made as
    state["optimizer"]["state"] = {n: own for n, own in moments.items() if n not in unmoved}
    try:
        dcp.load(state, storage_reader=reader)
    except (dcp.api.CheckpointException, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint}: does not fit this model or its controller: {error}"
        ) from None
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"] | {"state": moments | state["optimizer"]["state"]},
        options=StateDictOptions(strict=False),  # frozen ones are not there
    )
    for name, parameter in model.named_parameters():
        if name in unmoved:
            optimizer.state.pop(parameter, None)


def _without_moments(moments: dict[str, Any], reader: dcp.FileSystemReader) -> set[str]:
    """Parameters for which a checkpoint has no moments: they had no gradient yet, such as what
    chooses the tokens of sparse attention (DeepSeek-V3.2)."""
    held = reader.read_metadata().state_dict_metadata
    return {
        name
        for name, own in moments.items()
        if f"model.{name}" in held and not any(f"optimizer.state.{name}.{k}" in held for k in own)
    }


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Only the weights, for export."""
    _check_base(checkpoint, model)
    state = {"model": _without_frozen(get_model_state_dict(model), model)}
    dcp.load(state, storage_reader=dcp.FileSystemReader(checkpoint))
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1), sync=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
