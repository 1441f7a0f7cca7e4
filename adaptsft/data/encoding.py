"""Examples as text segments -> token ids with the weight of each token in the loss."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

# put inside what spells a special token in a message: no text that people exchange holds it
CUT = "\ufdd0"


class Segment(NamedTuple):
    text: str
    weight: float  # of its tokens in the loss; 0: they are not learned


class Example(NamedTuple):
    segments: list[Segment]
    begin: list[int]  # ids before the first segment
    end: list[int]  # ids after the last one, of its weight
    lost: tuple[str, ...] = ()  # fields whose text the template does not show; data.lost_text=allow


class Encoded(NamedTuple):
    ids: np.ndarray  # int32 [L]
    weights: np.ndarray  # float32 [L], of each token in the loss; 0: it is not a target


class Encoder:
    """A prompt has the very ids in training that generation starts from.

    Most tokenizers are byte-level: a text has the same ids whatever stands before it, so segments
    are tokenised apart. Others (SentencePiece, as Llama 2's and Mistral's) put a space before each
    text: their examples are tokenised whole, once up to the end of each segment.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """One call of the tokenizer, which uses all cores. The first token has no prediction, and
        never is a target."""
        by_segment = self._in_pieces if self._pieces_are_exact else self._as_prefixes
        examples = [_cut(example) for example in examples]
        encoded = []
        for example, pieces in zip(examples, by_segment(examples), strict=True):
            segments, begin, end, _ = example
            ids, weights = list(begin), [segments[0].weight] * len(begin)
            for segment, piece in zip(segments, pieces, strict=True):
                ids += piece
                weights += [segment.weight] * len(piece)
            ids += end
            weights += [segments[-1].weight] * len(end)
            weights[:1] = [0.0] * len(weights[:1])
            encoded.append(Encoded(np.array(ids, np.int32), np.array(weights, np.float32)))
        return encoded

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoding = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return encoding["input_ids"]

    @cached_property
    def _pieces_are_exact(self) -> bool:
        try:
            first, second, both = self._ids(["\n", "a", "\na"])
        except Exception:  # it knows other characters only, and puts nothing of its own before them
            return True
        return first + second == both

    def _in_pieces(self, examples: Sequence[Example]) -> list[list[list[int]]]:
        segments = (segment for example in examples for segment in example.segments)
        pieces = iter(self._ids([segment.text for segment in segments]))
        return [[next(pieces) for _ in example.segments] for example in examples]

    def _as_prefixes(self, examples: Sequence[Example]) -> list[list[list[int]]]:
        """The ids that each segment adds to those of the text before it.

        Where its first character and the one before it make one token, that cannot be: the segment
        then is tokenised as it follows a line break, so that what comes before, the prompt, keeps
        its ids.
        """
        texts = []
        for example in examples:
            text = ""
            for segment in example.segments:
                text += segment.text
                texts += [text, "\n" + segment.text]
        prefixes, line_break = iter(self._ids(texts)), self._ids(["\n"])[0]
        found = []
        for example in examples:
            before: list[int] = []  # ids of the whole text so far
            pieces = []
            for _ in example.segments:
                whole, apart = next(prefixes), next(prefixes)
                fits = whole[: len(before)] == before
                pieces.append(whole[len(before) :] if fits else apart[len(line_break) :])
                before = whole
            found.append(pieces)
        return found


def cut_specials(value: Any, specials: re.Pattern[str]) -> Any:
    """The value with CUT inside every special token that a text in it spells, at any depth."""
    if isinstance(value, dict):
        return {key: cut_specials(item, specials) for key, item in value.items()}
    if isinstance(value, list):
        return [cut_specials(item, specials) for item in value]
    if not isinstance(value, str):
        return value
    return specials.sub(lambda found: found[0][0] + CUT + found[0][1:], value)


def _cut(example: Example) -> Example:
    """With segments that end at each CUT: tokenised apart, no special token is found across it."""
    if not any(CUT in segment.text for segment in example.segments):
        return example
    segments = [
        Segment(part, weight) for text, weight in example.segments for part in text.split(CUT)
    ]
    return example._replace(segments=segments)
