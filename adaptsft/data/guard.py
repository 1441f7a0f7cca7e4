"""What a chat template makes of a conversation, compared with what the conversation holds.

Templates drop what they were not written for, without a word: tool calls, thoughts, tools, a system
message. So every text that a message holds must be found in the rendering, in the order of the
messages; and every word of a learned turn must be the message's own or stand in the template.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from adaptsft.data.layout import Conversation
from adaptsft.data.messages import ABOUT, Message

WORD = re.compile(r"\w+")
THOUGHTS_END = re.compile(r"</think>|\[/THINK\]")
ABOUT_CALL = ("id", "type", "index")
CONSTANTS = ("true", "false", "null", "True", "False", "None")

Span = tuple[int, int]
Text = tuple[str, str]  # field, text


class Lost(NamedTuple):
    """A text that is not in the rendering."""

    where: str  # the message or tool, and the place in it
    field: str  # of messages, or `tools`
    text: str


def lost_texts(
    conversation: Conversation,
    rendering: str,
    turns: dict[int, Span],
    all_thoughts: bool = False,
) -> list[Lost]:
    """What the conversation holds and the rendering does not show. `turns`: where the learned
    messages lie in it; these must lie there whole, and the messages before one of them before it.

    Thoughts of other turns are not looked for, unless `all_thoughts`: templates leave them out of a
    conversation that goes on, as generation will see it.
    """
    lost = [
        Lost(f"tool {number}: {name}", "tools", text)
        for number, tool in enumerate(conversation.tools)
        for name, text in _texts_of_tool(tool)
        if _find(text, rendering, 0) is None
    ]
    place = 0  # all messages before this one have been found up to here
    for number, message in enumerate(conversation.messages):
        following = (span[0] for i, span in turns.items() if i > number)
        begin, end = turns.get(number, (place, min(following, default=len(rendering))))
        is_system = message["role"] in ("system", "developer")
        begin = 0 if is_system else begin  # Mistral's stands before the last question
        texts, found = rendering[:end], [begin]
        for group, in_order in _groups(message, number in turns or all_thoughts):
            start = max(found) if in_order else begin
            for name, text in group:
                span = _find(text, texts, start, whole_words=in_order)
                if span is None:
                    field = re.split(r"[.:\[]", name)[0]
                    lost.append(Lost(f"message {number}: {name}", field, text))
                else:
                    found.append(span[1])
        if not is_system:
            place = end if number in turns else max(found)
    return lost


def foreign_words(message: Message, turn: str, template_words: frozenset[str]) -> list[str]:
    """Words of a learned turn that neither its message nor the template holds."""
    unknown = set(WORD.findall(turn)) - template_words
    texts = [text for group, _ in _groups(message, True) for _, text in group] if unknown else []
    for text in (*texts, *(str(message[name]) for name in ABOUT & message.keys())):
        unknown.difference_update(WORD.findall(text))
        if "\\" in turn:
            for form in _escaped(text):
                unknown.difference_update(WORD.findall(form))
    if unknown and _has_constant(message):
        unknown.difference_update(CONSTANTS)
    if not unknown:
        return []
    foreign = [word for word in WORD.findall(turn) if word in unknown]
    # the template may write its own text and the message's without a space between
    for name, text in message.items():
        if name not in ABOUT and isinstance(text, str) and len(text.strip()) > 1:
            turn = turn.replace(text.strip(), " ", 1)
    return foreign if not unknown.isdisjoint(WORD.findall(turn)) else []


def _groups(message: Message, thoughts: bool) -> Iterator[tuple[list[Text], bool]]:
    """The texts of all that a message holds, of an assistant's thoughts only if asked for: one
    group for each field and each call, and whether it must come after the groups before it."""
    hides = message["role"] == "assistant" and not thoughts
    for name, value in message.items():
        if name == "tool_calls":
            for number, call in enumerate(value or ()):
                yield list(_texts_of_call(call, f"{name}[{number}]")), True
        elif name == "content":
            hidden = hides and isinstance(value, str)
            yield list(_leaves(THOUGHTS_END.split(value)[-1] if hidden else value, name)), False
        elif name not in ABOUT and not hides:
            yield list(_leaves(value, name)), False


def _texts_of_call(call: dict[str, Any], label: str) -> Iterator[Text]:
    for key, value in call.items():
        if key == "function":
            for name, item in value.items():
                yield from _leaves(item, f"{label}.function.{name}")
        elif key not in ABOUT_CALL:
            yield from _leaves(value, f"{label}.{key}")


def _texts_of_tool(tool: dict[str, Any]) -> Iterator[Text]:
    """The names and the first descriptions: how templates write types, and descriptions inside
    them, differs."""
    function = tool["function"]
    yield "name", function["name"]
    parameters = function.get("parameters") or {}
    for name, value in (parameters.get("properties") or {}).items():
        if isinstance(value, dict) and isinstance(value.get("description"), str):
            yield f"parameter {name}: description", value["description"]
    for name in _property_names(parameters):
        yield f"parameter {name}", name
    if isinstance(function.get("description"), str):
        yield "description", function["description"]


def _property_names(schema: Any) -> Iterator[str]:
    """Of a JSON schema, at any depth."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        for name, value in (properties if isinstance(properties, dict) else {}).items():
            yield name
            yield from _property_names(value)
        yield from _property_names(schema.get("items"))


def _leaves(value: Any, label: str) -> Iterator[Text]:
    """Texts, keys and numbers at any depth; not null, true, false and empty text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{label}: key", str(key)
            yield from _leaves(item, f"{label}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{label}[{number}]")
    elif isinstance(value, str):
        if value.strip():
            yield label, value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield label, json.dumps(value)


def _has_constant(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_constant, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, bool)


def _find(text: str, rendering: str, begin: int, whole_words: bool = False) -> Span | None:
    """Where the text lies from `begin` on: as it is, as JSON writes it, or line by line with
    another indentation, as templates write it."""
    for form in (text.strip(), *_escaped(text.strip())):
        if (at := _place(form, rendering, begin, whole_words)) >= 0:
            return at, at + len(form)
    place = begin
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if (at := _place(line, rendering, place, whole_words)) < 0:
            break
        place = at + len(line)
    else:
        return begin, place
    parts = [part for part in re.split(r"</?think>|\[/?THINK\]", text) if part.strip()]
    if len(parts) > 1:  # thoughts and answer, which the template puts together in its own way
        spans = [_find(part, rendering, begin) for part in parts]
        found = [span for span in spans if span is not None]
        if len(found) == len(parts):
            return begin, max(end for _, end in found)
    return None


def _place(text: str, rendering: str, begin: int, whole_words: bool) -> int:
    """-1 where it is not found; with `whole_words` not within a longer word."""
    at = rendering.find(text, begin)
    while whole_words and at >= 0:
        end = at + len(text)
        if not (_is_word(rendering[at - 1 : at]) and _is_word(text[:1])) and not (
            _is_word(rendering[end : end + 1]) and _is_word(text[-1:])
        ):
            break
        at = rendering.find(text, at + 1)
    return at


def _is_word(character: str) -> bool:
    return WORD.match(character) is not None


def _escaped(text: str) -> tuple[str, str]:
    """As JSON writes it."""
    return json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]
