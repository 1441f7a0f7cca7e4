"""An OpenAI-compatible server: vLLM, SGLang, llama.cpp, or a provider.

--url is the part before /chat/completions. With `--template auto` the server renders the messages
(/chat/completions); with a template of prompts.FORMATS the text is rendered here and sent to
/completions.
"""

import argparse
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from http.client import HTTPException
from typing import Any

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.prompts import FORMATS, TURN_ENDS
from adaptsft.evals.protocol import Likelihood, Message, Output, Request, Sampling, Stopped

ATTEMPTS = 6  # with pauses of 1, 2, 4, 8, 16 seconds between
# what a message may have in place of content
BESIDE = ("refusal", "tool_calls", "function_call", "reasoning_content", "reasoning")
KEPT = "Recorded answers are kept: the same command resumes"
# of the logprobs of a prompt that is given back
ECHOED = ("text_offset", "tokens", "token_logprobs", "top_logprobs")
# statuses that say that any other request would fare the same: the key, the model, the load
OF_SERVER = {401, 402, 403, 404, 405, 407, 425, 429, 503}
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that are worth another attempt


class Blame(Enum):
    """What an answer failed by."""

    REQUEST = 1
    SERVER = 2  # others fail as well
    UNKNOWN = 3


class Unanswered(DataError):
    """A request without an answer, after all attempts."""

    def __init__(self, message: str, reason: str = "", blame: Blame = Blame.UNKNOWN) -> None:
        super().__init__(message)
        self.reason, self.blame = reason, blame


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
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url}: write http:// or https:// before it")
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
        """Raises Stopped when the server refuses all requests, or is not there in all attempts."""

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
            return output_of(reply, self.ends)

        def probe() -> Output:
            messages = [{"role": "user", "content": "Hello"}]
            return one(Request("", 0, 0, messages, self.render(messages)))

        answers, end = self.settled(one, requests, probe)
        outputs = [
            Output("", "error", 0, error=answer.reason)
            if isinstance(answer, Unanswered)
            else answer
            for answer in answers
        ]
        if end is not None:
            raise Stopped(
                f"--url {self.url}: {end.reason}. {KEPT}",
                [
                    output if output and output.finish_reason != "error" else None
                    for output in outputs
                ],
            )
        return outputs

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
            found = reply["choices"][0].get("logprobs")
            if not isinstance(found, dict) or any(
                not isinstance(found.get(key), list) for key in ECHOED
            ):
                reason = (
                    f"{self.model} gives no logprobs with echo, which this task is scored by: "
                    "use a server that does, such as vLLM, or --backend hf"
                )
                raise Unanswered(reason, reason, Blame.SERVER)
            end = len(context) + len(continuation)
            scored = [
                (logprob, max(best.values(), default=logprob) if best else logprob)
                for offset, token, logprob, best in zip(*map(found.get, ECHOED), strict=True)
                if offset + len(token) > len(context.rstrip())
                and offset < end
                and logprob is not None
            ]
            return Likelihood(
                math.fsum(own for own, _ in scored),
                all(own >= best for own, best in scored),
                len(scored),
            )

        answers, end = self.settled(one, pairs, lambda: None)
        end = end or next((one for one in answers if isinstance(one, Unanswered)), None)
        if end is not None:
            raise Stopped(
                f"--url {self.url}: {end.reason}. {KEPT}",
                [None if isinstance(answer, Unanswered) else answer for answer in answers],
            )
        return answers

    def settled(
        self, one: Callable[[Any], Any], work: Sequence[Any], probe: Callable[[], Any]
    ) -> tuple[list[Any], Unanswered | None]:
        """What `one` returns for each, or the Unanswered that it raises; None where it did not ask.

        And why no other would be answered either, or None: so it is where the server says so, or
        `probe`, a request that is certainly in order, fails as well.
        """
        over = threading.Event()

        def answer(item: Any) -> Any:
            if over.is_set():
                return None
            try:
                return one(item)
            except Unanswered as error:
                if error.blame is Blame.SERVER:
                    over.set()
                return error

        answers = self.map(answer, work)
        failed = [found for found in answers if isinstance(found, Unanswered)]
        for error in failed:
            if error.blame is Blame.SERVER:
                return answers, error
        unsure = any(error.blame is Blame.UNKNOWN for error in failed)
        if failed and (unsure or len(failed) == len(answers)):
            try:
                probe()
            except Unanswered as error:
                return answers, error
        return answers, None

    def map(self, one: Any, work: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                return list(pool.map(one, work))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply, whose choices[0] is an object. Raises Unanswered."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps({"model": self.model} | body).encode(), headers
        )
        reason, blame = "", Blame.UNKNOWN
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    answer = json.load(reply)
                choices = answer.get("choices") if isinstance(answer, dict) else None
                if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                    return answer
                # a proxy's error with status 200
                reason, blame = f"no choices in {json.dumps(answer)[:300]}", Blame.REQUEST
                break
            except urllib.error.HTTPError as error:
                reason, blame = f"{error.code} {_body(error)}", _blame(error.code)
                if error.code not in PASSING:
                    break
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                # refused, reset, timed out, cut off, or not JSON
                reason, blame = str(error) or type(error).__name__, Blame.UNKNOWN
                if isinstance(error, urllib.error.URLError) and not isinstance(
                    error.reason, BrokenPipeError | ConnectionResetError
                ):
                    blame = Blame.SERVER  # it cannot be reached
        raise Unanswered(f"--url {self.url}: {path} failed: {reason}", reason, blame)


def _blame(status: int) -> Blame:
    if status in OF_SERVER:
        return Blame.SERVER
    return Blame.UNKNOWN if status in PASSING or status >= 500 else Blame.REQUEST


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(300).decode(errors="replace").strip()
    except (OSError, HTTPException) as broken:
        return f"(its text: {broken})"


def output_of(reply: dict[str, Any], ends: tuple[str, ...] = ()) -> Output:
    """The first choice of a reply. Raises Unanswered where it has no answer in any form."""
    choice = reply["choices"][0]
    message = choice.get("message", choice)  # /completions has the text in the choice itself
    content = message.get("content", message.get("text")) if isinstance(message, dict) else ()
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str | None) or (content is None and message is choice):
        reason = f"no message in the choice {json.dumps(choice)[:300]}"
        raise Unanswered(reason, reason, Blame.REQUEST)
    reason = choice.get("finish_reason")
    reason, error = None if reason is None else str(reason), None
    if not content:
        said = [key for key in BESIDE if message.get(key)]
        if said:
            error = f"no content, only {', '.join(said)}: {json.dumps(message[said[0]])[:300]}"
        elif content is None:
            error = "no content"
    text = content or ""
    for end in ends:  # some servers leave it in the answer, or run on
        if end in text:
            text, reason = text.partition(end)[0], "stop"
    usage = reply.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Output(text, reason, tokens if isinstance(tokens, int) else 0, error=error)


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def open_backend(options: argparse.Namespace) -> HTTP:
    if not options.url or not options.model:
        raise ConfigError(
            "--backend http needs --url (such as http://localhost:8000/v1) and --model, the name "
            "it serves"
        )
    return HTTP(options.url, options.model, options.template, options.batch_size or 16)
