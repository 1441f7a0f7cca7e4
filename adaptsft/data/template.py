"""A conversation -> the text of one or more examples, cut where learning begins and ends.

The text is what the tokenizer's chat template (or the plain template) renders. Which part of it is
learned is found by rendering prefixes of the conversation, since stock templates do not mark the
assistant's turns: the prompt of turn i is the rendering of messages[:i] with the generation prompt,
and the turn is what the rendering of messages[:i+1] adds to it. What a template drops or invents,
`guard` finds.

Errors are DataErrors without a place; the caller, which knows file and line, adds it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from adaptsft.config.schema import DataConfig
from adaptsft.data.chat_template import ChatTemplate
from adaptsft.data.encoding import CUT, Encoder, Example, Segment, cut_specials
from adaptsft.data.guard import WORD, foreign_words, lost_texts
from adaptsft.data.layout import Conversation
from adaptsft.data.messages import Message, shown
from adaptsft.errors import ConfigError, DataError

# the plain template puts a system message before the user's, as the evaluators do
PLAIN_PROMPTS = (["user"], ["system", "user"])


class Template:
    """Renders conversations, for training and for generation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        """Raises ConfigError where the tokenizer cannot serve the configured template."""
        self.tokenizer, self.config = tokenizer, config
        self.chat, self.encoder = ChatTemplate(tokenizer, config), Encoder(tokenizer)
        self.loss_on, self.prompt_template = config.loss_on, config.prompt_template
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
        self.bos = [bos] if starts_with_bos else []
        self.eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.begin, self.end = (self.bos, self.eos) if self.kind == "plain" else ([], [])
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
        config, is_chat = self.config, self.kind == "chat"
        parts = [self.kind, self.chat.source if is_chat else self.prompt_template, self.loss_on]
        parts += [self.begin, self.end, tokenizer.special_tokens_map, state, config.lost_text]
        own_split = getattr(tokenizer, "split_special_tokens", False)
        parts += [config.split_special_tokens, own_split]
        if is_chat:
            parts += [config.template_kwargs, config.date if self.chat.prints_date else ""]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def prompt_text(self, messages: list[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The text that generation continues with an answer to the conversation."""
        return self._prompt_text(messages, tools).replace(CUT, "")

    def _prompt_text(self, messages: list[Message], tools: Sequence[dict[str, Any]]) -> str:
        if self.kind == "plain":
            return self._plain_prompt(messages)
        conversation = Conversation(messages, [], list(tools))
        return self.chat.render(conversation, generation=True)

    def prompt_ids(
        self, messages: list[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        """The token ids from which generation answers the conversation: the very ids of the prompt
        in training."""
        prompt = Segment(self._prompt_text(messages, tools), 0.0)
        encoded = self.encoder.encode([Example([prompt], self.begin, [])])
        return encoded[0].ids.tolist()

    def examples(self, conversation: Conversation) -> list[Example]:
        """The examples that a conversation makes: one, or with loss_on=each_turn one for each
        learned turn.

        What follows the last learned turn is left out, since nothing learns from it (with
        loss_on=all everything stays). Raises DataError.
        """
        if conversation.text is not None:
            if self.loss_on != "all":
                raise DataError(
                    "the record is a text without turns, so that no part of it is an answer; to "
                    "learn every token (continued pretraining), set data.loss_on=all"
                )
            return [Example([Segment(self._cut(conversation.text), 1.0)], self.bos, self.eos)]
        roles = [message["role"] for message in conversation.messages]
        answers = [i for i, role in enumerate(roles) if role == "assistant"]
        turns = [i for i in answers if i >= conversation.context and conversation.weights[i] > 0]
        if self.loss_on == "last_turn":
            turns = [i for i in turns if i == answers[-1]]
        if not turns:
            which = "the last assistant turn" if self.loss_on == "last_turn" else "every turn"
            raise DataError(
                f"nothing is learned: {which} has the weight 0, or train: false; remove the record"
            )
        if self.loss_on == "all":
            if any(conversation.weights[i] != 1 for i in answers):
                raise DataError(
                    "weights of turns have no meaning with data.loss_on=all, which learns every "
                    "token; use data.loss_on=assistant"
                )
            return [self._whole(conversation)]
        if self.kind == "plain":
            return [self._plain_example(conversation)]
        groups = [[i] for i in turns] if self.loss_on == "each_turn" else [turns]
        return [self._example(conversation, group) for group in groups]

    def _example(self, conversation: Conversation, turns: list[int]) -> Example:
        """The conversation up to the last of these turns, all of which are learned."""
        messages = conversation.messages[: turns[-1] + 1]
        full = self.chat.render(replace(conversation, messages=messages))
        done, segments, spans = 0, [], {}
        for i in turns:
            if i == 0:
                raise DataError(
                    "the conversation starts with the assistant: there is no prompt; put a user or "
                    "system message first"
                )
            prompt = self.chat.render(replace(conversation, messages=messages[:i]), generation=True)
            upto = full
            if i != turns[-1]:
                upto = self.chat.render(replace(conversation, messages=messages[: i + 1]))
            if not upto.startswith(prompt):
                same = len(_common_start(prompt, upto))
                hint = ""
                if "enable_thinking" in self.chat.source:
                    hint = ", or set data.template_kwargs='{enable_thinking: false}' (or true)"
                raise DataError(
                    f"the chat template's generation prompt is not how it begins message {i}: the "
                    f"prompt goes on with {prompt[same:][:30]!r}, the message with "
                    f"{upto[same:][:30]!r}, so that no loss mask fits it; give a template that is "
                    f"consistent by model.chat_template{hint}, or use data.template=plain"
                )
            turn = self._trim(upto[len(prompt) :])
            if not full.startswith(prompt + turn):  # what Phi-3's puts after the last turn alone
                turn = self._common_turn(full[len(prompt) :], upto[len(prompt) :])
            if not turn or len(prompt) < done:
                raise DataError(
                    f"the chat template renders the turns up to message {i} otherwise when more "
                    "messages follow, so that no loss mask fits them; use data.loss_on=each_turn, "
                    "which makes an example of each turn, or data.loss_on=last_turn"
                )
            begin = len(prompt.replace(CUT, ""))
            spans[i] = (begin, begin + len(turn.replace(CUT, "")))
            segments += [Segment(full[done : len(prompt)], 0.0)]
            segments += [Segment(turn, conversation.weights[i])]
            done = len(prompt) + len(turn)
        lost = self._compare(replace(conversation, messages=messages), full, spans)
        return Example(segments, self.begin, self.end, lost)

    def _compare(
        self,
        conversation: Conversation,
        full: str,
        spans: dict[int, tuple[int, int]],
        all_thoughts: bool = False,
    ) -> tuple[str, ...]:
        """The fields whose text the rendering does not show. Raises DataError for one, and for
        words that are learned and are not the conversation's, unless data.lost_text=allow."""
        full = full.replace(CUT, "")
        lost = lost_texts(conversation, full, spans, all_thoughts)
        allowed = self.config.lost_text == "allow"
        if lost and not allowed:
            template = "the chat template renders"
            if self.kind == "plain":
                template = "the plain template shows, the content of a question and an answer alone"
            raise DataError(
                f"{lost[0].where} ({shown(lost[0].text)}) is not in what {template}, so that the "
                "model would not see it; give a template that shows it by model.chat_template, "
                "write it where this one does, or set data.lost_text=allow to train without it"
            )
        for number, (begin, end) in spans.items():
            words = foreign_words(conversation.messages[number], full[begin:end], self._words)
            if words and not allowed:
                raise DataError(
                    f"message {number}: the chat template adds {shown(' '.join(words))} to what is "
                    "learned, which neither the message nor the template's own text holds; repair "
                    "the record, or set data.lost_text=allow to learn it"
                )
        return tuple(dict.fromkeys(text.field for text in lost))

    @cached_property
    def _words(self) -> frozenset[str]:
        """Those of the template's own text, with its special tokens."""
        return frozenset(WORD.findall(" ".join([self.chat.source, *self.turn_ends])))

    def _whole(self, conversation: Conversation) -> Example:
        """Every token is learned."""
        if self.kind == "plain":
            example = self._plain_example(conversation)
            return example._replace(segments=[Segment(text, 1.0) for text, _ in example.segments])
        full = self.chat.render(conversation)
        lost = self._compare(conversation, full, {}, all_thoughts=True)
        return Example([Segment(full, 1.0)], [], [], lost)

    def _plain_example(self, conversation: Conversation) -> Example:
        *before, last = conversation.messages
        roles = _plain_roles(before)
        if last["role"] != "assistant" or roles not in PLAIN_PROMPTS:
            raise DataError(
                "the plain template takes one user message, which a system message may precede, "
                f"and one assistant message, not {', '.join([*roles, last['role']])}; use a "
                "tokenizer with a chat template"
            )
        segments = [
            Segment(self._plain_prompt(before), 0.0),
            Segment(self._cut(last["content"] or ""), conversation.weights[-1]),
        ]
        whole = "".join(text for text, _ in segments)
        begin, end = (len(text.replace(CUT, "")) for text in (segments[0].text, whole))
        lost = self._compare(conversation, whole, {len(before): (begin, end)})
        return Example(segments, self.begin, self.end, lost)

    def _plain_prompt(self, messages: list[Message]) -> str:
        if _plain_roles(messages) not in PLAIN_PROMPTS:
            raise DataError(
                "the plain template takes a single user message, which a system message may "
                "precede; use a tokenizer with a chat template"
            )
        text = self._cut("\n\n".join(message["content"] for message in messages))
        # not str.format: prompts about code and mathematics are full of braces
        return self.prompt_template.replace("{prompt}", text)

    def _cut(self, text: str) -> str:
        return cut_specials(text, self.chat.specials)

    def _common_turn(self, full: str, upto: str) -> str:
        """The turn where the conversation goes on (`full`) and where it ends (`upto`) differ by one
        special token after it; "" where they differ otherwise."""
        common = _common_start(full, upto)
        end = max((common.rfind(t) + len(t) for t in self.turn_ends if t in common), default=0)
        return common[:end] if upto[end:].strip() in self.turn_ends else ""

    def _trim(self, turn: str) -> str:
        """The turn without the white space that some templates put after its last token: generation
        has stopped by then."""
        trimmed = turn.rstrip()
        return trimmed if trimmed.endswith(self.turn_ends) else turn


def _plain_roles(messages: list[Message]) -> list[str]:
    roles = (message["role"] for message in messages)
    return ["system" if role == "developer" else role for role in roles]


def _common_start(one: str, other: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[: min(len(one), len(other)) if same is None else same]
