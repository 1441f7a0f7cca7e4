"""One record -> text segments -> token ids and a loss mask.

The text is what the tokenizer's chat template (or the plain template) renders. Which part of it is learned is found by rendering
prefixes of the conversation, since stock templates do not mark the assistant's turns: the prompt of turn i is the rendering of
messages[:i] with the generation prompt, and the turn is what the rendering of messages[:i+1] adds to it. Prompt and turn are
tokenised apart, so that the ids of a prompt in training are those that generation starts from.

Errors are DataErrors without a place; the caller, which knows file and line, adds it.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Collection
from functools import cached_property
from typing import Any, NamedTuple, cast

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from adaptsft.config.schema import DataConfig
from adaptsft.errors import ConfigError, DataError

ROLES = ("system", "user", "assistant", "tool")
LAYOUTS = {
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
}
FIELDS = ("messages", "prompt", "completion", "instruction", "input", "output", "id")

PLAIN_PROMPTS = (
    ["user"],
    ["system", "user"],
)  # the plain template puts a system message before the user's, as the evaluators do

Message = dict[str, Any]
Segment = tuple[str, bool]  # text, whether it is learned


class Layout(NamedTuple):
    """How the records of a source hold a conversation. `names` maps our field names to the source's."""

    kind: str  # a key of LAYOUTS
    names: dict[str, str]

    @classmethod
    def of(cls, columns: Collection[str], fields: dict[str, str]) -> "Layout":
        """The layout of records with these columns, under the user's field map. Raises ConfigError or DataError."""
        for field in fields:
            if field not in FIELDS:
                near = difflib.get_close_matches(field, FIELDS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(
                    f"data.fields.{field}: the fields that can be mapped are {', '.join(FIELDS)}{hint}"
                )
        names = {field: fields.get(field, field) for field in FIELDS}
        for kind, needed in LAYOUTS.items():
            if all(names[field] in columns for field in needed):
                return cls(kind, names)
        for field, column in fields.items():
            if column not in columns and field != "id":
                raise DataError(
                    f"field {column!r} is missing (data.fields.{field} asks for it); the record has {_listed(columns)}"
                )
        raise DataError(
            f"layout not recognised: the record has {_listed(columns)}, but not messages, prompt and completion, or instruction and "
            "output; map the fields, for example data.fields='{prompt: question, completion: answer}'"
        )

    def conversation(self, record: dict[str, Any]) -> tuple[list[Message], int]:
        """The messages of a record, and the index of the first one that may be learned. Raises DataError, naming the field."""
        names = self.names
        if self.kind == "messages":
            return _messages(record, names["messages"]), 0
        if self.kind == "instruction":
            parts = [_text(record, names["instruction"])]
            if record.get(names["input"]) is not None:
                parts.append(_text(record, names["input"]))
            return _single_turn(
                "\n\n".join(part for part in parts if part), _answer(record, names["output"])
            )
        if isinstance(record.get(names["prompt"]), list):
            prompt = _messages(record, names["prompt"], answered=False)
            if isinstance(record.get(names["completion"]), list):
                return prompt + _messages(record, names["completion"]), len(prompt)
            return [
                *prompt,
                {"role": "assistant", "content": _answer(record, names["completion"])},
            ], len(prompt)
        return _single_turn(_text(record, names["prompt"]), _answer(record, names["completion"]))


def _listed(columns: Collection[str]) -> str:
    return "the fields " + ", ".join(columns) if columns else "no fields"


def _single_turn(prompt: str, answer: str) -> tuple[list[Message], int]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], 1


def _text(record: dict[str, Any], field: str, label: str = "") -> str:
    label = label or f"field {field!r}"
    if field not in record:
        raise DataError(f"{label} is missing; the record has {_listed(record)}")
    value = record[field]
    if isinstance(value, float) and math.isnan(value):
        raise DataError(f"{label} is NaN, not text; remove the record or write its text")
    if value is None:
        raise DataError(f"{label} is null, not text; remove the record or write its text")
    if not isinstance(value, str):
        raise DataError(
            f"{label} is not text but {type(value).__name__}, {str(value)[:60]!r}; write it as a string"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{label} is not valid Unicode: half a surrogate pair at character {error.start}; repair or remove it"
        ) from None
    return value


def _answer(record: dict[str, Any], field: str, label: str = "") -> str:
    text = _text(record, field, label)
    if not text.strip():
        raise DataError(
            f"{label or f'field {field!r}'} is empty: there is nothing to learn; remove the record or write the answer"
        )
    return text


def _messages(record: dict[str, Any], field: str, answered: bool = True) -> list[Message]:
    """The list of messages in a field, checked. `answered`: an assistant's turn must be among them."""
    if field not in record:
        raise DataError(f"field {field!r} is missing; the record has {_listed(record)}")
    value = record[field]
    if not isinstance(value, list) or not value:
        raise DataError(
            f"field {field!r} must be a list of messages {{role, content}} with at least one message, not {str(value)[:60]!r}"
        )
    messages = []
    for number, message in enumerate(value):
        label = f"field {field!r}, message {number}"
        if not isinstance(message, dict):
            raise DataError(
                f"{label}: must be an object with role and content, not {str(message)[:60]!r}"
            )
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"{label}: unknown role {role!r}; the roles are {', '.join(ROLES)}")
        # Tables fill keys that only some messages have with null; templates take a null key for a present one,
        # and transformers 5.17 does not remove it.
        message = {
            name: item for name, item in message.items() if item is not None or name == "content"
        }
        if role == "assistant" and not message.get("tool_calls"):
            _answer(message, "content", f"{label}: content")
        elif message.get("content") is not None or role != "assistant":
            _text(message, "content", f"{label}: content")
        messages.append(message)
    if answered and all(message["role"] != "assistant" for message in messages):
        raise DataError(
            f"field {field!r} has no assistant turn: there is nothing to learn; remove the record or add the answer"
        )
    return messages


