"""From a task's messages to the text that a model continues."""

from typing import Any

from adaptsft.config.schema import DataConfig
from adaptsft.data.template import Template
from adaptsft.errors import ConfigError
from adaptsft.evals.tasks import Prompt

Message = dict[str, str]
# Qwen's: says nothing, and is left out where a format has no place for it
DEFAULT_SYSTEM = "You are a helpful assistant."


def fill(template: str, fields: dict[str, Any]) -> str:
    """`{name}` replaced by the field of that name.

    Not str.format: prompts about code and mathematics are full of braces.
    """
    parts, rest = [], template
    while True:
        start = rest.find("{")
        if start < 0:
            return "".join([*parts, rest])
        end = rest.find("}", start)
        name = rest[start + 1 : end] if end > start else ""
        parts.append(
            rest[:start]
            + (
                str(fields[name])
                if name in fields
                else rest[start : end + 1 if end > start else start + 1]
            )
        )
        rest = rest[(end if end > start else start) + 1 :]


def messages_of(prompt: Prompt, fields: dict[str, Any]) -> list[Message]:
    """What an item is asked with: a system turn where the task has one, and the user's."""
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": fill(prompt.user, fields)}]


def _chatml(messages: list[Message]) -> str:
    return (
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        + "<|im_start|>assistant\n"
    )


def _llama3(messages: list[Message]) -> str:
    turns = "".join(
        f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}<|eot_id|>"
        for m in messages
    )
    return f"<|begin_of_text|>{turns}<|start_header_id|>assistant<|end_header_id|>\n\n"


def _deepseek(messages: list[Message]) -> str:
    system = "".join(
        f"{m['content']}\n\n"
        for m in messages
        if m["role"] == "system" and m["content"] != DEFAULT_SYSTEM
    )
    return (
        system
        + "".join(f"User: {m['content']}\n\n" for m in messages if m["role"] == "user")
        + "Assistant:"
    )


# For base models, whose tokenizer has no chat template, or another one than they were trained with.
# On the mathematics tasks `chatml` is "qwen-boxed" and `deepseek` is "deepseek-math"
# (QwenLM/Qwen2.5-Math, evaluation/utils.py); on figfont `chatml` and `llama3` are the paper's
# prompts (GaotangLi/Beyond-Log-Likelihood@89d63d68, evaluations/figfont/main.py), the latter
# without a second begin-of-text.
FORMATS = {"chatml": _chatml, "llama3": _llama3, "deepseek": _deepseek}
TEMPLATES = ("auto", "chat", "plain", *FORMATS)


class Renderer:
    """Messages -> text, and text -> the ids that generation starts from.

    `name`: auto is what a run was trained with (`data`), else the tokenizer's chat template, else
    the bare prompt; chat and plain ask for these; the others are keys of FORMATS.
    """

    def __init__(self, tokenizer: Any, data: DataConfig, name: str = "auto") -> None:
        """Raises ConfigError where the tokenizer cannot serve the template."""
        if name not in TEMPLATES:
            raise ConfigError(f"--template {name}: choose one of {', '.join(TEMPLATES)}")
        self.tokenizer, self.name, self.prompt_template = tokenizer, name, data.prompt_template
        if name not in FORMATS:
            template = Template(
                tokenizer,
                data
                if name == "auto"
                else DataConfig(template=name, prompt_template=data.prompt_template),
            )
            self.name = template.kind
        self.begin = (
            Template(tokenizer, DataConfig(template="plain")).begin if self.name == "plain" else []
        )

    def text(self, messages: list[Message]) -> str:
        if self.name in FORMATS:
            return FORMATS[self.name](messages)
        if self.name == "plain":
            shown = [
                message["content"] for message in messages if message["content"] != DEFAULT_SYSTEM
            ]
            return self.prompt_template.replace("{prompt}", "\n\n".join(shown))
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # jinja's, or what a template raises itself
            raise ConfigError(
                f"the tokenizer's chat template refuses the task's messages: {error}; try "
                "--template plain"
            ) from None

    def ids(self, text: str) -> list[int]:
        return self.begin + self.tokenizer(text, add_special_tokens=False)["input_ids"]
