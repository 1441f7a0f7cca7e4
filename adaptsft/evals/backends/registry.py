"""The backends by name. A new one is a module with `open_backend(options)` and a line here."""

import argparse
import importlib
from collections.abc import Mapping

from adaptsft.errors import ConfigError
from adaptsft.evals.protocol import Backend

# name -> its module, imported when it is opened
BACKENDS: Mapping[str, str] = {
    "hf": "adaptsft.evals.backends.hf",
    "vllm": "adaptsft.evals.backends.vllm",
    "http": "adaptsft.evals.backends.http",
    "replay": "adaptsft.evals.backends.replay",
}

# Option -> the backends that read it, and what it is where it is not given.
OPTIONS: Mapping[str, tuple[tuple[str, ...], object]] = {
    "device": (("hf",), "auto"),
    "dtype": (("hf", "vllm"), "auto"),
    "tensor_parallel": (("vllm",), 1),
    "max_model_len": (("vllm",), None),
    "url": (("http",), None),
    "replay": (("replay",), None),
    "replay_fields": (("replay",), None),
}


def open_backend(name: str, options: argparse.Namespace) -> Backend:
    """Raises ConfigError for a backend that is unknown, not installed, or has the wrong options."""
    if name not in BACKENDS:
        raise ConfigError(f"--backend {name}: choose one of {', '.join(BACKENDS)}")
    for option, (readers, default) in OPTIONS.items():
        if name not in readers and getattr(options, option, default) != default:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"{flag} {getattr(options, option)}: --backend {name} does not read it; it is of "
                f"--backend {' or '.join(readers)}"
            )
    return importlib.import_module(BACKENDS[name]).open_backend(options)