class Template:
    """Renders conversations to token ids, for training and for generation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        """Raises ConfigError where the tokenizer cannot serve the configured template."""
        self.tokenizer = tokenizer
        self.loss_on = config.loss_on
        self.prompt_template = config.prompt_template
        self.kind = config.template
        if self.kind == "auto":
            self.kind = "chat" if tokenizer.chat_template else "plain"
        if self.kind == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                "data.template=chat: the tokenizer has no chat template; use data.template=plain or a tokenizer that has one"
            )
        if self.kind == "plain" and tokenizer.eos_token_id is None:
            raise ConfigError(
                "data.template=plain: the tokenizer has no end-of-text token (eos_token), so that generation would not stop"
            )
        # A tokenizer that puts a begin-of-text token first does so in generation too. Chat templates write it themselves.
        starts_with_bos = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [
            tokenizer.bos_token_id
        ]
        self.begin = [tokenizer.bos_token_id] if self.kind == "plain" and starts_with_bos else []
        self.end = [tokenizer.eos_token_id] if self.kind == "plain" else []
        self.turn_ends = tuple(token.content for token in tokenizer.added_tokens_decoder.values())

    @cached_property
    def fingerprint(self) -> str:
        """Of everything here that token ids and masks depend on."""
        tokenizer = self.tokenizer
        if hasattr(tokenizer, "backend_tokenizer"):
            state = json.loads(tokenizer.backend_tokenizer.to_str())
            state |= {
                "padding": None,
                "truncation": None,
            }  # left behind by earlier calls, and not used here
        else:
            state = tokenizer.get_vocab() | {"class": type(tokenizer).__name__}
        template = tokenizer.get_chat_template() if self.kind == "chat" else self.prompt_template
        parts = [
            self.kind,
            template,
            self.loss_on,
            self.begin,
            self.end,
            tokenizer.special_tokens_map,
            state,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The token ids from which generation answers the conversation: the very ids of the prompt in training."""
        text = (
            self._plain_prompt(messages)
            if self.kind == "plain"
            else self._render(messages, generation=True)
        )
        return self.begin + self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def segments(self, messages: list[Message], first: int = 0) -> list[Segment]:
        """The text of a conversation, cut where learning begins and ends. Only assistant turns from `first` on are learned; what
        follows the last of them is left out, since nothing learns from it (with loss_on=all everything stays). Raises DataError."""
        turns = [
            i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first
        ]
        if self.kind == "plain":
            *before, last = messages
            roles = [message["role"] for message in before]
            if last["role"] != "assistant" or roles not in PLAIN_PROMPTS:
                raise DataError(
                    "the plain template takes one user message, which a system message may precede, and one assistant message, not "
                    f"{', '.join([*roles, last['role']])}; use a tokenizer with a chat template"
                )
            return [(self._plain_prompt(before), self.loss_on == "all"), (last["content"], True)]
        if self.loss_on == "all":
            return [(self._render(messages), True)]
        messages = messages[: turns[-1] + 1]
        full, done, segments = self._render(messages), 0, []
        for i in turns[-1:] if self.loss_on == "last_turn" else turns:
            if i == 0:
                raise DataError(
                    "the conversation starts with the assistant: there is no prompt; put a user or system message first"
                )
            prompt = self._render(messages[:i], generation=True)
            upto = full if i == turns[-1] else self._render(messages[: i + 1])
            turn = self._trim(upto[len(prompt) :])
            if not upto.startswith(prompt):
                raise DataError(
                    f"the chat template's generation prompt is not how it begins message {i}, so that no loss mask fits it; use a "
                    "tokenizer whose template agrees with itself, or data.template=plain"
                )
            if not full.startswith(prompt + turn) or len(prompt) < done:
                raise DataError(
                    f"the chat template renders the turns up to message {i} otherwise when more messages follow, so that no loss mask fits "
                    "them; use data.loss_on=last_turn"
                )
            segments += [(full[done : len(prompt)], False), (turn, True)]
            done = len(prompt) + len(turn)
        return segments

    def encode(self, conversations: list[list[Segment]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32 [L], mask bool [L]) of each. The mask marks the tokens that are learned; the first token has no prediction, and
        never is. One call of the tokenizer, which uses all cores."""
        texts = [text for segments in conversations for text, _ in segments]
        pieces = iter(
            self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
        )
        examples = []
        for segments in conversations:
            ids, mask = list(self.begin), [self.loss_on == "all"] * len(self.begin)
            for _, learned in segments:
                piece = next(pieces)
                ids += piece
                mask += [learned] * len(piece)
            ids += self.end
            mask += [True] * len(self.end)
            mask[:1] = [False] * len(mask[:1])
            examples.append((np.array(ids, dtype=np.int32), np.array(mask, dtype=bool)))
        return examples

    def _plain_prompt(self, messages: list[Message]) -> str:
        if [message["role"] for message in messages] not in PLAIN_PROMPTS:
            raise DataError(
                "the plain template takes a single user message, which a system message may precede; use a tokenizer with a chat template"
            )
        # not str.format: prompts about code and mathematics are full of braces
        return self.prompt_template.replace(
            "{prompt}", "\n\n".join(message["content"] for message in messages)
        )

    def _render(self, messages: list[Message], generation: bool = False) -> str:
        try:
            return cast(
                str,
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generation
                ),
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the tokenizer's chat template refuses the conversation: {error}"
            ) from None

    def _trim(self, turn: str) -> str:
        """The turn without the white space that some templates put after its last token: generation has stopped by then."""
        trimmed = turn.rstrip()
        return trimmed if trimmed.endswith(self.turn_ends) else turn
