"""An OpenAI-compatible server: vLLM, SGLang, llama.cpp, or a provider.

--url is the part before /chat/completions. With `--template auto` the server renders the messages
(/chat/completions); with a template of prompts.FORMATS the text is rendered here and sent to
/completions.
"""

import argparse
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.prompts import FORMATS, TURN_ENDS
from adaptsft.evals.protocol import Likelihood, Message, Output, Request, Sampling

ATTEMPTS = 6  # with pauses of 1, 2, 4, 8, 16 seconds between
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that are worth another attempt


class HTTP:
    """A client of a server.

    The key is read from the environment (OPENAI_API_KEY), sent to --url only, and never written.
    """

    def __init__(
        self, url: str, model: str, template: str, parallel: int, timeout: float = 600.0
    ) -> None:
        if template not in ("auto", *FORMATS):
            raise ConfigError(
                f"--template {template}: with --backend http use auto (the server's own), "
                f"{', '.join(FORMATS)}"
            )
        self.url, self.model = url.rstrip("/"), model
        self.template, self.timeout = template, timeout
        self.parallel, self.batch_size = parallel, 8 * parallel
        # what ends an answer: a server that renders the messages knows it, one that continues a
        # text does not
        self.ends = () if template == "auto" else (TURN_ENDS[template],)
        self.identity: dict[str, Any] = {
            "backend": "http",
            "model": model,
            "objective": model,
            "revision": None,
            "template": template,
            "url": self.url,
            "dtype": None,
            "device": None,
            "versions": {},
        } | ({"stop": list(self.ends)} if self.ends else {})

    def render(self, messages: list[Message]) -> str | None:
        return None if self.template == "auto" else FORMATS[self.template](messages)

    def generate(self, requests: Sequence[Request], params: Sampling) -> list[Output]:
        """Raises DataError when the server refuses a request, or fails in all attempts."""

        def one(request: Request) -> Output:
            settings = {
                "temperature": params.temperature,
                "top_p": params.top_p,
                "max_tokens": params.max_tokens,
                "seed": request.seed,
            }
            stop = [*params.stop, *self.ends]
            settings |= {"stop": stop} if stop else {}
            if request.text is None:
                reply = self.post("chat/completions", {"messages": request.messages} | settings)
            else:
                settings |= {"prompt": request.text, "add_special_tokens": False}
                if self.ends:
                    # vLLM and SGLang look for stop strings in the text that they return
                    settings["skip_special_tokens"] = False
                reply = self.post("completions", settings)
            choice = reply["choices"][0]
            text = choice["message"]["content"] if request.text is None else choice["text"]
            reason = "length" if choice.get("finish_reason") == "length" else "stop"
            text = text or ""
            for end in self.ends:  # some servers leave it in the answer, or run on
                if end in text:
                    text, reason = text.partition(end)[0], "stop"
            return Output(
                text, reason, int((reply.get("usage") or {}).get("completion_tokens") or 0)
            )

        return self.map(one, requests)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """By /completions with `echo`, which few servers but vLLM and llama.cpp have."""

        def one(pair: tuple[str, str]) -> Likelihood:
            context, continuation = pair
            reply = self.post(
                "completions",
                {
                    "prompt": context + continuation,
                    "echo": True,
                    "logprobs": 1,
                    "max_tokens": 1,
                    "temperature": 0,
                },
            )
            found = reply["choices"][0]["logprobs"]
            end = len(context) + len(continuation)
            scored = [
                (logprob, max(best.values(), default=logprob) if best else logprob)
                for offset, token, logprob, best in zip(
                    found["text_offset"],
                    found["tokens"],
                    found["token_logprobs"],
                    found["top_logprobs"],
                    strict=True,
                )
                if offset + len(token) > len(context.rstrip())
                and offset < end
                and logprob is not None
            ]
            return Likelihood(
                math.fsum(own for own, _ in scored),
                all(own >= best for own, best in scored),
                len(scored),
            )

        return self.map(one, pairs)

    def map(self, one: Any, work: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                return list(pool.map(one, work))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps({"model": self.model} | body).encode(), headers
        )
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    answer = json.load(reply)
                if isinstance(answer, dict) and answer.get("choices"):
                    return answer
                # a proxy's error with status 200
                reason = f"no choices in {json.dumps(answer)[:300]}"
                break
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.read(300).decode(errors='replace').strip()}"
                if error.code not in PASSING:
                    break
            except (OSError, ValueError) as error:  # refused, reset, timed out, or not JSON
                reason = str(error)
        raise DataError(
            f"--url {self.url}: {path} failed: {reason}. Recorded answers are kept: the same "
            "command resumes"
        )


def open_backend(options: argparse.Namespace) -> HTTP:
    if not options.url or not options.model:
        raise ConfigError(
            "--backend http needs --url (such as http://localhost:8000/v1) and --model, the name "
            "it serves"
        )
    return HTTP(options.url, options.model, options.template, options.batch_size or 16)
