"""Conversations to tokens and masks: the chat templates of several families, and the plain one."""

from pathlib import Path

import pytest

from adaptsft.data.template import Template
from adaptsft.data.tokenized import open_data
from adaptsft.errors import ConfigError, DataError
from adaptsft.model.tiny import CHATML
from tests.data.real_templates import sentencepiece
from tests.data.records import (
    GEMMA,
    LLAMA3,
    TALK,
    THINKING,
    learned,
    opened,
    quiet,
    tokenizer,
    write,
)


@pytest.mark.parametrize(
    ("template", "special", "bos", "turns"),
    [
        (CHATML, (), None, ["It is 4.\n<|im_end|>", "  Five, ünder 10.<|im_end|>"]),
        (
            LLAMA3,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|bos|>",
            ["It is 4.<|eot_id|>", "Five, ünder 10.<|eot_id|>"],
        ),
        (
            GEMMA,
            ("<start_of_turn>", "<end_of_turn>"),
            "<bos>",
            ["It is 4.<end_of_turn>", "Five, ünder 10.<end_of_turn>"],
        ),
    ],
    ids=["chatml", "llama3", "gemma"],
)
def test_each_assistant_turn_is_learned_up_to_its_end_token(
    settings, template, special, bos, turns
):
    tok = tokenizer(template, special, bos)
    write(Path(settings.path), {"messages": TALK})
    data, held_out = open_data(settings, tok, seed=0, log=quiet)
    ids, mask = data.example(0)
    assert held_out is None
    assert learned(data, tok) == "".join(turns)
    # the text is the template's own, up to the end of the last turn, and begins with at most one
    # begin-of-text token
    assert str(tok.apply_chat_template(TALK, tokenize=False)).rstrip() == tok.decode(ids)
    assert (ids == tok.bos_token_id).sum() == (bos is not None)
    # a prompt's ids are those of generation, for both turns
    for upto in (1, 3):
        prompt = Template(tok, settings).prompt_ids(TALK[:upto])
        assert (
            prompt
            == tok(
                tok.apply_chat_template(TALK[:upto], tokenize=False, add_generation_prompt=True),
                add_special_tokens=False,
            ).input_ids
        )
        assert ids[: len(prompt)].tolist() == prompt
        assert mask[len(prompt)]
        assert not mask[len(prompt) - 1]
    assert (data.lengths[0], data.target_tokens[0]) == (len(ids), mask.sum())


def test_loss_on_last_turn_and_all(settings):
    tok = tokenizer()
    write(Path(settings.path), {"messages": [*TALK, {"role": "user", "content": "Thanks."}]})
    last = opened(settings, tok, loss_on="last_turn")
    assert learned(last, tok) == "  Five, ünder 10.<|im_end|>"
    every = opened(settings, tok, loss_on="all")
    ids, mask = every.example(0)
    assert "Thanks." in tok.decode(ids)
    assert mask.tolist() == [False] + [True] * (len(ids) - 1)


def test_template_that_rewrites_earlier_turns(settings):
    tok = tokenizer(THINKING)
    write(Path(settings.path), {"messages": TALK[:2]}, {"messages": TALK})
    with pytest.raises(DataError, match=r"train\.jsonl:2: .*message 1 .*data\.loss_on=last_turn"):
        opened(settings, tok)
    data = opened(settings, tok, loss_on="last_turn")
    assert learned(data, tok, 1) == "<think>\n\n</think>\n\n  Five, ünder 10.<|im_end|>"


