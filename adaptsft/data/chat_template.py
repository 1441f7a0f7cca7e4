"""What a tokenizer's chat template is given, so that it renders a conversation as it is meant:
calls in the form that this template takes, and a day that stays the same."""

import datetime
import json
import re
from contextlib import suppress
from functools import cached_property
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from adaptsft.config.schema import DataConfig
from adaptsft.data.encoding import cut_specials
from adaptsft.data.layout import Conversation
from adaptsft.data.messages import Message
from adaptsft.errors import ConfigError, DataError

# how templates ask for the day
TODAY = re.compile(r"""strftime_now\s*\(\s*(['"])([^'"]*)\1\s*\)""")
ASKS_FOR_IT = re.compile(r"strftime_now\s+is\s|\bif\s+strftime_now\b(?!\s*\()")
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "chat_template", "tokenize")


class ChatTemplate:
    """Errors are DataErrors without a place, ConfigError for a template that cannot be used."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        # whether there are tools -> how calls are written, once it has been tried
        self.call_dialects: dict[bool, tuple[str | None, bool]] = {}
        added = tokenizer.added_tokens_decoder.values()
        texts = [token.content for token in added if token.special and len(token.content) > 1]
        split = config.split_special_tokens and texts
        # nothing matches an empty class
        self.specials = re.compile("|".join(map(re.escape, texts)) if split else r"[^\s\S]")

    @cached_property
    def source(self) -> str:
        """Of the chat template; where a tokenizer has several, of all."""
        found = self.tokenizer.chat_template
        return "\n".join(found.values()) if isinstance(found, dict) else str(found or "")

    @property
    def prints_date(self) -> bool:
        return "strftime_now" in self.source

    def render(self, conversation: Conversation, generation: bool = False) -> str:
        """The text of the conversation, followed by what begins an answer with `generation`."""
        with_tools = bool(conversation.tools)
        messages = [self._adapted(message, with_tools) for message in conversation.messages]
        return self._apply(messages, conversation, generation)

    def _apply(
        self, messages: list[Message], conversation: Conversation, generation: bool = False
    ) -> str:
        tools: list[Any] | None = conversation.tools or None
        variables = self.config.template_kwargs | conversation.template_kwargs
        if reserved := [name for name in RESERVED if name in variables]:
            raise DataError(
                f"{reserved[0]!r} is no variable of a chat template that data.template_kwargs or "
                "the field chat_template_kwargs may set; leave it out"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self._dated(self.tokenizer.get_chat_template(tools=tools)),
                tokenize=False,
                add_generation_prompt=generation,
                **variables,
            )
        except (ConfigError, RecursionError):  # the day; a record nested too deeply
            raise
        except Exception as error:  # jinja's, or what a template does with what it does not expect
            raise DataError(
                f"the tokenizer's chat template refuses the conversation: {error}"
            ) from None
        return cast(str, text)

    def _dated(self, template: str) -> str:
        """With data.date in place of the day on which it is rendered."""
        if "strftime_now" not in template:
            return template
        date = datetime.date.fromisoformat(self.config.date)
        dated = TODAY.sub(lambda found: json.dumps(date.strftime(found[2])), template)
        if "strftime_now" in ASKS_FOR_IT.sub("", dated):
            raise ConfigError(
                "the tokenizer's chat template prints the day in a way that data.date cannot fix: "
                "write it into the template, which tokens must not change with"
            )
        return dated

    def _adapted(self, message: Message, with_tools: bool) -> Message:
        """The message as the template takes it: calls in its dialect, contents as a list of parts
        where it wants one, and the role `developer` as `system` where it does not know it."""
        if message["role"] == "developer" and "developer" not in self.source:
            message = message | {"role": "system"}
        if self.config.split_special_tokens:
            message = cut_specials(message, self.specials)
        if message.get("tool_calls"):
            if with_tools not in self.call_dialects:
                self.call_dialects[with_tools] = self._call_dialect(with_tools)
            message = _in_dialect(message, *self.call_dialects[with_tools])
        return _in_parts(message) if self._wants_parts else message

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether it shows a content as a list of parts only, as those of models with pictures."""
        trial = {"role": "user", "content": "text of trial"}
        with suppress(DataError):
            if trial["content"] in self._apply([trial], Conversation([], [])):
                return False
        parts = _in_parts(trial)
        with suppress(DataError):
            text = self._apply([parts], Conversation([], []))
            return trial["content"] in text and str(parts["content"]) not in text
        return False

    def _call_dialect(self, with_tools: bool) -> tuple[str | None, bool]:
        """What a template that shows calls takes as the content beside one that has none, and
        whether it wants the arguments as JSON text; found by a trial, with a tool where the
        conversation has some, for which a tokenizer may have a template of its own. An object,
        where text is wanted, is an error or stands there as Python writes it."""
        arguments = {"key_of_trial": "value"}
        call = {"type": "function", "function": {"name": "trial", "arguments": arguments}}
        asked = {"role": "user", "content": "trial"}
        answer = {"role": "assistant", "tool_calls": [{"id": "trial0001", **call}]}
        parameters = {"type": "object", "properties": {}}
        tool = {"name": "trial", "description": "A trial.", "parameters": parameters}
        tools = [{"type": "function", "function": tool}] if with_tools else []
        for content, as_text in ((None, False), (None, True), ("", False), ("", True)):
            messages = [asked, _in_dialect(answer | {"content": None}, content, as_text)]
            if self._wants_parts:
                messages = [_in_parts(message) for message in messages]
            with suppress(DataError):
                text = self._apply(messages, Conversation([], [], tools))
                if "key_of_trial" in text and str(arguments) not in text:
                    return content, as_text
        return "", False  # none is shown, and the guard says so


def _in_parts(message: Message) -> Message:
    if not isinstance(message["content"], str):
        return message
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def _in_dialect(message: Message, content: str | None, as_text: bool) -> Message:
    """A message with calls: with this content where it has none, and arguments as JSON text."""

    def of(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if not as_text or isinstance(function["arguments"], str):
            return call
        text = json.dumps(function["arguments"], ensure_ascii=False)
        return call | {"function": function | {"arguments": text}}

    own = message.get("content")
    calls = [of(call) for call in message["tool_calls"]]
    return message | {"content": content if own is None else own, "tool_calls": calls}
