"""What ends an assistant's turn, by the chat templates of several families."""

import pytest

from adaptsft.config.schema import DataConfig
from adaptsft.data.stop import TurnEnd, text_end, turn_end
from adaptsft.data.template import Template
from adaptsft.model.tiny import CHATML
from tests.data.records import GEMMA, LLAMA3, THINKING, tokenizer


def turns(user: str, assistant: str, system: str = "") -> str:
    """A chat template, from what it makes of each role's content."""
    cases = [("user", user), ("assistant", assistant), ("system", system or user)]
    branches = "".join(
        f"{{% {'elif' if i else 'if'} message.role == '{role}' %}}{text}"
        for i, (role, text) in enumerate(cases)
    )
    return f"{{% for message in messages %}}{branches}{{% endif %}}{{% endfor %}}"


CONTENT = "{{ message.content }}"
MISTRAL = turns(f"[INST] {CONTENT} [/INST]", f" {CONTENT}{{{{ eos_token }}}}")
# the end-of-text token only where the conversation ends there
PHI = (
    turns(f"<|user|>\n{CONTENT}<|end|>\n", f"<|assistant|>\n{CONTENT}<|end|>\n")
    + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
GPT_OSS = turns(
    f"<|start|>user<|message|>{CONTENT}<|end|>",
    "{% if message.thinking %}<|channel|>analysis<|message|>{{ message.thinking }}<|end|>"
    f"{{% endif %}}<|channel|>final<|message|>{CONTENT}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}",
)
# the same without thoughts: nothing but a turn ends with <|end|>
TWO_ENDS = turns(
    f"<|user|>{CONTENT}",
    f"<|assistant|>{CONTENT}{{{{ '<|return|>' if loop.last else '<|end|>' }}}}",
)
CALLS = turns(
    f"<|user|>{CONTENT}<|end|>",
    "{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>"
    "{{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|call|>"
    f"{{% else %}}{CONTENT}<|end|>{{% endif %}}",
)
NEWLINE_FIRST = CHATML.replace("<|im_end|>", "\n <|im_end|>")
WANTS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
IN_PARTS = CHATML.replace("{{ message['content'] }}", "{{ message['content'][0]['text'] }}")
EOS_AT_THE_END = turns(f"User: {CONTENT}\n", f"Bot: {CONTENT}\n") + "{{ eos_token }}"
COMMAND = turns(f"<USER>{CONTENT}<END_TURN>", f"<BOT><START>{CONTENT}<END><END_TURN>")

SPECIAL = {
    LLAMA3: ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    GEMMA: ("<start_of_turn>", "<end_of_turn>"),
    MISTRAL: ("[INST]", "[/INST]", "</s>"),
    PHI: ("<|user|>", "<|assistant|>", "<|end|>"),
    GPT_OSS: ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
    TWO_ENDS: ("<|user|>", "<|assistant|>", "<|end|>", "<|return|>"),
    CALLS: ("<|user|>", "<|end|>", "<|call|>", "</tool_call>"),
    COMMAND: ("<USER>", "<BOT>", "<START>", "<END>", "<END_TURN>"),
}


def made(template: str | None, eos: str = "<|endoftext|>", **added):
    tok = tokenizer(template, SPECIAL.get(template, ()))
    tok.add_special_tokens({"eos_token": eos} | added)
    return tok


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
