"""What a result was made from: content, the code that trains and scores, and the commit.

A result is used again only while its fingerprint is that of the run that is asked for.
"""

import functools
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import adaptsft
import adaptsft_kernels
from adaptsft.config import user_code
from adaptsft.config.schema import Config
from adaptsft.controllers.build import acts_through

# Code that a trained model or its score depends on: all that adaptsft.train runs, and the scoring.
TRAINER = (
    "train.py",
    "config/**/*.py",
    "controllers/**/*.py",
    "data/**/*.py",
    "distributed/**/*.py",
    "model/**/*.py",
    "objectives/**/*.py",
    "statistics/**/*.py",
    "training/**/*.py",
)
KERNELS = ("**/*.py",)
LAB = ("scoring.py",)


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def sources_fingerprint(patterns: dict[Path, tuple[str, ...]]) -> str:
    """Of the files that match, by folder. Raises FileNotFoundError where a pattern matches nothing:
    after a move it would leave code out, and results of other code would be used."""
    sources = []
    for folder, globs in patterns.items():
        for pattern in globs:
            files = sorted(folder.glob(pattern))
            if not files:
                raise FileNotFoundError(f"{folder / pattern} matches no file; correct {__file__}")
            sources += [[str(file.relative_to(folder)), file.read_text()] for file in files]
    return digest(sources)


# Read when this module is imported, as the code itself is: an edit during a run changes neither.
CODE = sources_fingerprint(
    {
        Path(adaptsft.__file__).parent: TRAINER,
        Path(adaptsft_kernels.__file__).parent: KERNELS,
        Path(__file__).parent: LAB,
    }
)
# of what `base_tokens: measured` of a method adds
MEASURING_CODE = sources_fingerprint(
    {Path(adaptsft.__file__).parent: ("diagnose.py", "analysis/measure.py")}
)
FAST_CODE = sources_fingerprint({Path(__file__).parent: ("stacked/*.py",)})


def users_code(keys: dict[str, Any]) -> list[str]:
    """Of the source of the user's own objective and controller that the trainer's keys name; empty
    where they name none of them. Raises ConfigError."""
    config = Config()
    for group in ("objective", "controller"):
        for key in ("name", "base"):
            if key in (given := keys.get(group) or {}):
                setattr(getattr(config, group), key, given[key])
    if config.objective.name == "auto":
        config.objective.name = acts_through(config.controller)
    return [user_code.digest(config)] if user_code.of_config(config) else []


@functools.cache
def commit() -> str:
    """Of the code that runs; `+` where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return described.stdout.strip() or "unknown"
