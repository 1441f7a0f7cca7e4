"""What ends an assistant's turn, and so has to end generation.

A chat template ends its turns with a token of its own, which need not be the tokenizer's eos_token:
Qwen2.5's base models have <|endoftext|> there, and <|im_end|> in the template. What is learned is
the template's. It is found by rendering a conversation of words that no template contains, and
reading what follows the answer.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from adaptsft.data.layout import Conversation
from adaptsft.data.template import Template
from adaptsft.errors import DataError

ASKED, ANSWERED, AGAIN, THOUGHT = "qvxasked", "qvxanswered", "qvxagain", "qvxthought"
FUNCTION = {"name": "qvxcall", "description": "A call.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]


@dataclass(frozen=True)
class TurnEnd:
    """`ids`: the tokens that end an answer, first what ends the learned turn. `strings`: texts
    that do, where no token does. `warning`: what a training run says before it starts, or ""."""

    ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()
    warning: str = ""

    def stop_ids(self, *others: int | list[int] | None) -> list[int]:
        """`ids`, then those of `others` (values of `eos_token_id`) that are not among them."""
        listed = [other if isinstance(other, list) else [other] for other in others]
        rest = [int(token) for tokens in listed for token in tokens if token is not None]
        return list(dict.fromkeys([*self.ids, *rest]))


def turn_end(template: Template) -> TurnEnd:
    """What ends an assistant's turn in the template."""
    tokenizer: Any = template.tokenizer
    if template.kind == "plain":
        return TurnEnd((tokenizer.eos_token_id,))
    answer = {"role": "assistant", "content": ANSWERED}
    last = _after_answer(template, [answer])
    if last is None:
        return TurnEnd(
            warning="what ends a turn is not known, since the chat template refuses a plain "
            "question and answer: generation stops at the tokenizer's eos_token"
        )
    known = _Tokens(tokenizer)
    ids = known.found_in(last)
    # of an earlier turn: its own end where it has another, or what begins the turn after it
    earlier = _after_answer(template, [answer, {"role": "user", "content": AGAIN}, answer], AGAIN)
    middle = known.found_in(earlier or "")[:1]
    inside = known.found_in(_after_thought(template, answer))
    stops = [*ids, *(token for token in middle if token not in inside)]
    stops = list(dict.fromkeys([*stops, *_end_of_calls(template, known)]))
    if ids:
        return TurnEnd(tuple(stops))
    if text := last.strip():
        return TurnEnd(tuple(stops), (text,), _split(text))
    follows = (earlier or "").rstrip()
    return TurnEnd(tuple(stops), (follows,) if follows.strip() and not middle else (), _NOTHING)


def text_end(tokenizer: Any, text: str) -> TurnEnd:
    """An end that is known as text: a token where the tokenizer has it as one."""
    ids = _Tokens(tokenizer).found_in(text)
    return TurnEnd(tuple(ids)) if ids else TurnEnd((), (text,))


_NOTHING = (
    "the chat template puts nothing after an answer, so the model does not learn to stop: it will "
    "answer until the limit of tokens; have the template end an assistant's turn with eos_token "
    "(model.chat_template names a file with another template), or set data.template=plain"
)


def _split(text: str) -> str:
    return (
        f"the chat template ends an answer with {text!r}, which is no added token of the model: "
        "the model learns to write it, and adaptsft's own commands stop there, but generate() of "
        "transformers will not; add the token (model.add_tokens), or have the template end an "
        "assistant's turn with eos_token"
    )


class _Tokens:
    """The special and added tokens of a tokenizer that are not white space, as text."""

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        texts = {token.content: i for i, token in added.items()} | dict(named)
        self.ids: dict[str, int] = {text: i for text, i in texts.items() if text.strip()}
        self.special = {i for i, token in added.items() if token.special}
        longest = sorted(self.ids, key=lambda text: -len(text))
        self.pattern = re.compile("|".join(re.escape(text) for text in longest) or r"(?!)")

    def found_in(self, text: str) -> list[int]:
        """Their ids, in the order of the text."""
        return [self.ids[found] for found in self.pattern.findall(text)]


def _after_answer(template: Template, turns: list[dict[str, Any]], upto: str = "") -> str | None:
    """What follows the answer, as far as `upto`; None where the template renders no answer."""
    for text in _renderings(template, turns):
        if ANSWERED in text and not upto:
            return text.rpartition(ANSWERED)[2]
        if ANSWERED in text:
            return text.partition(ANSWERED)[2].partition(upto)[0]
    return None


def _after_thought(template: Template, answer: dict[str, Any]) -> str:
    """What stands between the thoughts of a turn and its answer: its tokens end no turn. gpt-oss
    has <|end|> there."""
    for name in ("reasoning_content", "thinking"):
        for text in _renderings(template, [answer | {name: THOUGHT}]):
            if THOUGHT in text:
                return text.partition(THOUGHT)[2].partition(ANSWERED)[0]
    return ""


def _end_of_calls(template: Template, known: _Tokens) -> list[int]:
    """The special token that ends a turn of calls to tools: gpt-oss has <|call|>. One that closes
    each call, as </tool_call>, is none."""
    call = {"type": "function", "function": {"name": "qvxcall", "arguments": {"a": ANSWERED}}}
    for calls in ([call, call], [call]):
        turn = {"role": "assistant", "content": "", "tool_calls": calls}
        for text in _renderings(template, [turn], TOOLS):
            ids = known.found_in(text.partition(ANSWERED)[2])
            if ids[-1:] and ids.count(ids[-1]) == 1 and ids[-1] in known.special:
                return ids[-1:]
            if ANSWERED in text:
                return []
    return []


def _renderings(
    template: Template, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> Iterator[str]:
    """The conversation as the template has it: some want a system message, some refuse one."""
    question = {"role": "user", "content": ASKED}
    system = {"role": "system", "content": "qvxsystem"}
    for messages in ([question, *turns], [system, question, *turns]):
        with suppress(DataError):  # what the template refuses
            yield template.chat.render(Conversation(messages, [], tools or []))
