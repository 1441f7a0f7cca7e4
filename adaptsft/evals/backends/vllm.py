"""vLLM in this process: written against the interface of 0.33.0, and not yet run on a GPU.

It splits a model over GPUs itself (--tensor-parallel), so it is not started by torchrun.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from adaptsft.data.stop import TurnEnd
from adaptsft.errors import ConfigError, DataError, reason_of
from adaptsft.evals.backends.hf import encode_pair, fingerprint, locate, trusts_code
from adaptsft.evals.protocol import Likelihood, Message, Output, Request, Sampling
from adaptsft.evals.renderer import Renderer
from adaptsft.model.language import is_adapter

MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what max_lora_rank may be


class VLLM:
    """vLLM's engine, with a seed for each request.

    Answers at temperature 0 still depend on the batch a little, unless VLLM_BATCH_INVARIANT=1 is
    set (vllm-project/vllm#5898, #23138); what was set is recorded. Entropies are not: they want the
    log-probabilities of the whole vocabulary at every token.
    """

    batch_size = 1024  # vLLM schedules within: this is only how often samples are written

    def __init__(
        self,
        name: str,
        template: str,
        dtype: str,
        tensor_parallel: int,
        max_model_len: int | None = None,
    ) -> None:
        """Raises ConfigError where vLLM is not installed, or cannot load the model."""
        path, data, label = locate(name)
        adapter = is_adapter(path)
        base, settings = _adapter(name, path) if adapter else (path, {})
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError(
                "--backend vllm: every rank of torchrun would start an engine of its own: start it "
                "without torchrun; --tensor-parallel N uses N GPUs"
            )
        # A forked engine would take the process group of this process, of one rank, for its own
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        try:
            import vllm  # type: ignore[import-not-found]
            from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
            from vllm.platforms import current_platform  # type: ignore[import-not-found]
        except ImportError as error:
            if error.name == "vllm":
                raise ConfigError(
                    "--backend vllm: vLLM is not installed here: pip install 'adaptsft[vllm]', or "
                    "use --backend hf"
                ) from None
            raise ConfigError(
                f"--backend vllm: vLLM cannot be imported: {error}. It was checked against 0.33.0: "
                "pip install -U 'adaptsft[vllm]'"
            ) from None
        self.vllm: Any = vllm
        self.lora = LoRARequest("adapter", 1, path) if adapter else None
        own_code = trusts_code(name)
        # as --backend hf has it: vLLM's "auto" is float16 for weights in fp32
        usual = "float32" if current_platform.is_cpu() else "bfloat16"
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=own_code)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--model {name}: {str(error).strip().splitlines()[0]}") from None
        self.renderer = Renderer(tokenizer, data, template)
        try:
            self.engine: Any = vllm.LLM(
                model=base,
                tokenizer=path,
                tokenizer_mode="hf",  # "auto" has another one for Mistral's models
                trust_remote_code=own_code,
                dtype={"bf16": "bfloat16", "fp32": "float32", "auto": usual}[dtype],
                tensor_parallel_size=tensor_parallel,
                generation_config="vllm",  # not the sampling settings beside the weights
                max_model_len=max_model_len,
                **settings,
            )
            if self.lora:
                self.engine.llm_engine.add_lora(self.lora)
        except Exception as error:  # of any kind: what fails in the engine's process is untyped
            reason = " ".join(reason_of(error).split())[:400]
            raise ConfigError(
                f"--model {name}: vLLM cannot load it: {reason}. Where the memory is short, lower "
                "--max-model-len or raise --tensor-parallel"
            ) from None
        model = self.engine.llm_engine.model_config
        self.context = int(model.max_model_len)
        own = {*TurnEnd().stop_ids(tokenizer.eos_token_id, _listed_ends(base, settings))}
        # a tokenizer may have more tokens than the model, and vLLM refuses to stop at those
        vocabulary = model.get_vocab_size()
        self.ends = sorted(end for end in own | set(self.renderer.end.ids) if end < vocabulary)
        if Path(path).is_dir():
            revision = fingerprint(Path(path))
        else:
            revision = AutoConfig.from_pretrained(path)._commit_hash
        self.identity = {
            "backend": "vllm",
            "model": name,
            "objective": label,
            "revision": revision,
            "template": self.renderer.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": current_platform.get_device_name(),
            "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT") == "1",
            "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
        } | self.renderer.stops(own)
        if max_model_len:
            self.identity["max_model_len"] = max_model_len

    def render(self, messages: list[Message]) -> str:
        return self.renderer.text(messages)

    def generate(self, requests: Sequence[Request], params: Sampling) -> list[Output]:
        """A prompt that vLLM refuses has the reason for its finish_reason. Raises ConfigError for
        a temperature that vLLM does not have, DataError where the engine dies."""
        if params.temperature > 2 or 0 < params.temperature < 0.01:
            raise ConfigError(
                f"--temperature {params.temperature:g}: vLLM takes 0, and .01 to 2: choose one "
                "of these, or use --backend hf"
            )
        outputs = [Output("", "prompt_too_long", 0)] * len(requests)
        prompts = [self.renderer.ids(request.text or "") for request in requests]
        fitting = [i for i, ids in enumerate(prompts) if len(ids) < self.context]
        settings = [
            self.vllm.SamplingParams(
                temperature=params.temperature,
                top_p=params.top_p,
                max_tokens=params.max_tokens,
                stop=[*params.stop, *self.renderer.end.strings],
                stop_token_ids=self.ends,
                seed=requests[i].seed,
            )
            for i in fitting
        ]
        results = self._ask([prompts[i] for i in fitting], settings)
        for i, result in zip(fitting, results, strict=True):
            outputs[i] = _output(result)
        return outputs

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """A context that does not fit the window loses its beginning. vLLM's is shorter by one
        token than the model's, since it generates one."""
        encoded = []
        for pair in pairs:
            ids, count = encode_pair(self.renderer.tokenizer, *pair)
            encoded.append((ids[-(self.context - 1) :], min(count, self.context - 2)))
        settings = self.vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        answers = self._ask([ids for ids, _ in encoded], [settings] * len(encoded))
        results = []
        for answer, (ids, count) in zip(answers, encoded, strict=True):
            if isinstance(answer, Exception):
                raise DataError(f"--backend vllm: a likelihood is refused: {reason_of(answer)}")
            # each has the token of the prompt, and the most likely one
            steps = list(zip(answer.prompt_logprobs[-count:], ids[-count:], strict=True))
            logprobs = [step[token].logprob for step, token in steps]
            best = [max(found.logprob for found in step.values()) for step, _ in steps]
            results.append(Likelihood(math.fsum(logprobs), logprobs == best, count))
        return results

    def _ask(self, prompts: list[list[int]], settings: list[Any]) -> list[Any]:
        """The answer to each prompt (token ids), or the error with which vLLM refuses it.

        It refuses the whole batch with the prompt, so that the others are asked again, by halves.
        Raises ConfigError where it refuses the settings.
        """
        if not prompts:
            return []
        results = self._halves(prompts, settings)
        if all(isinstance(result, Exception) for result in results):
            (probe,) = self._halves([[0]], settings[:1])
            if isinstance(probe, Exception):
                raise ConfigError(f"--backend vllm refuses any prompt: {reason_of(probe)}")
        return results

    def _halves(self, prompts: list[list[int]], settings: list[Any]) -> list[Any]:
        from vllm.exceptions import VLLMClientError, VLLMServerError  # type: ignore[import-not-found]

        try:
            # not text: vLLM would put a second begin-of-text token first
            return self.engine.generate(
                [{"prompt_token_ids": ids} for ids in prompts],
                settings,
                use_tqdm=False,
                lora_request=self.lora,
            )
        except VLLMClientError as error:
            if len(prompts) == 1:
                return [error]
        except VLLMServerError as error:
            raise DataError(
                f"--backend vllm: {reason_of(error)} Recorded answers are kept: the same command "
                "resumes"
            ) from None
        half = len(prompts) // 2
        first = self._halves(prompts[:half], settings[:half])
        return first + self._halves(prompts[half:], settings[half:])


def _output(result: Any) -> Output:
    if isinstance(result, Exception):
        return Output("", "error", 0, error=reason_of(result))
    answer = result.outputs[0]
    reason = answer.finish_reason
    if reason is None:
        return Output(answer.text, "error", len(answer.token_ids), error="it has not finished")
    # the token that ended it is the last one; the reason is text where a stop string did
    ended = reason == "stop" and not isinstance(answer.stop_reason, str)
    return Output(answer.text, reason, len(answer.token_ids) - ended)


def _adapter(name: str, path: str) -> tuple[str, dict[str, Any]]:
    """The base of an adapter, and the arguments of LLM for both. Raises ConfigError for an adapter
    that vLLM cannot apply: it passes over some of the tensors that are not of plain LoRA."""
    try:
        adapter = json.loads((Path(path) / "adapter_config.json").read_text())
        base = adapter["base_model_name_or_path"]
        rank = max(adapter["r"], *(adapter.get("rank_pattern") or {}).values(), 1)
        with safe_open(Path(path) / "adapter_model.safetensors", "pt") as file:
            tensors = list(file.keys())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--model {name}: {path} holds no whole adapter: {error!r}") from None
    plain = ("lora_A.weight", "lora_B.weight")
    other = {name.rpartition("lora_")[2] for name in tensors if not name.endswith(plain)}
    other |= {f"rank {rank}"} if rank > MAX_LORA_RANKS[-1] else set()
    if other:
        raise ConfigError(
            f"--model {name}: {path} holds an adapter that is not plain LoRA ({min(other)}), which "
            "vLLM does not load: merge it first (python -m adaptsft.export RUN OUT --merge), or "
            "use --backend hf"
        )
    rank = next(allowed for allowed in MAX_LORA_RANKS if allowed >= rank)
    settings: dict[str, Any] = {"enable_lora": True, "max_lora_rank": rank}
    return base, settings | {"revision": adapter.get("revision")}


def _listed_ends(base: str, settings: dict[str, Any]) -> int | list[int] | None:
    revision = settings.get("revision") or "main"
    try:
        return GenerationConfig.from_pretrained(base, revision=revision).eos_token_id
    except OSError:  # there is none
        return None


def open_backend(options: argparse.Namespace) -> VLLM:
    if not options.model:
        raise ConfigError("--model: a run folder, a Hugging Face folder or a name on the hub")
    return VLLM(
        options.model,
        options.template,
        options.dtype,
        options.tensor_parallel,
        options.max_model_len,
    )
