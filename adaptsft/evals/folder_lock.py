"""One process writes to a task's folder, and only samples of the same settings are kept in it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptsft.distributed.ranks import rank, rank0_first
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.evals import samples
from adaptsft.evals.data import Item
from adaptsft.evals.samples import digest
from adaptsft.files import lock


@contextmanager
def locked(folder: Path, asked: dict[str, Any], items: list[Item]) -> Iterator[None]:
    """Lock the folder and write `asked` to its run.json; at the end add when it was finished.

    All ranks enter it together. Raises ConfigError where the folder holds samples of other
    settings.
    """
    path = folder / "run.json"
    held = rank0_first(lambda: _lock(folder, asked, items) if rank() == 0 else None)
    try:
        yield
        if held is not None:
            samples.write_json(path, samples.read_json(path) | {"finished": _now()})
    finally:
        if held is not None:
            held.close()


def _lock(folder: Path, asked: dict[str, Any], items: list[Item]) -> Any:
    wanted = _identity(asked)
    asked = asked | {"fingerprint": digest(wanted), "started": _now(), "finished": None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder)
        if (folder / "run.json").is_file():
            before = samples.read_json(folder / "run.json")
            if before["fingerprint"] != asked["fingerprint"]:
                different = ", ".join(_differences(_identity(before), wanted))
                raise ConfigError(
                    f"--out {folder}: holds samples of something else "
                    f"({different or 'another version of adaptsft'}): name another --out, or "
                    "delete it"
                )
            asked["started"] = before["started"]
        samples.write_lines(folder / "items.jsonl", (item._asdict() for item in items))
        samples.write_json(folder / "run.json", asked)
    except OSError as error:
        raise CheckpointError(f"--out {folder}: cannot be written: {error}") from None
    return held


def _identity(asked: dict[str, Any]) -> dict[str, Any]:
    """What samples depend on. How many are wanted, and how they are graded, may change."""
    task = {key: asked["task"][key] for key in ("name", "version", "prompt", "harness_task")}
    return {key: asked[key] for key in ("schema_version", "params", "seed")} | {
        "task": task,
        "data": asked["data"].get("sha256"),
        "backend": backend_identity(asked["backend"]),
    }


def backend_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """The weights are known by their hash where there is one: a folder may be moved."""
    names = () if identity["revision"] is None else ("model", "objective")
    return {key: value for key, value in identity.items() if key not in names}


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text
            for key in new
            for text in _differences(old.get(key), new[key], f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    return text if len(text := str(value)) <= 40 else text[:37] + "…"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
