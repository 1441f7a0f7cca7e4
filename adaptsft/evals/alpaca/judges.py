"""What judges: a model in this process, a server, or recorded judgements."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from adaptsft.errors import DataError
from adaptsft.evals.alpaca.judge_prompt import messages_of
from adaptsft.evals.alpaca.outputs import read_json_list
from adaptsft.evals.backends.http import HTTP, KEPT, Blame, Unanswered
from adaptsft.evals.protocol import Backend, Message, Stopped
from adaptsft.evals.samples import digest


class Judgement(NamedTuple):
    logprobs: dict[str, float]  # log p of first tokens of the judge's answer
    error: str | None = None  # why there are none


class Judge(Protocol):
    name: str
    batch_size: int

    def judge(self, conversations: Sequence[list[Message]]) -> list[Judgement]:
        """One for each conversation, in order. Raises Stopped where it cannot go on."""
        ...


class LocalJudge:
    """Any of our backends that renders chats and gives likelihoods.

    Exact, where a server shows only its five likeliest tokens.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.batch_size = backend, backend.batch_size
        self.name = f"{backend.identity['model']}@{backend.identity['revision'][:12]}"

    def judge(self, conversations: Sequence[list[Message]]) -> list[Judgement]:
        texts = [self.backend.render(messages) for messages in conversations]
        pairs = [(text or "", letter) for text in texts for letter in "mM"]
        found = [likelihood.logprob for likelihood in self.backend.loglikelihood(pairs)]
        return [
            Judgement({"m": m, "M": big}) for m, big in zip(found[::2], found[1::2], strict=True)
        ]


class ServerJudge(HTTP):
    """An OpenAI-compatible server that gives log-probabilities."""

    def __init__(self, url: str, model: str, parallel: int = 16) -> None:
        super().__init__(url, model, "auto", parallel)
        self.name = model

    def judge(self, conversations: Sequence[list[Message]]) -> list[Judgement]:
        # of the published configuration
        settings = {"max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5}

        def one(messages: list[Message]) -> Judgement:
            choice = self.post("chat/completions", {"messages": messages} | settings)["choices"][0]
            if not (found := first_tokens(choice)):
                text = json.dumps(choice)[:300]
                reason = f"{self.model} answers without logprobs, which are what is read: {text}"
                raise Unanswered(reason, reason, Blame.REQUEST)
            return Judgement(found)

        def probe() -> Judgement:
            return one([{"role": "user", "content": "Hello"}])

        answers, end = self.settled(one, conversations, probe)
        if end is not None:
            raise Stopped(
                f"--url {self.url}: {end.reason}. {KEPT}",
                [None if isinstance(answer, Unanswered) else answer for answer in answers],
            )
        return [
            Judgement({}, answer.reason) if isinstance(answer, Unanswered) else answer
            for answer in answers
        ]


def first_tokens(choice: Any) -> dict[str, float]:
    """log p of the likeliest first tokens of an OpenAI choice; empty where it has none."""
    try:
        found = choice["logprobs"]["content"][0]["top_logprobs"]
        return {str(token["token"]): float(token["logprob"]) for token in found}
    except (KeyError, IndexError, TypeError, ValueError):
        return {}


class RecordedJudge:
    """The judgements of an annotations.json with raw completions, to check ours against them."""

    batch_size = 4096

    def __init__(self, path: Path, escape: bool) -> None:
        self.path, self.name = path, "recorded"
        self.found: dict[str, Judgement] = {}
        keys = ("instruction", "output_1", "output_2")
        for record in read_json_list(path, (*keys, "raw_completion")):
            completion = record["raw_completion"]
            if not completion:
                continue
            if isinstance(completion, str):
                try:
                    completion = ast.literal_eval(completion)
                except (ValueError, SyntaxError, MemoryError, RecursionError):
                    completion = None
            self.name = record.get("annotator", self.name)
            messages = messages_of(*(record[key] for key in keys), escape=escape)
            found = first_tokens(completion)
            error = None if found else "the recorded completion has no logprobs"
            self.found[digest(messages)] = Judgement(found, error)

    def judge(self, conversations: Sequence[list[Message]]) -> list[Judgement]:
        keys = [digest(messages) for messages in conversations]
        if missing := sum(key not in self.found for key in keys):
            raise DataError(
                f"{self.path}: {missing} of these {len(keys)} pairs were not judged there: are "
                "outputs and reference the recorded ones?"
            )
        return [self.found[key] for key in keys]
