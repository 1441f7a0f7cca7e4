"""Messages as text, and that text as token ids, by the template of a tokenizer or a run."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from adaptsft.config.schema import DataConfig
from adaptsft.data.stop import text_end, turn_end
from adaptsft.data.template import Template
from adaptsft.errors import ConfigError, DataError
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
            own = data if name == "auto" else replace(data, template=name)
            self.template = Template(tokenizer, own)
            self.name, self.end = self.template.kind, turn_end(self.template)
        self.begin = [] if name in FORMATS else self.template.begin

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
            return self.template.prompt_text(list(messages))
        except DataError as error:
            raise ConfigError(f"{error}; try --template plain") from None

    def ids(self, text: str) -> list[int]:
        return self.begin + self.tokenizer(text, add_special_tokens=False)["input_ids"]