def test_template_whose_generation_prompt_disagrees(settings):
    tok = tokenizer(CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"))
    write(Path(settings.path), {"messages": TALK})
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*generation prompt"):
        opened(settings, tok)


def test_template_whose_generation_prompt_forgets_the_last_messages(settings):
    """Every prompt begins the conversation, but the second one would have the second question
    learned."""
    forgetful = (
        "{% for message in messages %}{% if not add_generation_prompt or loop.first %}"
        + CHATML.split("%}", 1)[1]
    )
    tok = tokenizer(forgetful.replace("{% endfor %}", "{% endif %}{% endfor %}"))
    write(Path(settings.path), {"messages": TALK})
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*message 3 .*data\.loss_on=last_turn"):
        opened(settings, tok)


@pytest.mark.parametrize("bos", [None, "<bos>"])
def test_plain_template(settings, bos):
    tok = tokenizer(None, bos=bos)
    write(Path(settings.path), {"prompt": "set {x}", "completion": "\\boxed{4}"})
    settings.prompt_template = "Q: \\text{a} {prompt}\nA: "
    data = opened(settings, tok)
    assert (
        tok.decode(data.example(0)[0])
        == f"{bos or ''}Q: \\text{{a}} set {{x}}\nA: \\boxed{{4}}<|im_end|>"
    )
    assert learned(data, tok) == "\\boxed{4}<|im_end|>"
    prompt = Template(tok, settings).prompt_ids([{"role": "user", "content": "set {x}"}])
    assert prompt == tok("Q: \\text{a} set {x}\nA: ").input_ids
    assert data.example(0)[0][: len(prompt)].tolist() == prompt


def test_first_token_is_never_learned(settings):
    tok = tokenizer(None)
    settings.prompt_template = "{prompt}"
    write(Path(settings.path), {"prompt": "", "completion": "abc"})
    data = opened(settings, tok)
    assert learned(data, tok) == "bc<|im_end|>"
    assert data.target_tokens[0] == 3


def test_turns_of_the_prompt_are_not_learned(settings):
    tok = tokenizer()
    write(Path(settings.path), {"prompt": TALK[:3], "completion": TALK[3:]})
    data = opened(settings, tok)
    assert learned(data, tok) == "  Five, ünder 10.<|im_end|>"


def test_what_templates_refuse(settings):
    write(Path(settings.path), {"messages": [{"role": "system", "content": "Be brief."}, *TALK]})
    gemma = tokenizer(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>")
    with pytest.raises(
        DataError,
        match=r"train\.jsonl:1: the tokenizer's chat template refuses .*System role not supported",
    ):
        opened(settings, gemma)
    roles = "not system, user, assistant, user"
    with pytest.raises(
        DataError, match=rf"train\.jsonl:1: the plain template takes one user message.*{roles}"
    ):
        opened(settings, tokenizer(None))
    with pytest.raises(ConfigError, match=r"data\.template=chat: the tokenizer has no chat templ"):
        opened(settings, tokenizer(None), template="chat")


def test_the_plain_template_puts_a_system_message_first(settings):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    write(Path(settings.path), {"messages": turns})
    plain = tokenizer(None)
    data = opened(settings, plain, prompt_template="{prompt} ")
    ids, mask = data.example(0)
    assert plain.decode(ids[~mask]).strip() == "Be brief.\n\n2 + 2?"
    assert plain.decode(ids[mask][:-1]) == "4"


@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_special_tokens_in_a_message(settings, template, kind):
    """Control tokens as they stand; ordinary text where that is asked for, also in a prompt."""
    tok = tokenizer(template)
    if kind == "sentencepiece":
        tok = sentencepiece(template or "", everywhere=False)
        tok.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tok.chat_template = template
    question = {"role": "user", "content": "What is <|im_end|>?"}
    answer = {"role": "assistant", "content": "A <|im_end|> ends."}
    write(Path(settings.path), {"messages": [question, answer]})
    end = tok.convert_tokens_to_ids("<|im_end|>")
    counts = []
    for split in (False, True):
        settings.split_special_tokens = split
        data = opened(settings, tok)
        ids = data.example(0)[0].tolist()
        assert "A <|im_end|> ends." in learned(data, tok)
        prompt = Template(tok, settings).prompt_ids([question])
        assert ids[: len(prompt)] == prompt
        counts.append(ids.count(end))
    assert counts[0] - counts[1] == 2


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_developer_is_the_system_where_the_template_does_not_know_it(settings, template):
    tok = tokenizer(template)
    rules = {"role": "developer", "content": "Be brief."}
    write(Path(settings.path), {"messages": [rules, *TALK[:2]]})
    text = tok.decode(opened(settings, tok).example(0)[0])
    assert text.startswith("<|im_start|>system\nBe brief." if template else "Be brief.\n\nTwo")
