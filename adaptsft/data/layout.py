"""One record -> the messages of a conversation, checked. A new layout is one function with
`@register` above it.

Errors are DataErrors without a place; the caller, which knows file and line, adds it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from adaptsft.errors import DataError, require_known

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]
# the messages of a record, and the index of the first one that may be learned
Conversation = tuple[list[Message], int]
# (record, field map: our name -> the source's) -> conversation; raises DataError, naming the field
Reader = Callable[[dict[str, Any], Mapping[str, str]], Conversation]


class Registered(NamedTuple):
    read: Reader
    needs: tuple[str, ...]  # fields that a record of this layout has
    optional: tuple[str, ...]


LAYOUTS: dict[str, Registered] = {}  # in this order, the first whose fields are there is taken


def register(
    name: str, needs: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Callable[[Reader], Reader]:
    """Make a function the reader of records with the fields `needs`."""

    def add(read: Reader) -> Reader:
        LAYOUTS[name] = Registered(read, needs, optional)
        return read

    return add


class Layout(NamedTuple):
    """How the records of a source hold a conversation."""

    kind: str  # a key of LAYOUTS
    names: dict[str, str]  # our field names -> the source's

    @classmethod
    def of(cls, columns: Collection[str], fields: dict[str, str]) -> "Layout":
        """The layout of records with these columns, under the user's field map. Raises ConfigError
        or DataError."""
        known = [
            *(field for layout in LAYOUTS.values() for field in layout.needs + layout.optional),
            "id",
        ]
        for field in fields:
            require_known(f"data.fields.{field}: no such field", field, known)
        names = {field: fields.get(field, field) for field in known}
        for kind, layout in LAYOUTS.items():
            if all(names[field] in columns for field in layout.needs):
                return cls(kind, names)
        for field, column in fields.items():
            if column not in columns and field != "id":
                raise DataError(
                    f"field {column!r} is missing (data.fields.{field} asks for it); the record "
                    f"has {_listed(columns)}"
                )
        layouts = " or ".join(" and ".join(layout.needs) for layout in LAYOUTS.values())
        raise DataError(
            f"layout not recognised: the record has {_listed(columns)}, but not {layouts}; map the "
            "fields, for example data.fields='{prompt: question, completion: answer}'"
        )

    def conversation(self, record: dict[str, Any]) -> Conversation:
        """The messages of a record, and the index of the first one that may be learned. Raises
        DataError, naming the field."""
        return LAYOUTS[self.kind].read(record, self.names)


@register("messages", needs=("messages",))
def messages(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """A conversation: [{role, content}, …]."""
    return _messages(record, names["messages"]), 0


@register("prompt", needs=("prompt", "completion"))
def prompt(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """Texts, or lists of messages, of which those of the completion are learned."""
    if not isinstance(record.get(names["prompt"]), list):
        text = _text(record, names["prompt"])
        return _single_turn(text, _answer(record, names["completion"]))
    turns = _messages(record, names["prompt"], answered=False)
    if isinstance(record.get(names["completion"]), list):
        return turns + _messages(record, names["completion"]), len(turns)
    answer = {"role": "assistant", "content": _answer(record, names["completion"])}
    return [*turns, answer], len(turns)


@register("instruction", needs=("instruction", "output"), optional=("input",))
def instruction(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """Alpaca's: an instruction, an input that may be empty, and the output."""
    texts = [_text(record, names["instruction"])]
    if record.get(names["input"]) is not None:
        texts.append(_text(record, names["input"]))
    text = "\n\n".join(text for text in texts if text)
    return _single_turn(text, _answer(record, names["output"]))


def _listed(columns: Collection[str]) -> str:
    return "the fields " + ", ".join(columns) if columns else "no fields"


def _single_turn(prompt: str, answer: str) -> Conversation:
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
    found = [
        _message(message, f"field {field!r}, message {number}")
        for number, message in enumerate(value)
    ]
    if answered and all(message["role"] != "assistant" for message in found):
        raise DataError(
            f"field {field!r} has no assistant turn: there is nothing to learn; remove the record "
            "or add the answer"
        )
    return found


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
