"""What ends an assistant's turn, by the chat templates of several families."""

import pytest

from adaptsft.config.schema import DataConfig
from adaptsft.data.stop import TurnEnd, text_end, turn_end
from adaptsft.data.template import Template
from adaptsft.model.tiny import CHATML
from tests.data.records import GEMMA, LLAMA3, THINKING, tokenizer
from tests.data.templates import (
    CALLS,
    COMMAND,
    CONTENT,
    EOS_AT_THE_END,
    GPT_OSS,
    IN_PARTS,
    MISTRAL,
    NEWLINE_FIRST,
    PHI,
    TWO_ENDS,
    WANTS_SYSTEM,
    made,
    turns,
)


def end_of(tok) -> TurnEnd:
    return turn_end(Template(tok, DataConfig()))


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHATML, ["<|im_end|>"]),
        (NEWLINE_FIRST, ["<|im_end|>"]),
        (WANTS_SYSTEM, ["<|im_end|>"]),
        (IN_PARTS, ["<|im_end|>"]),
        (THINKING, ["<|im_end|>"]),
        (LLAMA3, ["<|eot_id|>"]),
        (GEMMA, ["<end_of_turn>"]),
        (PHI, ["<|end|>", "<|endoftext|>"]),
        (GPT_OSS, ["<|return|>"]),
        (TWO_ENDS, ["<|return|>", "<|end|>"]),
        (CALLS, ["<|end|>", "<|call|>"]),
        (EOS_AT_THE_END, ["<|endoftext|>"]),
        (COMMAND, ["<END>", "<END_TURN>"]),
    ],
    ids=lambda value: None if isinstance(value, str) else value[0],
)
def test_the_tokens_that_end_a_turn(template, ends):
    tok = made(template, bos_token="<bos>")
    found = end_of(tok)
    assert tok.convert_ids_to_tokens(list(found.ids)) == ends
    assert (found.strings, found.warning) == ((), "")


def test_a_template_that_ends_turns_with_eos_token():
    tok = made(MISTRAL, eos="</s>")
    assert end_of(tok).ids == (tok.eos_token_id,)


def test_a_plain_answer_ends_with_eos_token():
    tok = made(CHATML)
    assert turn_end(Template(tok, DataConfig(template="plain"))) == TurnEnd((tok.eos_token_id,))


def test_a_turn_without_an_end_is_said():
    tok = made(turns(f"### Human: {CONTENT}\n", f"### Bot: {CONTENT}\n"))
    found = end_of(tok)
    assert (found.ids, found.strings) == ((), ("\n### Human:",)), "the next turn begins there"
    assert "does not learn to stop" in found.warning and "eos_token" in found.warning
    header = turns(f"<|user|>{CONTENT}", f"<|assistant|>{CONTENT}")
    tok = tokenizer(header, ("<|user|>", "<|assistant|>"))
    found = end_of(tok)
    assert tok.convert_ids_to_tokens(list(found.ids)) == ["<|user|>"], "as GLM's"
    assert found.strings == () and "does not learn to stop" in found.warning


def test_an_end_of_several_tokens_is_said_and_is_a_token_once_it_is_added():
    tok = made(turns(f"<u>{CONTENT}", f"<a>{CONTENT}</a>\n"))
    found = end_of(tok)
    assert (found.ids, found.strings) == ((), ("</a>",))
    assert "'</a>'" in found.warning and "model.add_tokens" in found.warning
    tok.add_tokens(["</a>"])
    assert end_of(tok) == TurnEnd((len(tok) - 1,))


def test_a_template_that_refuses_the_probe():
    found = end_of(made("{{ raise_exception('never') }}"))
    assert (found.ids, found.strings) == ((), ()) and "is not known" in found.warning


def test_an_end_that_is_known_as_text():
    tok = tokenizer()
    assert text_end(tok, "<|im_end|>") == TurnEnd((tok.eos_token_id,))
    assert text_end(tok, "<|eot_id|>") == TurnEnd((), ("<|eot_id|>",))


def test_the_ends_that_a_model_has_already_come_last():
    assert TurnEnd((7, 5)).stop_ids([5, 3], None, 3, 9) == [7, 5, 3, 9]
    assert TurnEnd().stop_ids(None) == []
