"""One record -> a conversation, checked. A new layout is one function with `@register` above it.

Errors are DataErrors without a place; the caller, which knows file and line, adds it.
"""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from adaptsft.data.messages import (
    Message,
    answer_of,
    is_conversation,
    parsed,
    printable,
    read_messages,
    read_tools,
    shown,
    text_of,
)
from adaptsft.errors import ConfigError, DataError, require_known


@dataclass(frozen=True)
class Conversation:
    """What a record holds: messages, each with its weight in the loss (it counts for those of the
    assistant; 0: not learned), or a text without turns."""

    messages: list[Message]
    weights: list[float]
    tools: list[dict[str, Any]] = field(default_factory=list)  # offered to the assistant
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # variables of the template
    context: int = 0  # number of messages, the first ones, that are not learned by themselves
    text: str | None = None


# (record, field map: our name -> the source's) -> conversation; raises DataError, naming the field
Reader = Callable[[dict[str, Any], Mapping[str, str]], Conversation]


class Registered(NamedTuple):
    read: Reader
    needs: tuple[str, ...]  # fields that a record of this layout has
    optional: tuple[str, ...]


LAYOUTS: dict[str, Registered] = {}  # in this order, the first whose fields are there is taken
# fields that records of every layout may have
COMMON = ("system", "history", "tools", "chat_template_kwargs", "id")
# what other data sets call a prompt and its answer: for the advice where no layout is recognised
PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input")
ANSWERS = ("completion", "answer", "response", "output", "solution", "chosen")


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
    def of(cls, record: Mapping[str, Any], fields: dict[str, str]) -> "Layout":
        """The layout of records with the fields of this one, under the user's field map. Raises
        ConfigError or DataError."""
        known = [
            *(field for layout in LAYOUTS.values() for field in layout.needs + layout.optional),
            *COMMON,
        ]
        for name in fields:
            require_known(f"data.fields.{name}: no such field", name, known)
        names = {name: fields.get(name, name) for name in known}
        # a layout whose fields the user maps comes before others that the record has too
        mapped = {name for name in fields if name not in COMMON and fields[name] != "none"}
        for kind, layout in sorted(LAYOUTS.items(), key=lambda it: mapped.isdisjoint(it[1].needs)):
            if all(names[name] in record for name in layout.needs):
                if not mapped <= {*layout.needs, *layout.optional}:
                    (other, *_) = sorted(mapped - {*layout.needs, *layout.optional})
                    raise ConfigError(
                        f"data.fields.{other}: the record has {_listed(record)}, which is read as "
                        f"{' and '.join(layout.needs)} and has no such field; map all fields of "
                        "one layout"
                    )
                return cls(kind, names)
        for name, column in fields.items():
            if column not in record and name not in COMMON:
                raise DataError(
                    f"field {column!r} is missing (data.fields.{name} asks for it); the record "
                    f"has {_listed(record)}"
                )
        layouts = " or ".join(" and ".join(layout.needs) for layout in LAYOUTS.values())
        raise DataError(
            f"layout not recognised: the record has {_listed(record)}, but not {layouts}; "
            f"{_advice(record)}"
        )

    @property
    def columns(self) -> set[str]:
        """Those of the source that are read."""
        layout = LAYOUTS[self.kind]
        common = COMMON if self.kind != "text" else ("id",)
        return {self.names[name] for name in (*layout.needs, *layout.optional, *common)}

    def conversation(self, record: dict[str, Any]) -> Conversation:
        """Raises DataError, naming the field."""
        found = LAYOUTS[self.kind].read(record, self.names)
        return found if found.text is not None else _with_common(found, record, self.names)


