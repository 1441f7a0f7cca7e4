"""The backend vllm, against a stand-in for vLLM: its answers are those of the backend hf.

With `ADAPTSFT_VLLM_SOURCE=FOLDER` (what `pip download vllm --no-binary :all:` unpacks to), or with
vLLM installed, the stand-in's signatures are compared with vLLM's.
"""

import ast
import importlib.metadata
import json
import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.backends import vllm as backend_module
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.backends.registry import open_backend
from adaptsft.evals.backends.vllm import VLLM
from adaptsft.evals.protocol import Request, Sampling
from adaptsft.model.tiny import make_tiny_model
from tests.evals import vllm_stand_in

PROMPTS = [
    "The quick brown fox",
    "Natalia sold 48 clips in April, and half as many in May: 48 + 24 =",
    "Question: what",
    "the capital of France is",
]
GREEDY = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights ten times the usual size: greedy answers differ, and end."""
    folder = tmp_path_factory.mktemp("loud")
    return make_tiny_model(folder, "llama", initializer_range=0.3, seed=3)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")  # so that what is set is put back
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    vllm_stand_in.install(monkeypatch)


@pytest.fixture(scope="module")
def hf(model):
    return HuggingFace(str(model), template="plain")


def opened(model, template="plain", max_model_len=None, tensor_parallel=1):
    return VLLM(str(model), template, "auto", tensor_parallel, max_model_len)


def requests(backend, prompts=PROMPTS, seed=0):
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [Request(str(i), 0, seed + i, m, backend.render(m)) for i, m in enumerate(asked)]


def answers(backend, params=GREEDY, prompts=PROMPTS, seed=0):
    """Text, reason, tokens. A character whose last bytes are missing at the end is no text yet for
    vLLM, and the replacement character for transformers."""
    outputs = backend.generate(requests(backend, prompts, seed), params)
    return [(output.text.rstrip("\ufffd"), *output[1:3]) for output in outputs]


def test_greedy_answers_are_those_of_hf(model, hf):
    ours = opened(model)
    found = answers(ours)
    assert found == answers(hf)
    assert {reason for _, reason, _ in found} == {"stop", "length"}
    assert all(output.entropy is None for output in ours.generate(requests(ours), GREEDY))
    assert ours.identity["template"] == "plain" and ours.identity["dtype"] == "float32"
    assert ours.identity["revision"] == hf.identity["revision"]
    assert ours.identity["versions"]["vllm"] == vllm_stand_in.VERSION
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn", "no group of ours is inherited"


def test_stop_tokens_and_strings_end_an_answer_as_in_hf(model):
    ours, hf = opened(model), HuggingFace(str(model), template="plain")
    ids = hf.tokenizer(answers(hf, prompts=PROMPTS[:1])[0][0], add_special_tokens=False).input_ids
    hf.ends = hf.ends | {ids[3]}
    ours.ends = sorted(hf.ends)
    (found,) = answers(ours, prompts=PROMPTS[:1])
    assert found == answers(hf, prompts=PROMPTS[:1])[0]
    assert found[1:] == ("stop", 3), "the token that ends it is not one of the answer"
    text = answers(opened(model), prompts=PROMPTS[:1])[0][0]
    params = Sampling(max_tokens=16, stop=(text[4:6], text[3:9]))
    fresh = HuggingFace(str(model), template="plain")
    assert answers(opened(model), params) == answers(fresh, params)


@pytest.mark.parametrize("template", ["auto", "chatml", "llama3", "deepseek"])
def test_the_ends_of_a_template_reach_the_engine(model, template):
    ours, hf = opened(model, template), HuggingFace(str(model), template=template)
    assert set(ours.ends) == hf.ends
    assert ours.identity.get("stop") == hf.identity.get("stop")
    assert answers(ours) == answers(hf)


def test_an_end_that_the_model_cannot_generate_is_left_out(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<|beyond|>"})
    tokenizer.save_pretrained(folder)
    ours = opened(folder)
    assert tokenizer.eos_token_id >= ours.engine.llm_engine.model_config.get_vocab_size()
    assert tokenizer.eos_token_id not in ours.ends
    assert answers(ours) == answers(HuggingFace(str(folder), template="plain"))


def test_an_answer_is_of_its_own_seed(model):
    ours, params = opened(model), Sampling(temperature=1.0, max_tokens=12)
    together = answers(ours, params)
    alone = [found for i, p in enumerate(PROMPTS) for found in answers(ours, params, [p], seed=i)]
    assert together == alone != answers(ours, params, seed=100)
    for temperature in (0.001, 2.5):
        with pytest.raises(ConfigError, match=f"--temperature {temperature:g}: vLLM takes 0, and"):
            answers(ours, Sampling(temperature=temperature))


def test_a_prompt_that_does_not_fit_is_said_and_the_others_are_answered(model, hf):
    ours = opened(model, max_model_len=24)
    prompts = [PROMPTS[0], "the lazy dog " * 30, PROMPTS[3]]
    first, second, third = ours.generate(requests(ours, prompts), Sampling(max_tokens=40))
    assert second == ("", "prompt_too_long", 0, None, None)
    free = answers(hf, Sampling(max_tokens=40), [prompts[0], prompts[2]])
    for found, whole in zip((first, third), free, strict=True):
        assert whole[0].startswith(found.text)
    assert "length" in {first.finish_reason, third.finish_reason}, "the window ends an answer"
    assert ours.identity["max_model_len"] == 24 and "max_model_len" not in opened(model).identity


def test_one_bad_prompt_does_not_lose_the_batch(model, hf):
    ours = opened(model)
    prompts = ["" if i == 2 else prompt for i, prompt in enumerate([*PROMPTS, *PROMPTS])]
    found = answers(ours, prompts=prompts)
    assert found[2] == ("", "error: VLLMValidationError: The decoder prompt cannot be empty", 0)
    whole = answers(hf)
    assert found[:2] + found[3:] == whole[:2] + whole[3:] + whole
    assert ours.engine.batches == [8, 4, 2, 2, 1, 1, 4]
    assert [reason[:6] for _, reason, _ in answers(ours, prompts=["", ""])] == ["error:"] * 2
    ours.ends, ends = [10**6], ours.ends
    with pytest.raises(ConfigError, match="refuses any prompt: VLLMValidationError: token_id"):
        answers(ours)
    ours.ends = ends
    ours.engine.dead = True
    with pytest.raises(DataError, match=r"EngineDeadError.*the same command resumes"):
        answers(ours)


def test_likelihoods_are_those_of_hf(model, hf):
    ours = opened(model)
    greedy = answers(hf, Sampling(max_tokens=3), ["The lazy dog"])[0][0]
    pairs = [
        ("The quick brown", " fox jumps"),
        ("The quick brown ", "fox jumps"),
        ("", "Paris"),
        ("The lazy dog", greedy),
    ]
    found, wanted = ours.loglikelihood(pairs), hf.loglikelihood(pairs)
    assert [one[1:] for one in found] == [one[1:] for one in wanted]
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in wanted])
    assert found[3].greedy and not found[0].greedy
    long = [("the lazy dog " * 30, " fox")]
    narrow, context = opened(model, max_model_len=24), hf.context
    hf.context = 23  # one token is generated, and vLLM wants its place
    try:
        (wanted_cut,) = hf.loglikelihood(long)
    finally:
        hf.context = context
    assert narrow.loglikelihood(long)[0].logprob == pytest.approx(wanted_cut.logprob)


def test_an_adapter_is_loaded_with_its_base(model, tmp_path):
    for name, settings in {
        "plain": {"rank_pattern": {"q_proj": 9}},
        "dora": {"use_dora": True},
        "head": {"modules_to_save": ["lm_head"]},
        "large": {"r": 600},
    }.items():
        targets = ["q_proj", "down_proj"]
        wanted = LoraConfig(**{"r": 4, "target_modules": targets, "use_rslora": True} | settings)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), wanted)
        for tensor_name, tensor in adapted.named_parameters():
            if "lora_B" in tensor_name:
                torch.nn.init.normal_(tensor, std=0.3)
        adapted.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / name)
    ours = opened(tmp_path / "plain")
    found = answers(ours)
    assert found == answers(HuggingFace(str(tmp_path / "plain"), template="plain"))
    assert found != answers(opened(model)), "the adapter is applied"
    assert ours.engine.llm_engine.max_lora_rank == 16, "the smallest that vLLM has for 9"
    assert ours.identity["revision"] != opened(model).identity["revision"]
    for name, why in (("dora", "magnitude"), ("head", "lm_head"), ("large", "rank 600")):
        with pytest.raises(ConfigError, match=rf"not plain LoRA \(.*{why}.*export RUN OUT --merge"):
            opened(tmp_path / name)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(ConfigError, match=r"holds no whole adapter.*base_model_name_or_path"):
        opened(broken)


def test_an_engine_that_cannot_start_is_an_error_of_the_configuration(model, tmp_path, monkeypatch):
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(
        ConfigError, match=r"cannot load it: RuntimeError: Engine core init.*--max-"
    ):
        opened(tmp_path)
    with pytest.raises(ConfigError, match=r"1 validation error.*User-specified max_model_len"):
        opened(model, max_model_len=1 << 20)
    with pytest.raises(ConfigError, match=r"--model .*nowhere"):
        opened(tmp_path / "nowhere")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun; --tensor-parallel N"):
        opened(model)


def test_the_command_line_reaches_it(model, monkeypatch):
    options = Namespace(model=str(model), template="auto", dtype="fp32", tensor_parallel=1)
    backend = open_backend("vllm", Namespace(**vars(options), max_model_len=32))
    assert backend.context == 32
    monkeypatch.delattr(sys.modules["vllm.platforms"], "current_platform")
    with pytest.raises(ConfigError, match=r"vLLM cannot be imported.*checked against 0\.33\.0"):
        open_backend("vllm", Namespace(**vars(options), max_model_len=None))


def test_the_stand_in_refuses_what_vllm_does(model):
    with pytest.raises(TypeError, match="max_token"):
        vllm_stand_in.SamplingParams(max_token=3)
    with pytest.raises(TypeError, match="max_model_length"):
        vllm_stand_in.LLM(str(model), tokenizer_mode="hf", max_model_length=3)
    with pytest.raises(TypeError, match="positional"):
        opened(model).engine.generate([], [], False)
    with pytest.raises(TypeError, match="prompt_token_ids"):
        opened(model).engine.generate(prompt_token_ids=[[1]], sampling_params=[])
    assert "adapter" in repr(vllm_stand_in.LoRARequest("adapter", 1, "x"))


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
    assert set(backend_module.MAX_LORA_RANKS) <= set(allowed)
    assert max(backend_module.MAX_LORA_RANKS) == max(allowed)
