"""Real chat templates of several families (TRL's wheel has them as their authors published them),
and tokenizers for them: byte-level, and in SentencePiece's manner."""

import importlib.util
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adaptsft.model.tiny import bpe_tokenizer

# <|im_end|>, <end_of_turn>, [/INST], <｜end▁of▁sentence｜>, <turn|>, </s>
SPECIAL = re.compile(
    r"<[|｜][^<>\s'\"]+?[|｜]?>|<\w+[|]>|<(?:start|end)_of_turn>|\[/?[A-Z_]{4,}\]|</?s>"
)


def template_of(name: str) -> str:
    """The chat template of a family, such as qwen3. Skips the test where TRL is not installed."""
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        pytest.skip("the chat templates are those of TRL's wheel: pip install trl")
    folder = Path(trl.origin).parent / "chat_templates"
    return (folder / f"{name}.jinja").read_text()


def byte_level(template: str) -> PreTrainedTokenizerFast:
    return _with_specials(bpe_tokenizer([], 259, template), template)


def sentencepiece(template: str, everywhere: bool) -> PreTrainedTokenizerFast:
    """Pieces with ▁ for a space and bytes for what is no piece. A space stands before each text
    between special tokens (`everywhere`, Llama 2's), or before the first only (Mistral's)."""
    words = ("▁the", "▁is", "▁It", "▁4", "▁f", "▁def", "▁return", "▁tide", "▁user", "▁▁▁▁")
    characters = [chr(code) for code in range(33, 127)] + ["▁"]
    joined = {word[:end] for word in words for end in range(2, len(word) + 1)}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    pieces += sorted(joined - set(characters))
    merges = [(word[: end - 1], word[end - 1]) for word in words for end in range(2, len(word) + 1)]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        list(dict.fromkeys(merges)),
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    if everywhere:
        spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(spaces)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = template
    return _with_specials(made, template)


def _with_specials(made: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    known = made.get_vocab()
    made.add_tokens([t for t in sorted(set(SPECIAL.findall(template))) if t not in known], True)
    if made.bos_token is None:
        made.add_special_tokens({"bos_token": "<|bos|>"})
    return made
