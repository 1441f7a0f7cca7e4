"""A message of a record, in any of the dialects that data sets use, as chat templates expect it:
{role, content, tool_calls, …}, checked.

Errors are DataErrors without a place; the caller, which knows file and line, adds it. `label` says
which message or field it is.
"""

import json
import math
from typing import Any

from adaptsft.errors import DataError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's names, LLaMA-Factory's, Gemma's, and OpenAI's old one for a tool's answer
ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
CALLS = ("function_call", "tool_call")  # ShareGPT: a turn that is a call, as JSON text
# what says how a message is learned: it is not for the template. OpenAI, axolotl, ms-swift
LEARNING = ("weight", "train", "training", "loss")
# Of a message, what says about it and is not said in it (WildChat's is among it); some templates
# show some of these
ABOUT = frozenset(
    [
        "role",
        "name",
        "id",
        "tool_call_id",
        "type",
        "index",
        "model",
        "timestamp",
        "created_at",
        "date",
        "source",
        "score",
        "language",
        "country",
        "state",
        "header",
        "hashed_ip",
        "redacted",
        "toxic",
        "turn_identifier",
    ]
)
HEAVIEST, LIGHTEST = 1e6, 1e-6  # weights


def is_conversation(value: Any) -> bool:
    """Whether this looks like a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(
        keys <= first.keys() for keys in ({"role", "content"}, {"from", "value"})
    )


def read_messages(
    value: Any, label: str, learned: bool = True
) -> tuple[list[Message], list[float]]:
    """The messages of a list, and the weight of each in the loss; with `learned=False` those of the
    assistant are context, and may be empty. Raises DataError."""
    value = parsed(value, label) if isinstance(value, str) and value[:1] == "[" else value
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{label} must be a list of messages {{role, content}} with at least one message, not "
            f"{shown(value)}"
        )
    found = [
        _message(item, f"{label}, message {number}", learned) for number, item in enumerate(value)
    ]
    return [message for message, _ in found], [weight for _, weight in found]


def read_tools(value: Any, label: str) -> list[dict[str, Any]]:
    """The tools that a record offers, each {type, function: {name, description, parameters}}: a
    list, or one as JSON text. Raises DataError."""
    value = parsed(value, label) if isinstance(value, str) and value.strip() else value
    if not value:  # null, an empty list or text: tables fill columns with these
        return []
    if not isinstance(value, list):
        raise DataError(f"{label} must be a list of tools, not {shown(value)}")
    check_values(value, label)
    tools = []
    for number, tool in enumerate(value):
        bare = isinstance(tool, dict) and "name" in tool and "function" not in tool
        tool = {"type": "function", "function": tool} if bare else tool
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{label}, tool {number}: must be {{type: function, function: {{name, description, "
                f"parameters}}}}, not {shown(tool)}"
            )
        tools.append({**tool, "function": _function(function, f"{label}, tool {number}")})
    return tools


def _function(function: dict[str, Any], label: str) -> dict[str, Any]:
    """With `parameters` as a JSON schema, which it may have as text, or as Anthropic's
    input_schema. Another form would be dropped by some templates without a word."""
    function = dict(function)
    if "parameters" not in function and "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    parameters = function.get("parameters")
    if isinstance(parameters, str):
        parameters = function["parameters"] = parsed(parameters, f"{label}: parameters")
    known = {"name", "description", "parameters", "return", "returns", "strict"}
    unknown = [key for key in function if key not in known]
    is_schema = isinstance(parameters, dict) and (
        not parameters or "properties" in parameters or "type" in parameters
    )
    if unknown or not (parameters is None or is_schema):
        raise DataError(
            f"{label}: parameters must be a JSON schema {{type: object, properties: …}} under that "
            f"name; it has {', '.join(unknown) or shown(parameters)}"
        )
    return function


def text_of(value: Any, label: str) -> str:
    """The value, where it is valid text. Raises DataError."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        kind = "null" if value is None else "NaN"
        raise DataError(f"{label} is {kind}, not text; remove the record or write its text")
    if not isinstance(value, str):
        fix = "write it as a string"
        if hasattr(value, "isoformat"):  # `datasets` makes dates of the texts in a folder's files
            fix = (
                "store the column as text, or name the files themselves: data.path='FOLDER/*.jsonl'"
            )
        raise DataError(f"{label} is not text but {type(value).__name__}, {shown(value)}; {fix}")
    check_values(value, label)
    return value


def answer_of(value: Any, label: str) -> str:
    """Text that is not empty. Raises DataError."""
    text = text_of(value, label)
    if not text.strip():
        raise DataError(
            f"{label} is empty: there is nothing to learn; remove the record or write the answer"
        )
    return text


