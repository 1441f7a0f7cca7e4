"""What adaptsft uses of vLLM 0.33.0, on CPU: its names, parameters and defaults, and beneath them a
small model of transformers.

`test_vllm_signatures.py` compares it with vLLM's own source where there is one. An argument that
is not listed here is refused. Of the engine itself (kernels, batching, processes) it says nothing.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from tokenizers.decoders import DecodeStream
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

VERSION = "0.33.0"


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMServerError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.parameter, self.value = parameter, value


class EngineDeadError(VLLMServerError):
    def __init__(self) -> None:
        super().__init__(
            "EngineCore encountered an issue. See stack trace (above) for the root cause."
        )


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        self.stop, self.stop_token_ids = self.stop or [], self.stop_token_ids or []
        if not 0 <= self.temperature <= 2:
            raise VLLMValidationError("temperature must be in [0, 2]", parameter="temperature")
        if not 0 < self.top_p <= 1:
            raise VLLMValidationError("top_p must be in (0, 1]", parameter="top_p")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise VLLMValidationError("max_tokens must be at least 1", parameter="max_tokens")
        if not all(self.stop):
            raise VLLMValidationError("stop cannot contain an empty string.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class EngineArgs:
    """What LLM takes as **kwargs."""

    generation_config: str = "auto"
    max_model_len: int | None = None
    enable_lora: bool = False
    max_lora_rank: int = 16


@dataclass
class ModelConfig:
    max_model_len: int
    vocabulary: int
    dtype: torch.dtype

    def get_vocab_size(self) -> int:
        return self.vocabulary


@dataclass
class LLMEngine:
    model_config: ModelConfig
    loras: dict[int, Any] = field(default_factory=dict)
    base: Any = None
    max_lora_rank: int = 0

    def add_lora(self, lora_request: LoRARequest) -> bool:
        whole = PeftModel.from_pretrained(copy.deepcopy(self.base), lora_request.lora_path)
        rank = whole.peft_config["default"].r
        if rank > self.max_lora_rank:
            raise Exception(f"Call to add_lora method failed: LoRA rank {rank} is greater")
        self.loras[lora_request.lora_int_id] = whole.get_base_model().eval()
        return True


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        tokenizer_mode: str = "auto",
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = EngineArgs(**kwargs)
        assert tokenizer_mode == "hf" and arguments.generation_config == "vllm"
        config = AutoConfig.from_pretrained(model, revision=revision or "main")
        length = arguments.max_model_len or config.max_position_embeddings
        if length > config.max_position_embeddings:
            raise ValueError(  # pydantic's, which is one
                "1 validation error for ModelConfig\n  Value error, User-specified max_model_len "
                f"({length}) is greater than the derived max_model_len"
            )
        # any but these is no argument; the arithmetic stays in float32
        kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        try:
            if tensor_parallel_size > 1:
                raise OSError("one device")
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        except OSError:
            raise RuntimeError(
                "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
            ) from None
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        listed = GenerationConfig.from_pretrained(model).eos_token_id or []
        self.own_ends = {listed} if isinstance(listed, int) else set(listed)
        self.own_ends |= {self.tokenizer.eos_token_id}
        self.llm_engine = LLMEngine(ModelConfig(length, config.vocab_size, kind))
        if arguments.enable_lora:
            self.llm_engine.base = self.model
            self.llm_engine.max_lora_rank = arguments.max_lora_rank
        self.dead = False
        self.batches: list[int] = []  # how many prompts each call brought

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Any = True,
        lora_request: Sequence[LoRARequest] | LoRARequest | None = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Nothing is answered where one prompt is refused."""
        assert isinstance(sampling_params, Sequence) and not isinstance(lora_request, Sequence)
        self.batches.append(len(prompts))
        if len(sampling_params) != len(prompts):
            raise VLLMValidationError("The lengths of prompts and params must be the same.")
        for prompt, params in zip(prompts, sampling_params, strict=True):
            self._check(prompt["prompt_token_ids"], params)
        if self.dead:
            raise EngineDeadError
        model = self.llm_engine.loras[lora_request.lora_int_id] if lora_request else self.model
        return [
            self._answer(model, str(number), prompt["prompt_token_ids"], params)
            for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        limit = self.llm_engine.model_config.max_model_len
        vocabulary = self.llm_engine.model_config.get_vocab_size()
        if not ids:
            raise VLLMValidationError("The decoder prompt cannot be empty")
        if max(ids) >= vocabulary:
            raise VLLMValidationError(f"Token id {max(ids)} is out of vocabulary")
        if len(ids) >= limit:
            raise VLLMValidationError(
                f"The decoder prompt (length {len(ids)}) is longer than the maximum model length "
                f"of {limit}."
            )
        if any(not 0 <= token < vocabulary for token in params.stop_token_ids or []):
            raise VLLMValidationError("token_id(s) in stop_token_ids contain out-of-vocab ids")

    @torch.no_grad()
    def _answer(
        self, model: Any, name: str, prompt: list[int], params: SamplingParams
    ) -> RequestOutput:
        found = None
        if params.prompt_logprobs is not None:
            found = _logprobs(model, prompt, params.prompt_logprobs)
        generator = torch.Generator()
        if params.seed is not None:
            generator.manual_seed(params.seed)
        stream = DecodeStream(ids=prompt, skip_special_tokens=True)
        # the token that ends an answer is one of its token_ids, and not in its text
        ids, text, reason, stopped_by = [], "", None, None
        while reason is None:
            logits = model(torch.tensor([prompt + ids])).logits[0, -1]
            token = _next(logits, params, generator)
            ids.append(token)
            if token in self.own_ends or token in params.stop_token_ids:
                reason = "stop"
                stopped_by = None if token == self.tokenizer.eos_token_id else token
                continue
            text += stream.step(self.tokenizer._tokenizer, token) or ""
            first = min(
                (stop for stop in params.stop if stop in text),
                key=lambda stop: text.index(stop) + len(stop),
                default=None,
            )
            whole = self.llm_engine.model_config.max_model_len
            if first is not None:
                text, reason, stopped_by = text.partition(first)[0], "stop", first
            elif len(ids) == params.max_tokens or len(prompt) + len(ids) == whole:
                reason = "length"
        answer = CompletionOutput(0, text, ids, None, None, reason, stopped_by)
        return RequestOutput(name, None, prompt, found, [answer], True)


def _next(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    if params.temperature == 0:
        return int(logits.argmax())
    p, order = (logits / params.temperature).softmax(-1).sort(descending=True)
    p[p.cumsum(-1) - p >= params.top_p] = 0
    return int(order[torch.multinomial(p, 1, generator=generator)])


def _logprobs(model: Any, prompt: list[int], count: int) -> list[dict[int, Logprob] | None]:
    """Of each token of the prompt but the first: its own, and the `count` most likely ones."""
    table = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    steps: list[dict[int, Logprob] | None] = [None]
    for row, token in zip(table, prompt[1:], strict=True):
        step = {token: Logprob(float(row[token]), int((row >= row[token]).sum()))}
        for rank, other in enumerate(row.topk(count).indices.tolist(), 1):
            step.setdefault(other, Logprob(float(row[other]), rank))
        steps.append(step)
    return steps


def install(monkeypatch: Any) -> None:
    """Have `import vllm` find this, in the layout of vLLM's modules."""
    cpu = SimpleNamespace(is_cpu=lambda: True, get_device_name=lambda: "cpu")
    contents = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "__version__": VERSION},
        "vllm.exceptions": {
            "VLLMClientError": VLLMClientError,
            "VLLMServerError": VLLMServerError,
        },
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.platforms": {"current_platform": cpu},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
