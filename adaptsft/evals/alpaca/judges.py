"""What judges: a model in this process, a server, or recorded judgements."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from adaptsft.errors import DataError
from adaptsft.evals.alpaca.judge_prompt import messages_of
from adaptsft.evals.alpaca.outputs import read_json_list
from adaptsft.evals.backends.http import HTTP
from adaptsft.evals.protocol import Backend, Message
from adaptsft.evals.samples import digest


class Judge(Protocol):
    name: str
    batch_size: int

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        """For each conversation log p of first tokens of the answer, with "m" and "M" if given."""
        ...


class LocalJudge:
    """Any of our backends that renders chats and gives likelihoods.

    Exact, where a server shows only its five likeliest tokens.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.batch_size = backend, backend.batch_size
        self.name = f"{backend.identity['model']}@{backend.identity['revision'][:12]}"

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        texts = [self.backend.render(messages) for messages in conversations]
        pairs = [(text or "", letter) for text in texts for letter in "mM"]
        found = [likelihood.logprob for likelihood in self.backend.loglikelihood(pairs)]
        return [{"m": m, "M": big} for m, big in zip(found[::2], found[1::2], strict=True)]


class ServerJudge(HTTP):
    """An OpenAI-compatible server that gives log-probabilities."""

    def __init__(self, url: str, model: str, parallel: int = 16) -> None:
        super().__init__(url, model, "auto", parallel)
        self.name = model

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        # of the published configuration
        settings = {"max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5}

        def one(messages: list[Message]) -> dict[str, float]:
            choice = self.post("chat/completions", {"messages": messages} | settings)["choices"][0]
            content = (choice.get("logprobs") or {}).get("content")
            if not content:
                raise DataError(
                    f"--url {self.url}: {self.model} answers without logprobs, which the "
                    "judgement is read from; use another server"
                )
            return {token["token"]: token["logprob"] for token in content[0]["top_logprobs"]}

        return self.map(one, conversations)


class RecordedJudge:
    """The judgements of an annotations.json with raw completions, to check ours against them."""

    batch_size = 4096

    def __init__(self, path: Path, escape: bool) -> None:
        self.path, self.name = path, "recorded"
        self.found: dict[str, dict[str, float]] = {}
        keys = ("instruction", "output_1", "output_2")
        for record in read_json_list(path, (*keys, "raw_completion")):
            completion = record["raw_completion"]
            if not completion:
                continue
            if isinstance(completion, str):
                completion = ast.literal_eval(completion)
            self.name = record.get("annotator", self.name)
            tokens = completion["logprobs"]["content"][0]["top_logprobs"]
            messages = messages_of(*(record[key] for key in keys), escape=escape)
            self.found[digest(messages)] = {token["token"]: token["logprob"] for token in tokens}

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        keys = [digest(messages) for messages in conversations]
        if missing := sum(key not in self.found for key in keys):
            raise DataError(
                f"{self.path}: {missing} of these {len(keys)} pairs were not judged there: are "
                "outputs and reference the recorded ones?"
            )
        return [self.found[key] for key in keys]
