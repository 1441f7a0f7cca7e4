"""The stand-in for vLLM has vLLM's signatures.

They are read from vLLM's source, as it is installed, or in the folder that ADAPTSFT_VLLM_SOURCE
names: the sdist from PyPI (vllm-0.33.0.tar.gz), unpacked.
"""

import ast
import importlib.metadata
import os
from pathlib import Path

import pytest

from adaptsft.evals.backends.vllm import MAX_LORA_RANKS
from tests.evals import vllm_stand_in


def source() -> Path | None:
    """The folder of vLLM's package, as installed or named."""
    if named := os.environ.get("ADAPTSFT_VLLM_SOURCE"):
        return Path(named) / "vllm"
    try:
        return Path(str(importlib.metadata.distribution("vllm").locate_file("vllm")))
    except importlib.metadata.PackageNotFoundError:
        return None


# class of the stand-in -> vLLM's file
FILES = {
    "LLM": "entrypoints/llm.py",
    "SamplingParams": "sampling_params.py",
    "RequestOutput": "outputs.py",
    "CompletionOutput": "outputs.py",
    "Logprob": "logprobs.py",
    "LoRARequest": "lora/request.py",
    "EngineArgs": "engine/arg_utils.py",
    "VLLMError": "exceptions.py",
    "VLLMClientError": "exceptions.py",
    "VLLMServerError": "exceptions.py",
    "VLLMValidationError": "exceptions.py",
    "EngineDeadError": "v1/engine/exceptions.py",
}
# what is called of other classes: (file, class, method)
CALLED = [
    ("v1/engine/llm_engine.py", "LLMEngine", "add_lora"),
    ("config/model.py", "ModelConfig", "get_vocab_size"),
    ("platforms/interface.py", "Platform", "is_cpu"),
    ("platforms/interface.py", "Platform", "get_device_name"),
]


def class_in(file: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(file.read_text())
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    found = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return next(found, None)


def parameters(function: ast.FunctionDef) -> dict[str, tuple[str, str | None]]:
    """Name -> kind, and default as written."""
    arguments = function.args
    missing = [None] * (len(arguments.args) - len(arguments.defaults))
    by_place = zip(arguments.args, [*missing, *arguments.defaults], strict=True)
    by_name = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found = {one.arg: ("place", default) for one, default in by_place}
    found |= {one.arg: ("name", default) for one, default in by_name}
    return {
        name: (kind, default and ast.unparse(default)) for name, (kind, default) in found.items()
    }


def fields(node: ast.ClassDef) -> dict[str, str | None]:
    """Name -> default of a dataclass or a msgspec.Struct."""
    found = {}
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            found[one.target.id] = one.value and ast.unparse(one.value)
    return found


@pytest.mark.skipif(
    source() is None, reason="vLLM is not installed, and ADAPTSFT_VLLM_SOURCE names no folder of it"
)
def test_the_stand_in_has_the_signatures_of_vllm():
    root, mine = source(), Path(vllm_stand_in.__file__)
    for name, file in FILES.items():
        ours, theirs = class_in(mine, name), class_in(root / file, name)
        if name.endswith("Error"):
            assert ast.unparse(ours.bases[0]) == ast.unparse(theirs.bases[0]), name
        elif name == "LLM":
            assert parameters(method(ours, "generate")) == parameters(method(theirs, "generate"))
            wanted, there = (parameters(method(node, "__init__")) for node in (ours, theirs))
            assert wanted == {key: there.get(key) for key in wanted}
        elif name == "RequestOutput":
            there = parameters(method(theirs, "__init__"))
            assert fields(ours) == {key: there[key][1] for key in fields(ours)}
        elif name == "EngineArgs":  # their defaults stand elsewhere
            assert set(fields(ours)) <= set(fields(theirs))
        else:
            assert fields(ours) == {key: fields(theirs).get(key, "absent") for key in fields(ours)}
    for file, name, called in CALLED:
        assert method(class_in(root / file, name), called), (name, called)
    ranks = (root / "config/lora.py").read_text().partition("MaxLoRARanks = Literal")[2]
    allowed = ast.literal_eval(ranks.partition("]")[0] + "]")
    assert set(MAX_LORA_RANKS) <= set(allowed)
    assert max(MAX_LORA_RANKS) == max(allowed)
