"""Regimes: what is fine-tuned on. A new one is a line in REGIMES, of every family."""

from dataclasses import dataclass

from adaptsft.errors import ConfigError
from benchmarks.lab import digits, facts, letters
from benchmarks.lab.tasks import Family, Noise

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (letters, digits, facts)
}
BUDGETS = {"short": 0.5, "long": 3.0}  # times the steps of the preset

CLEAN, NOISY, STRUCTURED = Noise(), Noise("uniform", 0.3), Noise("systematic", 0.35)


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


def of(role: str, noise: Noise, **settings: bool) -> Regime:
    return Regime((Part(role, noise),), **settings)


# MS, MI, MW: model-strong, -intermediate, -weak (arXiv:2510.00526); CW: confidently wrong
REGIMES: dict[str, Regime] = {
    "ms_clean": of("strong", CLEAN),
    "ms_noisy": of("strong", NOISY),
    "ms_structured": of("strong", STRUCTURED),
    "mi_clean": of("middle", CLEAN),
    "mi_noisy": of("middle", NOISY),
    "mw_clean": of("weak", CLEAN),
    "mw_noisy": of("weak", NOISY),
    "mw_noisy_zipf": of("weak", NOISY, zipf=True),
    "cw_clean": of("redefined", CLEAN),
    "cw_noisy": of("redefined", NOISY),
    "cw_structured": of("redefined", STRUCTURED),
    "mix_one_source": Regime((Part("strong", NOISY), Part("redefined", NOISY))),
    "mix_strong_weak": Regime((Part("strong", NOISY), Part("weak", NOISY)), sources=True),
    "mix_strong_redefined": Regime((Part("strong", NOISY), Part("redefined", NOISY)), sources=True),
    "many_valid": of("open", NOISY),
}


def find(name: str) -> tuple[Regime, float]:
    """The regime and the factor of its budget, of a name such as `mw_noisy` or `mw_noisy@short`.
    Raises ConfigError."""
    base, _, budget = name.partition("@")
    if base not in REGIMES or (budget or "short") not in BUDGETS:
        raise ConfigError(
            f"regimes: {name!r} is not one of {', '.join(REGIMES)}; after each may stand "
            f"{' or '.join('@' + key for key in BUDGETS)}"
        )
    return REGIMES[base], BUDGETS.get(budget, 1.0)
