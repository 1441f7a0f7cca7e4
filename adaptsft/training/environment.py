"""Machine, versions and command, as saved beside every run and result."""

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from adaptsft.distributed.ranks import world_size

PACKAGES = ("adaptsft", "torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy")
PACKAGES += ("flash-attn", "triton", "peft")


def environment() -> dict:
    """What environment.json holds."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "cuda": torch.version.cuda,
        },
        "world_size": world_size() if torch.distributed.is_initialized() else 1,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