@register("messages", needs=("messages",))
def messages(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """A conversation: [{role, content}, …]."""
    return _conversation(record, names["messages"])


@register("conversations", needs=("conversations",))
def conversations(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """ShareGPT's: [{from, value}, …]."""
    return _conversation(record, names["conversations"])


@register("prompt", needs=("prompt", "completion"))
def prompt(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """Texts, or lists of messages, of which those of the completion are learned."""
    asked = _maybe_messages(_present(record, names["prompt"]))
    label = f"field {names['prompt']!r}"
    turns, context = [{"role": "user", "content": asked}], 0
    if isinstance(asked, list):
        turns, _ = read_messages(asked, label, learned=False)
        context = len(turns)
    else:
        text_of(asked, label)
    given = _maybe_messages(_present(record, names["completion"]))
    label = f"field {names['completion']!r}"
    if not isinstance(given, list):
        answer = {"role": "assistant", "content": answer_of(given, label)}
        return Conversation([*turns, answer], [1.0] * (len(turns) + 1), context=context)
    answers, weights = read_messages(given, label)
    if answers[0]["role"] in ("system", "user"):
        raise DataError(
            f"{label} begins with a message of the {answers[0]['role']}: it is a whole "
            f"conversation; map it as one, data.fields='{{messages: {names['completion']}}}'"
        )
    _require_answer(answers, label)
    return Conversation(turns + answers, [1.0] * len(turns) + weights, context=context)


@register("instruction", needs=("instruction", "output"), optional=("input",))
def instruction(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """Alpaca's: an instruction, an input that may be empty, and the output."""
    texts = [_text(record, names["instruction"])]
    if record.get(names["input"]) is not None:
        texts.append(_text(record, names["input"]))
    asked = "\n\n".join(text for text in texts if text)
    return _single_turn(asked, _answer(record, names["output"]))


@register("text", needs=("text",))
def text(record: dict[str, Any], names: Mapping[str, str]) -> Conversation:
    """Text without turns, for continued pretraining."""
    return Conversation([], [], text=_answer(record, names["text"]))


def _single_turn(prompt: str, answer: str) -> Conversation:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Conversation(messages, [1.0, 1.0])


def _text(record: Mapping[str, Any], name: str) -> str:
    return text_of(_present(record, name), f"field {name!r}")


def _answer(record: Mapping[str, Any], name: str) -> str:
    return answer_of(_present(record, name), f"field {name!r}")


def _conversation(record: dict[str, Any], name: str) -> Conversation:
    label = f"field {name!r}"
    found, weights = read_messages(_present(record, name), label)
    _require_answer(found, label)
    return Conversation(found, weights)


def _require_answer(messages: list[Message], label: str) -> None:
    if all(message["role"] != "assistant" for message in messages):
        raise DataError(
            f"{label} has no assistant turn: there is nothing to learn; remove the record or add "
            "the answer"
        )


def _with_common(
    found: Conversation, record: dict[str, Any], names: Mapping[str, str]
) -> Conversation:
    """With the fields that records of every layout may have."""
    before: list[Message] = []
    system = record.get(names["system"])
    if system is not None and text_of(system, f"field {names['system']!r}").strip():
        before.append({"role": "system", "content": system})
    history = record.get(names["history"])
    earlier, weights = _history(history, f"field {names['history']!r}") if history else ([], [])
    own = 0  # system messages that the conversation begins with; the history follows them
    while history and found.messages[own]["role"] in ("system", "developer"):
        own += 1
    found = replace(
        found,
        messages=[*before, *found.messages[:own], *earlier, *found.messages[own:]],
        weights=[1.0] * len(before) + found.weights[:own] + weights + found.weights[own:],
        context=found.context and found.context + len(before) + len(earlier),
        tools=read_tools(record.get(names["tools"]), f"field {names['tools']!r}"),
    )
    systems = [i for i, message in enumerate(found.messages) if message["role"] == "system"]
    if before and len(systems) > 1:
        raise DataError(
            f"the system prompt is in field {names['system']!r} and in a message too; keep one of "
            "them, or leave the field out with data.fields.system=none"
        )
    variables = record.get(names["chat_template_kwargs"])
    label = f"field {names['chat_template_kwargs']!r}"
    variables = parsed(variables, label) if isinstance(variables, str) else variables
    if variables is not None and not isinstance(variables, dict):
        raise DataError(f"{label} must be an object, not {shown(variables)}")
    return replace(found, template_kwargs=variables or {})


def _history(value: Any, label: str) -> tuple[list[Message], list[float]]:
    """Earlier turns: messages, or LLaMA-Factory's pairs [question, answer]."""
    value = parsed(value, label) if isinstance(value, str) else value
    if isinstance(value, list) and all(isinstance(pair, list) for pair in value):
        messages: list[Message] = []
        for number, pair in enumerate(value):
            if len(pair) != 2:
                raise DataError(f"{label}[{number}] must be [question, answer], not {shown(pair)}")
            asked = text_of(pair[0], f"{label}[{number}][0]")
            answer = answer_of(pair[1], f"{label}[{number}][1]")
            messages += [{"role": "user", "content": asked}]
            messages += [{"role": "assistant", "content": answer}]
        return messages, [1.0] * len(messages)
    return read_messages(value, label)


def _maybe_messages(value: Any) -> Any:
    """Messages where the value is their JSON text, as in a table of text."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with suppress(ValueError, RecursionError):
            if is_conversation(found := json.loads(value)):
                return found
    return value


def _present(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise DataError(f"field {name!r} is missing; the record has {_listed(record)}")
    return record[name]


def _listed(columns: Collection[str]) -> str:
    return "the fields " + ", ".join(map(printable, columns)) if columns else "no fields"


def _advice(record: Mapping[str, Any]) -> str:
    """How to map the fields of a record whose layout is not recognised."""
    chosen = record.get("chosen")
    first = chosen[0] if isinstance(chosen, list) and chosen else None
    if isinstance(first, dict) and first.get("role", first.get("from")) in ("user", "human"):
        return (
            "these are preferences: to learn the chosen conversations, "
            "data.fields='{messages: chosen}'"
        )
    for name, value in record.items():
        if is_conversation(value):
            return f"{name!r} holds messages: map it, data.fields='{{messages: {name}}}'"
    if {"role", "content"} <= record.keys():
        return (
            "these are the messages of one conversation: put each conversation on a line, [{…}, …]"
        )
    asked = next((name for name in PROMPTS if name in record), "question")
    answer = next((name for name in ANSWERS if name in record and name != asked), "answer")
    return f"map the fields, for example data.fields='{{prompt: {asked}, completion: {answer}}}'"
