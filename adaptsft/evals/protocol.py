"""The interface of a backend, and what goes in and out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from adaptsft.errors import DataError

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
    # "stop", "length" (max_tokens or the window reached), "prompt_too_long" (nothing was
    # generated), "error" (so says `error`), or what else a server gave: "content_filter", None, …
    finish_reason: str | None
    n_tokens: int
    # of the model's next-token distribution in nats, mean over the tokens that it drew at
    # temperature 1, the end included; None where that is not known
    entropy: float | None = None
    drawn: int | None = None  # how many these are; 0 where nothing was generated
    error: str | None = None  # why there is no answer, or not the whole one; asked again on demand


class Stopped(DataError):
    """A backend or judge that cannot go on, with what it has; None where it has nothing."""

    def __init__(self, message: str, outputs: Sequence[Any] = ()) -> None:  # pickled by message
        super().__init__(message)
        self.outputs = outputs


class Likelihood(NamedTuple):
    logprob: float  # nats, summed over the tokens of the continuation
    greedy: bool  # whether each of them is the most likely one
    n_tokens: int


class Backend(Protocol):
    """What answers prompts.

    `identity` names it (model, fingerprint of its weights, engine, versions, dtype): samples of two
    identities never mix. `batch_size` is the number of requests to give it at once.
    """

    identity: dict[str, Any]
    batch_size: int

    def render(self, messages: list[Message]) -> str | None:
        """The prompt as text, or None where a server renders it."""
        ...

    def generate(self, requests: Sequence[Request], params: Sampling) -> list[Output]:
        """One output per request, in order; of one that failed it has the `error`.

        Raises Stopped where all further requests would fail.
        """
        ...

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """log p(continuation | context) of (context, continuation) pairs, in order.

        The context may be empty. Raises Stopped where one of them cannot be had.
        """
        ...
