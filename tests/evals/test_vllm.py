"""The backend vllm, against a stand-in for vLLM: its answers are those of the backend hf."""

import json
import os
import shutil
import sys

import jsonschema
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.backends.vllm import VLLM
from adaptsft.evals.protocol import Request, Sampling
from adaptsft.model.tiny import make_tiny_model
from tests.evals import vllm_stand_in
from tests.evals.pipeline import SCHEMA, evals, results_of, samples_of

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
    assert second == ("", "prompt_too_long", 0, None, None, None)
    free = answers(hf, Sampling(max_tokens=40), [prompts[0], prompts[2]])
    for found, whole in zip((first, third), free, strict=True):
        assert whole[0].startswith(found.text)
    assert "length" in {first.finish_reason, third.finish_reason}, "the window ends an answer"
    assert ours.identity["max_model_len"] == 24 and "max_model_len" not in opened(model).identity


def test_one_bad_prompt_does_not_lose_the_batch(model, hf):
    ours = opened(model)
    prompts = ["" if i == 2 else prompt for i, prompt in enumerate([*PROMPTS, *PROMPTS])]
    found = answers(ours, prompts=prompts)
    assert found[2] == ("", "error", 0)
    (refused,) = ours.generate(requests(ours, [""]), GREEDY)
    assert refused.error == "VLLMValidationError: The decoder prompt cannot be empty"
    whole = answers(hf)
    assert found[:2] + found[3:] == whole[:2] + whole[3:] + whole
    assert ours.engine.batches[:7] == [8, 4, 2, 2, 1, 1, 4]
    assert [reason for _, reason, _ in answers(ours, prompts=["", ""])] == ["error"] * 2
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


def test_the_command_line_reaches_it(model, shared_data, tmp_path, monkeypatch):
    """With a window that one of the questions does not fit."""
    out = tmp_path / "out"
    command = ["run", "--tasks", "gsm8k", "--model", model, "--out", out, "--workers", 1]
    command += ["--backend", "vllm", "--data-dir", shared_data, "--limit", 4, "--max-tokens", 4]
    assert evals(*command, "--max-model-len", 280) == 0
    (result,) = results_of(out).values()
    jsonschema.validate(result, SCHEMA)
    reasons = [sample["finish_reason"] for sample in samples_of(out / "gsm8k" / "greedy").values()]
    long = reasons.count("prompt_too_long")
    assert 0 < long < 4 and result["rates"]["error"] == long / 4 and result["entropy"] is None
    monkeypatch.delattr(sys.modules["vllm.platforms"], "current_platform")
    assert evals(*command, "--max-model-len", 280) == ConfigError.exit_code


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
