"""What answers prompts: a Hugging Face model, vLLM, an OpenAI-compatible server, or a file of
recorded outputs.

One protocol, `Backend`. A new backend is one module with `open_backend(options)` and one line in
`BACKENDS`.
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from adaptsft.errors import ConfigError

Message = dict[str, str]  # role, content


class Request(NamedTuple):
    """One answer that is wanted.

    `text` is the rendered prompt, None where the backend has the messages rendered by a server.
    """

    item_id: str
    sample: int  # 0 … n-1 for the same item
    seed: int  # its own, below 2^31: an answer depends on its request, not on the batch it is in
    messages: list[Message]
    text: str | None


@dataclass(frozen=True)
class Sampling:
    """How to decode.

    Temperature 0 is greedy; `stop` strings end an answer and are not part of it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()


class Output(NamedTuple):
    text: str
    # "stop", "length" (max_tokens reached), or "prompt_too_long" (nothing was generated)
    finish_reason: str
    n_tokens: int


class Likelihood(NamedTuple):
    logprob: float  # nats, summed over the tokens of the continuation
    greedy: bool  # whether each of them is the most likely one
    n_tokens: int


class Backend(Protocol):
    """`identity` names what answers (model, fingerprint of its weights, engine, versions, dtype):
    samples of two identities never mix. `batch_size`: how many requests it likes to be given at
    once.
    """

    identity: dict[str, Any]
    batch_size: int

    def render(self, messages: list[Message]) -> str | None:
        """The prompt as text, or None where a server renders it."""
        ...

    def generate(self, requests: Sequence[Request], params: Sampling) -> list[Output]:
        """One output per request, in order."""
        ...

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """log p(continuation | context) of (context, continuation) pairs, in order.

        The context may be empty.
        """
        ...


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
    "url": (("http",), None),
    "replay": (("replay",), None),
    "replay_fields": (("replay",), None),
}


def open_backend(name: str, options: argparse.Namespace) -> Backend:
    """Raises ConfigError for a backend that is unknown, not installed, lacks an option, or is given
    one of another.
    """
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
