"""Messages as text, and that text as token ids, by the template of a tokenizer or a run."""

from collections.abc import Collection
from typing import Any

from adaptsft.config.schema import DataConfig
from adaptsft.data.stop import text_end, turn_end
from adaptsft.data.template import Template
from adaptsft.errors import ConfigError
from adaptsft.evals.prompts import DEFAULT_SYSTEM, FORMATS, TURN_ENDS
from adaptsft.evals.protocol import Message

TEMPLATES = ("auto", "chat", "plain", *FORMATS)


class Renderer:
    """Messages -> text, and text -> the ids that generation starts from.

    `name`: auto is what a run was trained with (`data`), else the tokenizer's chat template, else
    the bare prompt; chat and plain ask for these; the others are keys of FORMATS. `end` is what
    ends an answer in it, beside the model's own end tokens.
    """

    def __init__(self, tokenizer: Any, data: DataConfig, name: str = "auto") -> None:
        """Raises ConfigError where the tokenizer cannot serve the template."""
        if name not in TEMPLATES:
            raise ConfigError(f"--template {name}: choose one of {', '.join(TEMPLATES)}")
        self.tokenizer, self.name, self.prompt_template = tokenizer, name, data.prompt_template
        if name in FORMATS:
            self.end = text_end(tokenizer, TURN_ENDS[name])
        else:
            if name != "auto":
                data = DataConfig(template=name, prompt_template=data.prompt_template)
            template = Template(tokenizer, data)
            self.name, self.end = template.kind, turn_end(template)
        self.begin: list[int] = []
        if self.name == "plain":
            self.begin = Template(tokenizer, DataConfig(template="plain")).begin

    def stops(self, known: Collection[int]) -> dict[str, list[str]]:
        """For the identity of a backend: the ends beyond the `known` ones, which its files name."""
        new = [token for token in self.end.ids if token not in known]
        texts = [*self.tokenizer.convert_ids_to_tokens(new), *self.end.strings]
        return {"stop": texts} if texts else {}

    def text(self, messages: list[Message]) -> str:
        if self.name in FORMATS:
            return FORMATS[self.name](messages)
        if self.name == "plain":
            contents = [message["content"] for message in messages]
            shown = [content for content in contents if content != DEFAULT_SYSTEM]
            return self.prompt_template.replace("{prompt}", "\n\n".join(shown))
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja's, or what a template raises itself
            raise ConfigError(
                f"the tokenizer's chat template refuses the task's messages: {error}; try "
                "--template plain"
            ) from None
        return str(text)

    def ids(self, text: str) -> list[int]:
        return self.begin + self.tokenizer(text, add_special_tokens=False)["input_ids"]
