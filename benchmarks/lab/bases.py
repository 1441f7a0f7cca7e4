"""The pretrained models of a family: one per random start, order and data, and, where asked, as
strong at the family's `strong` task as asked."""

import contextlib
import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import logging

from adaptsft import export
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import families, scoring, tasks
from benchmarks.lab.fingerprint import CODE, digest, users_code
from benchmarks.lab.training import configure, train_logged

ITEMS = 256  # held-out questions of each pretrained task that a base is scored on
EVERY = 10  # steps between two looks at its strength


class Base(NamedTuple):
    """Written `0`, or `0@90`: pretraining with the seed 0, to its end, or stopped at the first of
    every 10 steps after which the strong task is done greedily on 90 % of the held-out items."""

    number: int
    strength: int | None = None

    def __str__(self) -> str:
        return f"{self.number}" + (f"@{self.strength}" if self.strength is not None else "")

    @classmethod
    def of(cls, text: Any) -> "Base":
        """Raises ConfigError."""
        found = re.fullmatch(r"(\d{1,6})(?:@([1-9]\d?|100))?", str(text))
        if found is None:
            raise ConfigError(
                f"bases: {text!r} is no base: write a seed of pretraining such as 0, or 0@90 for "
                "one that is stopped where the strong task is right in 90 %"
            )
        return cls(int(found[1]), int(found[2]) if found[2] else None)


def place(folder: Path, family: str, base: Base) -> Path:
    """Of a base in a lab's folder: `final` is the model, `scores.json` what it does. `family` is a
    name or a path."""
    return folder / "pretrained" / families.find(family).name / str(base)


def pretraining_log(folder: Path, family: str, base: Base) -> Path:
    """Where `pretrain` writes the trainer's lines."""
    return place(folder, family, base) / "run.log"


def base_scores(folder: Path, family: str, base: Base) -> dict[str, Any]:
    """{tag: scores} of a base that is there, of every task that it was pretrained on."""
    return json.loads((place(folder, family, base) / "scores.json").read_text())


def pretrain(
    folder: Path, family: str, base: Base, model: dict[str, Any], keys: dict[str, Any]
) -> str:
    """Leave a pretrained model in `place`, or find it there. Returns its fingerprint. Raises
    UserError."""
    logging.disable_progress_bar()
    of, home = families.find(family), place(folder, family, base)
    count = keys["train"]["max_steps"] * keys["train"]["global_batch_size"]
    parts = [(task, tasks.Noise()) for task in of.pretrained]
    # base 0 has the data of the published results
    seed = f"pretraining {base.number}" if base.number else "pretraining"
    data = tasks.write_examples(home / "examples.jsonl", of, parts, count, False, seed)
    content = hashlib.sha256(data.read_bytes()).hexdigest()
    code = [families.source(family), CODE, *users_code(keys)]
    fingerprint = digest([model, keys, base, content, *code])
    stamp = home / "fingerprint"
    if not stamp.is_file() or stamp.read_text() != fingerprint:
        stamp.unlink(missing_ok=True)
        for old in ("run", "final"):
            shutil.rmtree(home / old, ignore_errors=True)
        start = make_tiny_model(
            home / "random", tokenizer=tasks.tokenizer(of), seed=base.number, **model
        )
        saved = {"checkpoint": {"every": EVERY, "keep_last": count}} if base.strength else {}
        sources = {"pretraining": data}
        run = home / "run"
        train_logged(configure(run, start, base.number, sources, home / "cache", keys, saved))
        device = keys["train"].get("device", "auto")
        if base.strength:
            _stop_at(home, of, base, device)
        (run / "final").rename(home / "final")
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        trained = scoring.load(home / "final", device)
        scores = {task.tag: scoring.task_score(*trained, of, task, ITEMS) for task in of.pretrained}
        for found in scores.values():
            del found["examples"]
        (home / "scores.json").write_text(json.dumps(scores, indent=1))
        stamp.write_text(fingerprint)
    return fingerprint


def _stop_at(home: Path, family: tasks.Family, base: Base, device: str) -> None:
    """Make the run's `final` that of its first checkpoint which is strong enough."""
    run, wanted, best = home / "run", (base.strength or 0) / 100, 0.0
    shutil.rmtree(run / "final")
    for step in sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")):
        output = io.StringIO()
        arguments = [str(run), str(run / "final"), "--step", str(step), "--dtype", "fp32"]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = export.main(arguments)
        if code:
            raise CheckpointError(f"{run}, step {step}: {output.getvalue().strip()}")
        trained = scoring.load(run / "final", device)
        found = scoring.task_score(*trained, family, family.strong, ITEMS)["greedy"]
        if found >= wanted:
            return
        best = max(best, found)
        shutil.rmtree(run / "final")
    raise ConfigError(
        f"bases: {base} of {family.name}: its strong task is right in {best:.0%} at most; raise "
        "pretrain.train.max_steps, or ask for less"
    )
