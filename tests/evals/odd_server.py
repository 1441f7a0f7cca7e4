"""A server that replies as it is told to, on this machine."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


class Server(BaseHTTPRequestHandler):
    """Gives the reply, or (status, body), of the longest name that is in the question.

    A reply may be a function of the question.
    """

    replies: dict[str, Any]
    asked: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        self.asked.append(content)
        named = [name for name in self.replies if name in content]
        reply = self.replies[max(named, key=len)] if named else stop(content="#### 18")
        reply = reply(content) if callable(reply) else reply
        status, content = reply if isinstance(reply, tuple) else (200, reply)
        if isinstance(content, dict):
            content = json.dumps({"choices": [content]}).encode()
        self.send_response(status)
        cut = b"CUT" in content
        self.send_header("Content-Length", str(len(content) + 100 * cut))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def stop(**message: object) -> dict:
    return {"message": message, "finish_reason": "stop"}


def echo(prompt: str) -> dict:
    """The choice of a server that gives a prompt back: each character is a token."""
    found = {"tokens": [*prompt], "text_offset": [*range(len(prompt))]}
    found |= {"token_logprobs": [-1.0] * len(prompt), "top_logprobs": [{"x": -0.5}] * len(prompt)}
    return {"text": prompt, "logprobs": found, "finish_reason": "length"}