def check_values(value: Any, label: str) -> None:
    """Raise DataError, naming the field, for what no template can write at any depth: half a
    surrogate pair, numbers that are not finite, dates, bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{label} is not valid Unicode: half a surrogate pair at character {error.start}; "
                "repair or remove it"
            ) from None
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_values(key, label)
            check_values(item, f"{label}.{key}" if isinstance(value, dict) else f"{label}[{key}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{label} is {value}, which JSON cannot write; remove or replace it")
    elif value is not None and not isinstance(value, int | float):
        raise DataError(f"{label} is a {type(value).__name__}, {shown(value)}; write it as text")


def parsed(text: str, label: str) -> Any:
    """The value of JSON text. Raises DataError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{label} is not valid JSON: {error}: {shown(text)}") from None


def printable(text: str) -> str:
    """The text with half surrogate pairs, which no terminal or file takes, as \\ud83d."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    return repr(str(value)[:60])


def _message(message: Any, label: str, learned: bool) -> tuple[Message, float]:
    if not isinstance(message, dict):
        raise DataError(f"{label}: must be an object with role and content, not {shown(message)}")
    apart = ("content", "value", *ABOUT)  # checked below, and not checked
    check_values({key: item for key, item in message.items() if key not in apart}, label)
    check_values([key for key in message if isinstance(key, str)], label)
    given = message.get("role", message.get("from"))
    role, content = given, message.get("content")
    content = message.get("value") if content is None else content
    if content != message.get("value", content):
        raise DataError(f"{label}: content and value are both there, and differ; remove one")
    role = ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    # Tables fill keys that only some messages have with null, and calls with an empty list;
    # templates take such a key for a present one.
    dialect = ("role", "from", "content", "value", *LEARNING)
    others = {k: v for k, v in message.items() if k not in dialect and v not in (None, [])}
    if role in CALLS:
        role, others["tool_calls"], content = "assistant", content, None
    if "function_call" in others:  # OpenAI's form before tool_calls
        if "tool_calls" in others:
            raise DataError(f"{label}: function_call and tool_calls are both there; remove one")
        others["tool_calls"] = [others.pop("function_call")]
    if role not in ROLES:
        raise DataError(f"{label}: unknown role {given!r}; the roles are {', '.join(ROLES)}")
    if "tool_calls" in others:
        others["tool_calls"] = _calls(others["tool_calls"], f"{label}: tool_calls")
    if isinstance(content, list):
        content = _joined(content, f"{label}: content")
    if "tool_calls" not in others and not {"content", "value"} & set(message):
        raise DataError(f"{label}: content is missing; the message has {', '.join(message)}")
    weight = _weight(message, label)
    if role == "assistant" and "tool_calls" not in others and learned and weight > 0:
        answer_of(content, f"{label}: content")
    elif content is not None or role != "assistant":
        text_of(content, f"{label}: content")
    return {"role": role, "content": content, **others}, weight


def _calls(value: Any, label: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects, which OpenAI writes as JSON text."""
    value = parsed(value, label) if isinstance(value, str) else value
    calls = []
    for number, call in enumerate(value if isinstance(value, list) else [value]):
        call = {"type": "function", "function": call} if _is_bare(call) else call
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{label}[{number}]: must be {{type: function, function: {{name, arguments}}}}, "
                f"not {shown(call)}"
            )
        arguments = function.get("arguments")
        arguments = {} if arguments in (None, "") else arguments
        if isinstance(arguments, str):
            arguments = parsed(arguments, f"{label}[{number}].function.arguments")
        if not isinstance(arguments, dict):
            raise DataError(
                f"{label}[{number}].function.arguments must be an object, not {shown(arguments)}"
            )
        check_values(arguments, f"{label}[{number}].function.arguments")
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return calls


def _is_bare(call: Any) -> bool:
    return isinstance(call, dict) and "name" in call and "function" not in call


def _joined(parts: list[Any], label: str) -> str:
    """OpenAI's list of parts, all of them text, as one text."""
    texts = []
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            raise DataError(
                f"{label}[{number}] is not text, {shown(part)}; only text is trained: remove the "
                "record or this part"
            )
        texts.append(text_of(part.get("text"), f"{label}[{number}].text"))
    return "".join(texts)


def _weight(message: Message, label: str) -> float:
    """Of the message in the loss, from `weight` and from `train`, `training` and `loss`, which are
    true or false; 1 where it has none of them."""
    for name in LEARNING[1:]:
        if message.get(name) not in (None, True, False):  # 0 and 1 among them
            raise DataError(f"{label}: {name} is {shown(message[name])}; write true or false")
    weight = message.get("weight")
    weight = 1.0 if weight is None else weight
    if not isinstance(weight, int | float) or not (weight == 0 or LIGHTEST <= weight <= HEAVIEST):
        raise DataError(
            f"{label}: weight is {shown(weight)}; write a number from {LIGHTEST:g} to "
            f"{HEAVIEST:,.0f}, or 0: not learned"
        )
    excluded = any(message.get(name, True) in (False, 0) for name in LEARNING[1:])
    return 0.0 if excluded else float(weight)
