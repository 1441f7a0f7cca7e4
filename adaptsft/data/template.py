"""A conversation -> text segments -> token ids and a loss mask.

The text is what the tokenizer's chat template (or the plain template) renders. Which part of it is
learned is found by rendering prefixes of the conversation, since stock templates do not mark the
assistant's turns: the prompt of turn i is the rendering of messages[:i] with the generation prompt,
and the turn is what the rendering of messages[:i+1] adds to it. Prompt and turn are tokenised
apart, so that the ids of a prompt in training are those that generation starts from.

Errors are DataErrors without a place; the caller, which knows file and line, adds it.
"""

import hashlib
import json
from functools import cached_property
from typing import cast

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from adaptsft.config.schema import DataConfig
from adaptsft.data.layout import Message
from adaptsft.errors import ConfigError, DataError

# the plain template puts a system message before the user's, as the evaluators do
PLAIN_PROMPTS = (["user"], ["system", "user"])

Segment = tuple[str, bool]  # text, whether its tokens are targets


class Template:
    """Renders conversations to token ids, for training and for generation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        """Raises ConfigError where the tokenizer cannot serve the configured template."""
        self.tokenizer = tokenizer
        self.loss_on = config.loss_on
        self.prompt_template = config.prompt_template
        self.kind = config.template
        if self.kind == "auto":
            self.kind = "chat" if tokenizer.chat_template else "plain"
        if self.kind == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                "data.template=chat: the tokenizer has no chat template; use data.template=plain "
                "or a tokenizer that has one"
            )
        if self.kind == "plain" and tokenizer.eos_token_id is None:
            raise ConfigError(
                "data.template=plain: the tokenizer has no end-of-text token (eos_token), so that "
                "generation would not stop"
            )
        # A tokenizer that puts a begin-of-text token first does so in generation too. Chat
        # templates write it themselves.
        bos = tokenizer.bos_token_id
        starts_with_bos = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
        self.begin = [bos] if self.kind == "plain" and starts_with_bos else []
        self.end = [tokenizer.eos_token_id] if self.kind == "plain" else []
        self.turn_ends = tuple(token.content for token in tokenizer.added_tokens_decoder.values())

    @cached_property
    def fingerprint(self) -> str:
        """Of everything here that token ids and masks depend on."""
        tokenizer = self.tokenizer
        if hasattr(tokenizer, "backend_tokenizer"):
            state = json.loads(tokenizer.backend_tokenizer.to_str())
            # left behind by earlier calls, and not used here
            state |= {"padding": None, "truncation": None}
        else:
            state = tokenizer.get_vocab() | {"class": type(tokenizer).__name__}
        template = tokenizer.get_chat_template() if self.kind == "chat" else self.prompt_template
        parts = [self.kind, template, self.loss_on, self.begin, self.end]
        parts += [tokenizer.special_tokens_map, state]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The token ids from which generation answers the conversation: the very ids of the prompt
        in training."""
        if self.kind == "plain":
            text = self._plain_prompt(messages)
        else:
            text = self._render(messages, generation=True)
        return self.begin + self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def segments(self, messages: list[Message], first: int = 0) -> list[Segment]:
        """The text of a conversation, cut where learning begins and ends.

        Only assistant turns from `first` on are learned; what follows the last of them is left out,
        since nothing learns from it (with loss_on=all everything stays). Raises DataError.
        """
        if self.kind == "plain":
            return self._plain_segments(messages)
        if self.loss_on == "all":
            return [(self._render(messages), True)]
        roles = [message["role"] for message in messages]
        turns = [i for i, role in enumerate(roles) if role == "assistant" and i >= first]
        messages = messages[: turns[-1] + 1]
        full, done, segments = self._render(messages), 0, []
        for i in turns[-1:] if self.loss_on == "last_turn" else turns:
            if i == 0:
                raise DataError(
                    "the conversation starts with the assistant: there is no prompt; put a user or "
                    "system message first"
                )
            prompt = self._render(messages[:i], generation=True)
            upto = full if i == turns[-1] else self._render(messages[: i + 1])
            turn = self._trim(upto[len(prompt) :])
            if not upto.startswith(prompt):
                raise DataError(
                    f"the chat template's generation prompt is not how it begins message {i}, so "
                    "that no loss mask fits it; use a tokenizer whose template is consistent, or "
                    "data.template=plain"
                )
            if not full.startswith(prompt + turn) or len(prompt) < done:
                raise DataError(
                    f"the chat template renders the turns up to message {i} otherwise when more "
                    "messages follow, so that no loss mask fits them; use data.loss_on=last_turn"
                )
            segments += [(full[done : len(prompt)], False), (turn, True)]
            done = len(prompt) + len(turn)
        return segments

    def encode(self, conversations: list[list[Segment]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32 [L], mask bool [L]) of each.

        The mask marks the target tokens; the first token has no prediction, and never is one. One
        call of the tokenizer, which uses all cores.
        """
        texts = [text for segments in conversations for text, _ in segments]
        encoding = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        pieces = iter(encoding["input_ids"])
        examples = []
        for segments in conversations:
            ids, mask = list(self.begin), [self.loss_on == "all"] * len(self.begin)
            for _, is_target in segments:
                piece = next(pieces)
                ids += piece
                mask += [is_target] * len(piece)
            ids += self.end
            mask += [True] * len(self.end)
            mask[:1] = [False] * len(mask[:1])
            examples.append((np.array(ids, dtype=np.int32), np.array(mask, dtype=bool)))
        return examples

    def _plain_segments(self, messages: list[Message]) -> list[Segment]:
        *before, last = messages
        roles = [message["role"] for message in before]
        if last["role"] != "assistant" or roles not in PLAIN_PROMPTS:
            raise DataError(
                "the plain template takes one user message, which a system message may precede, "
                f"and one assistant message, not {', '.join([*roles, last['role']])}; use a "
                "tokenizer with a chat template"
            )
        return [(self._plain_prompt(before), self.loss_on == "all"), (last["content"], True)]

    def _plain_prompt(self, messages: list[Message]) -> str:
        if [message["role"] for message in messages] not in PLAIN_PROMPTS:
            raise DataError(
                "the plain template takes a single user message, which a system message may "
                "precede; use a tokenizer with a chat template"
            )
        text = "\n\n".join(message["content"] for message in messages)
        # not str.format: prompts about code and mathematics are full of braces
        return self.prompt_template.replace("{prompt}", text)

    def _render(self, messages: list[Message], generation: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the tokenizer's chat template refuses the conversation: {error}"
            ) from None
        return cast(str, text)

    def _trim(self, turn: str) -> str:
        """The turn without the white space that some templates put after its last token: generation
        has stopped by then."""
        trimmed = turn.rstrip()
        return trimmed if trimmed.endswith(self.turn_ends) else turn
