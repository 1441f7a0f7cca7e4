"""One record -> the messages of a conversation, checked.

Errors are DataErrors without a place; the caller, which knows file and line, adds it.
"""

import difflib
import math
from collections.abc import Collection
from typing import Any, NamedTuple

from adaptsft.errors import ConfigError, DataError

ROLES = ("system", "user", "assistant", "tool")
LAYOUTS = {
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
}
FIELDS = ("messages", "prompt", "completion", "instruction", "input", "output", "id")

Message = dict[str, Any]


class Layout(NamedTuple):
    """How the records of a source hold a conversation. `names` maps our field names to the
    source's."""

    kind: str  # a key of LAYOUTS
    names: dict[str, str]

    @classmethod
    def of(cls, columns: Collection[str], fields: dict[str, str]) -> "Layout":
        """The layout of records with these columns, under the user's field map. Raises ConfigError
        or DataError."""
        for field in fields:
            if field not in FIELDS:
                near = difflib.get_close_matches(field, FIELDS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(
                    f"data.fields.{field}: the fields that can be mapped are "
                    f"{', '.join(FIELDS)}{hint}"
                )
        names = {field: fields.get(field, field) for field in FIELDS}
        for kind, needed in LAYOUTS.items():
            if all(names[field] in columns for field in needed):
                return cls(kind, names)
        for field, column in fields.items():
            if column not in columns and field != "id":
                raise DataError(
                    f"field {column!r} is missing (data.fields.{field} asks for it); the record "
                    f"has {_listed(columns)}"
                )
        raise DataError(
            f"layout not recognised: the record has {_listed(columns)}, but not messages, prompt "
            "and completion, or instruction and output; map the fields, for example "
            "data.fields='{prompt: question, completion: answer}'"
        )

    def conversation(self, record: dict[str, Any]) -> tuple[list[Message], int]:
        """The messages of a record, and the index of the first one that may be learned. Raises
        DataError, naming the field."""
        names = self.names
        if self.kind == "messages":
            return _messages(record, names["messages"]), 0
        if self.kind == "instruction":
            texts = [_text(record, names["instruction"])]
            if record.get(names["input"]) is not None:
                texts.append(_text(record, names["input"]))
            prompt = "\n\n".join(text for text in texts if text)
            return _single_turn(prompt, _answer(record, names["output"]))
        if not isinstance(record.get(names["prompt"]), list):
            prompt = _text(record, names["prompt"])
            return _single_turn(prompt, _answer(record, names["completion"]))
        turns = _messages(record, names["prompt"], answered=False)
        if isinstance(record.get(names["completion"]), list):
            return turns + _messages(record, names["completion"]), len(turns)
        answer = {"role": "assistant", "content": _answer(record, names["completion"])}
        return [*turns, answer], len(turns)


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
            f"{label} is not text but {type(value).__name__}, {str(value)[:60]!r}; write it as a "
            "string"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{label} is not valid Unicode: half a surrogate pair at character {error.start}; "
            "repair or remove it"
        ) from None
    return value


def _answer(record: dict[str, Any], field: str, label: str = "") -> str:
    text = _text(record, field, label)
    if not text.strip():
        label = label or f"field {field!r}"
        raise DataError(
            f"{label} is empty: there is nothing to learn; remove the record or write the answer"
        )
    return text


def _messages(record: dict[str, Any], field: str, answered: bool = True) -> list[Message]:
    """The list of messages in a field, checked. `answered`: an assistant's turn must be among
    them."""
    if field not in record:
        raise DataError(f"field {field!r} is missing; the record has {_listed(record)}")
    value = record[field]
    if not isinstance(value, list) or not value:
        raise DataError(
            f"field {field!r} must be a list of messages {{role, content}} with at least one "
            f"message, not {str(value)[:60]!r}"
        )
    messages = [
        _message(message, f"field {field!r}, message {number}")
        for number, message in enumerate(value)
    ]
    if answered and all(message["role"] != "assistant" for message in messages):
        raise DataError(
            f"field {field!r} has no assistant turn: there is nothing to learn; remove the record "
            "or add the answer"
        )
    return messages


def _message(message: Any, label: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(
            f"{label}: must be an object with role and content, not {str(message)[:60]!r}"
        )
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{label}: unknown role {role!r}; the roles are {', '.join(ROLES)}")
    # Tables fill keys that only some messages have with null; templates take a null key for a
    # present one, and transformers 5.17 does not remove it.
    message = {
        name: item for name, item in message.items() if item is not None or name == "content"
    }
    if role == "assistant" and not message.get("tool_calls"):
        _answer(message, "content", f"{label}: content")
    elif message.get("content") is not None or role != "assistant":
        _text(message, "content", f"{label}: content")
    return message
