"""Regimes: what is fine-tuned on. A new one is a line in REGIMES, for every family; `--regime-file
PATH.py` takes more, from a module attribute REGIMES of the same kind."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError, require
from benchmarks.lab import loading
from benchmarks.lab.tasks import ERRORS, Family, Noise

CLEAN, NOISY, STRUCTURED = Noise(), Noise("uniform", 0.3), Noise("systematic", 0.35)
LITTLE, MOSTLY = Noise("uniform", 0.1), Noise("uniform", 0.55)
SWAPPED, CUT = Noise("swapped", 0.3), Noise("cut", 0.3)
ROLES = ("strong", "middle", "weak", "redefined", "open")
KINDS = (*ERRORS, "swapped", "cut")


@dataclass(frozen=True)
class Part:
    """A task by its role in the family, and the noise of its labels."""

    role: str
    noise: Noise


@dataclass(frozen=True)
class Regime:
    """The parts are equally frequent. They are one source for the trainer, or one source each,
    named after the role."""

    parts: tuple[Part, ...]
    zipf: bool = False
    sources: bool = False


@dataclass(frozen=True)
class Budget:
    """`steps` of the optimizer (None: the preset's), in which every example is seen `epochs`
    times."""

    steps: int | None = None
    epochs: int = 1


def of(role: str, noise: Noise, **settings: bool) -> Regime:
    return Regime((Part(role, noise),), **settings)


# MS, MI, MW: model-strong, -intermediate, -weak (arXiv:2510.00526); CW: confidently wrong
REGIMES: dict[str, Regime] = {
    "ms_clean": of("strong", CLEAN),
    "ms_noisy": of("strong", NOISY),
    "ms_noisy10": of("strong", LITTLE),
    "ms_noisy55": of("strong", MOSTLY),
    "ms_structured": of("strong", STRUCTURED),
    "ms_swapped": of("strong", SWAPPED),
    "ms_cut": of("strong", CUT),
    "mi_clean": of("middle", CLEAN),
    "mi_noisy": of("middle", NOISY),
    "mi_swapped": of("middle", SWAPPED),
    "mw_clean": of("weak", CLEAN),
    "mw_noisy": of("weak", NOISY),
    "mw_noisy10": of("weak", LITTLE),
    "mw_noisy55": of("weak", MOSTLY),
    "mw_noisy_zipf": of("weak", NOISY, zipf=True),
    "mw_swapped": of("weak", SWAPPED),
    "mw_cut": of("weak", CUT),
    "cw_clean": of("redefined", CLEAN),
    "cw_noisy": of("redefined", NOISY),
    "cw_structured": of("redefined", STRUCTURED),
    "cw_swapped": of("redefined", SWAPPED),
    "mix_one_source": Regime((Part("strong", NOISY), Part("redefined", NOISY))),
    "mix_strong_weak": Regime((Part("strong", NOISY), Part("weak", NOISY)), sources=True),
    "mix_strong_redefined": Regime((Part("strong", NOISY), Part("redefined", NOISY)), sources=True),
    "many_valid": of("open", NOISY),
    "many_valid_clean": of("open", CLEAN),
}


def of_file(path: Path) -> dict[str, Regime]:
    """The regimes of a file. Raises ConfigError."""
    found = loading.attribute(path, "REGIMES")
    require(isinstance(found, dict) and found != {}, f"{path}: REGIMES must be a dict of regimes")
    for name, regime in found.items():
        _check(f"{path}: regime {name!r}", name, regime)
    return found


def _check(where: str, name: Any, regime: Any) -> None:
    require(
        isinstance(name, str) and re.fullmatch(r"[\w+-]+", name) is not None,
        f"{where}: its name becomes a folder: use letters, digits, _, + and - only",
    )
    require(
        isinstance(regime, Regime) and len(regime.parts) > 0,
        f"{where} is no benchmarks.lab.regimes.Regime, or has no parts",
    )
    roles = [part.role for part in regime.parts]
    require(
        set(roles) <= set(ROLES) and len(set(roles)) == len(roles),
        f"{where} has the roles {', '.join(roles)}; choose of {', '.join(ROLES)}, each once",
    )
    for part in regime.parts:
        kind, rate = part.noise.kind, part.noise.rate
        require(kind in KINDS, f"{where}: noise {kind!r} is not one of {', '.join(KINDS)}")
        require(0 <= rate <= 1, f"{where}: the rate {rate} of its noise is not between 0 and 1")


def expanded(entries: Sequence[str], files: Sequence[str] = ()) -> list[str]:
    """Entries that `find` takes, once each: a file stands for all of its regimes, and a name that
    one of `files` has for that one. Raises ConfigError."""
    homes = {name: path for path in files for name in of_file(_resolved(path))}
    found: list[str] = []
    for entry in entries:
        if entry.endswith(".py"):
            found += [f"{_resolved(entry)}:{name}" for name in of_file(_resolved(entry))]
        elif (name := entry.partition("@")[0]) in homes:
            found.append(f"{_resolved(homes[name])}:{entry}")
        else:
            found.append(entry)
    return list(dict.fromkeys(found))


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()


def name_of(entry: str) -> str:
    """Of a regime and its budget, without the file that it is from."""
    return entry.rpartition(".py:")[2]


def find(entry: str) -> tuple[Regime, Budget]:
    """The regime and the budget of a name such as `mw_noisy`, `mw_noisy@60` (steps) or
    `mw_noisy@2epochs`, and the same of a file: `PATH.py:mw_noisy@60`. Raises ConfigError."""
    path, _, name = entry.rpartition(".py:")
    name, at, budget = name.partition("@")
    known = of_file(_resolved(f"{path}.py")) if path else REGIMES
    of_budget = re.fullmatch(r"([1-9]\d*)(epochs)?", budget)
    if name not in known or (at and of_budget is None):
        raise ConfigError(
            f"regimes: {entry!r} is not one of {', '.join(known)}; after each may stand @60 (or "
            "another number of steps) or @2epochs (or another number)"
        )
    if of_budget is None:
        return known[name], Budget()
    number = int(of_budget[1])
    return known[name], Budget(epochs=number) if of_budget[2] else Budget(steps=number)


def require_roles(family: Family, entry: str) -> None:
    """Raise ConfigError unless the family has every task of a regime."""
    for part in find(entry)[0].parts:
        require(
            family.role(part.role) is not None,
            f"regimes: {name_of(entry)!r} needs a task `{part.role}`, which the family "
            f"{family.name!r} has not",
        )
