"""From a task's item to messages, and from messages to the text that a base model continues."""

import re
from typing import Any

from adaptsft.errors import did_you_mean
from adaptsft.evals.protocol import Message
from adaptsft.evals.tasks import Prompt

# Qwen's. It holds no instruction, and is left out where a format has no place for it.
DEFAULT_SYSTEM = "You are a helpful assistant."


def fill(template: str, fields: dict[str, Any]) -> str:
    """`{name}` replaced by the field of that name.

    Not str.format: prompts about code and mathematics are full of braces.
    """

    def value(found: re.Match[str]) -> str:
        return str(fields[found[1]]) if found[1] in fields else found[0]

    return re.sub(r"\{([^}]*)\}", value, template)


_COMMAND = re.compile(r"\\\w+(?:\{[^{}]*\})*")  # of LaTeX, with what it is given: \boxed{answer}
_PLACEHOLDER = re.compile(r"(?<![\\\w^$])\{([A-Za-z_]\w*)\}")


def problem_of(prompt: Prompt, fields: dict[str, Any]) -> str | None:
    """What is wrong with a prompt for an item with these fields, or None: it names a field that is
    not there, or none at all."""
    known = ", ".join(fields)
    for name in _PLACEHOLDER.findall(_COMMAND.sub("", prompt.user)):
        if name not in fields:
            hint = did_you_mean(name, fields)
            return (
                f"prompt.user has {{{name}}}, and the items have {known}{hint or ';'} spaces in "
                "the braces keep such a text as it is"
            )
    if not any(f"{{{name}}}" in prompt.user for name in fields):
        return f"prompt.user names no field of the items, which have {known}: write {{question}}"
    return None


def messages_of(prompt: Prompt, fields: dict[str, Any]) -> list[Message]:
    """The messages of an item: a system turn where the task has one, and the user's turn."""
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": fill(prompt.user, fields)}]


def _chatml(messages: list[Message]) -> str:
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def _llama3(messages: list[Message]) -> str:
    turns = [f"{_llama3_header(m['role'])}{m['content']}<|eot_id|>" for m in messages]
    return f"<|begin_of_text|>{''.join(turns)}{_llama3_header('assistant')}"


def _llama3_header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _deepseek(messages: list[Message]) -> str:
    system = [m["content"] for m in messages if m["role"] == "system"]
    parts = [f"{content}\n\n" for content in system if content != DEFAULT_SYSTEM]
    parts += [f"User: {m['content']}\n\n" for m in messages if m["role"] == "user"]
    return "".join(parts) + "Assistant:"


# For base models, whose tokenizer has no chat template, or another one than they were trained with.
# On the mathematics tasks `chatml` is "qwen-boxed" and `deepseek` is "deepseek-math"
# (QwenLM/Qwen2.5-Math, evaluation/utils.py); on figfont `chatml` and `llama3` are the paper's
# prompts (GaotangLi/Beyond-Log-Likelihood@89d63d68, evaluations/figfont/main.py), the latter
# without a second begin-of-text.
FORMATS = {"chatml": _chatml, "llama3": _llama3, "deepseek": _deepseek}
# What ends an answer in each; of deepseek's, which has no token for it, what begins the next turn.
TURN_ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "deepseek": "\n\nUser:"}
