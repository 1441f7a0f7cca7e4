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
from adaptsft.data.messages import Message

# Of a message, what says about it and is not said in it. Some templates show some of these.
ABOUT = frozenset(
    ("role", "name", "id", "tool_call_id", "type", "index", "model", "timestamp", "created_at")
)
WORD = re.compile(r"\w+")
THOUGHTS_END = re.compile(r"</think>|\[/THINK\]")

Span = tuple[int, int]


class Lost(NamedTuple):
    """A text that is not in the rendering."""

    where: str  # the message or tool, and the place in it
    field: str  # of messages, or `tools`
    text: str


def lost_texts(conversation: Conversation, rendering: str, turns: dict[int, Span]) -> list[Lost]:
    """What the conversation holds and the rendering does not show. `turns`: where the learned
    messages lie in it; these must lie there whole.

    Thoughts of other turns are not looked for: templates leave them out of a conversation that goes
    on, as generation will see it.
    """
    lost = [
        Lost(f"tool {number}: {name}", "tools", text)
        for number, tool in enumerate(conversation.tools)
        for name, text in _texts_of_tool(tool)
        if _find(text, rendering, 0) is None
    ]
    place = 0  # all messages before this one have been found up to here
    for number, message in enumerate(conversation.messages):
        begin, end = turns.get(number, (place, len(rendering)))
        if message["role"] in ("system", "developer"):
            begin = 0  # Mistral's stands before the last question
        shown, found = rendering[:end], [begin]
        for name, text in texts_of(message, thoughts=number in turns):
            span = _find(text, shown, begin)
            if span is None:
                field = re.split(r"[.:\[]", name)[0]
                lost.append(Lost(f"message {number}: {name}", field, text))
            else:
                found.append(span[1])
        if message["role"] not in ("system", "developer"):
            place = end if number in turns else max(found)
    return lost


def foreign_words(message: Message, turn: str, template_words: frozenset[str]) -> list[str]:
    """Words of a learned turn that neither its message nor the template holds."""
    known, texts = set(template_words), [text for _, text in texts_of(message, thoughts=True)]
    for text in (*texts, *(str(message.get(name, "")) for name in ABOUT)):
        known.update(WORD.findall(text))
        if "\\" in turn:
            known.update(word for form in _escaped(text) for word in WORD.findall(form))
    foreign = [word for word in WORD.findall(turn) if word not in known]
    if foreign:  # the template may write its own text and the message's without a space between
        for text in texts:
            turn = turn.replace(text.strip(), " ", 1)
        foreign = [word for word in WORD.findall(turn) if word not in known]
    return foreign


def texts_of(message: Message, thoughts: bool) -> Iterator[tuple[str, str]]:
    """(field, text) of all that a message holds; of an assistant's thoughts only if asked for."""
    thinks = message["role"] == "assistant" and not thoughts
    for name, value in message.items():
        if name in ABOUT or (thinks and name not in ("content", "tool_calls")):
            continue
        if name == "content" and thinks and value:
            value = THOUGHTS_END.split(value)[-1]
        yield from _leaves(value, name)


def _texts_of_tool(tool: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The names and descriptions: how templates write types differs."""
    function = tool["function"]
    yield "name", function["name"]
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    for name, value in (properties if isinstance(properties, dict) else {}).items():
        yield f"parameter {name}", name
        if isinstance(value, dict) and isinstance(value.get("description"), str):
            yield f"parameter {name}: description", value["description"]
    if isinstance(function.get("description"), str):
        yield "description", function["description"]


def _leaves(value: Any, label: str) -> Iterator[tuple[str, str]]:
    """Texts, keys and numbers at any depth; not null, empty text and what is about a call."""
    if isinstance(value, dict):
        for key, item in value.items():
            if label.startswith("tool_calls") and key in ("id", "type", "index"):
                continue
            structure = label.startswith("tool_calls") and key in ("function", "name", "arguments")
            if not structure:
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


def _find(text: str, rendering: str, begin: int) -> Span | None:
    """Where the text lies from `begin` on: as it is, as JSON writes it, or line by line with
    another indentation, as templates write it."""
    for form in (text.strip(), *_escaped(text.strip())):
        if (at := rendering.find(form, begin)) >= 0:
            return at, at + len(form)
    place = begin
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if (at := rendering.find(line, place)) < 0:
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


def _escaped(text: str) -> tuple[str, str]:
    """As JSON writes it."""
    return json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]
