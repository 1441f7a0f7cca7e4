"""vLLM in this process.

It splits a model over GPUs itself (--tensor-parallel), so it is not started by torchrun.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig

from adaptsft.data.stop import TurnEnd
from adaptsft.errors import ConfigError
from adaptsft.evals.backends.hf import encode_pair, fingerprint, locate
from adaptsft.evals.protocol import Likelihood, Message, Output, Request, Sampling
from adaptsft.evals.renderer import Renderer
from adaptsft.model.language import is_adapter


class VLLM:
    """vLLM's engine, with a seed for each request.

    Answers at temperature 0 still depend on the batch a little, unless VLLM_BATCH_INVARIANT=1 is
    set (vllm-project/vllm#5898, #23138); what was set is recorded.
    """

    batch_size = 1024  # vLLM schedules within: this is only how often samples are written

    def __init__(self, name: str, template: str, dtype: str, tensor_parallel: int) -> None:
        """Raises ConfigError where vLLM is not installed, or cannot load the model."""
        path, data, label = locate(name)
        if is_adapter(path):
            raise ConfigError(
                f"--model {name}: {path} holds an adapter, which this backend does not load: merge "
                f"it first (python -m adaptsft.export RUN OUT --merge), or use --backend hf"
            )
        try:
            import vllm  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError(
                "--backend vllm: vLLM is not installed here: pip install 'adaptsft[vllm]', or use "
                "--backend hf"
            ) from None
        self.vllm = vllm
        try:
            self.engine = vllm.LLM(
                model=path,
                dtype={"bf16": "bfloat16", "fp32": "float32"}.get(dtype, "auto"),
                tensor_parallel_size=tensor_parallel,
                generation_config="vllm",  # not the sampling settings beside the weights
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--model {name}: vLLM cannot load it: {str(error).strip().splitlines()[0]}"
            ) from None
        tokenizer = self.engine.get_tokenizer()
        self.renderer = Renderer(tokenizer, data, template)
        own = {*TurnEnd().stop_ids(tokenizer.eos_token_id, _listed_ends(path))}
        self.ends = sorted(own | set(self.renderer.end.ids))
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
            "dtype": str(self.engine.llm_engine.model_config.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT") == "1",
            "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
        } | self.renderer.stops(own)

    def render(self, messages: list[Message]) -> str:
        return self.renderer.text(messages)

    def _prompt(self, ids: list[int]) -> dict[str, list[int]]:
        # not text: vLLM would put a second begin-of-text token first
        return {"prompt_token_ids": ids}

    def generate(self, requests: Sequence[Request], params: Sampling) -> list[Output]:
        settings = [
            self.vllm.SamplingParams(
                temperature=params.temperature,
                top_p=params.top_p,
                max_tokens=params.max_tokens,
                stop=[*params.stop, *self.renderer.end.strings],
                stop_token_ids=self.ends,
                seed=request.seed,
            )
            for request in requests
        ]
        prompts = [self._prompt(self.renderer.ids(request.text or "")) for request in requests]
        answers = [
            result.outputs[0] for result in self.engine.generate(prompts, settings, use_tqdm=False)
        ]
        return [
            Output(
                answer.text,
                "length" if answer.finish_reason == "length" else "stop",
                len(answer.token_ids),
            )
            for answer in answers
        ]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        settings = self.vllm.SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0)
        encoded = [encode_pair(self.renderer.tokenizer, *pair) for pair in pairs]
        answers = self.engine.generate(
            [self._prompt(ids) for ids, _ in encoded], settings, use_tqdm=False
        )
        results = []
        for result, (ids, count) in zip(answers, encoded, strict=True):
            steps = [
                step[token]
                for step, token in zip(result.prompt_logprobs[-count:], ids[-count:], strict=True)
            ]
            total = math.fsum(step.logprob for step in steps)
            results.append(Likelihood(total, all(step.rank == 1 for step in steps), count))
        return results


def _listed_ends(path: str) -> int | list[int] | None:
    try:
        return GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # there is none
        return None


def open_backend(options: argparse.Namespace) -> VLLM:
    if not options.model:
        raise ConfigError("--model: a run folder, a Hugging Face folder or a name on the hub")
    return VLLM(options.model, options.template, options.dtype, options.tensor_parallel)
