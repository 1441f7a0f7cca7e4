"""What a template drops or adds is an error, and what it only writes in another way is none."""

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

from adaptsft.data.template import Template
from adaptsft.data.tokenized import open_data
from adaptsft.errors import ConfigError, DataError
from adaptsft.model.tiny import CHATML
from tests.data.records import ASSISTANT, TALK, USER, learned, opened, quiet, tokenizer, write

ESCAPED = CHATML.replace("{{ message['content'] }}", "{{ message['content'] | tojson }}")
INDENTED = CHATML.replace("{{ message['content'] }}", "{{ message['content'] | trim | indent(4) }}")
MANY_LINES = {"role": "assistant", "content": '  x = "é"\n\n    return 1\n'}


@pytest.mark.parametrize("template", [CHATML, ESCAPED, INDENTED])
def test_text_that_is_written_in_another_way_is_there(settings, template):
    write(Path(settings.path), {"messages": [USER, MANY_LINES]})
    assert len(opened(settings, tokenizer(template))) == 1


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (  # of the system message nothing is left
            CHATML.replace("messages %}", "messages if message['role'] != 'system' %}"),
            [{"role": "system", "content": "Be brief."}, USER, ASSISTANT],
            r"message 0: content \('Be brief\.'\)",
        ),
        (  # the first question is
            CHATML.replace("messages %}", "messages[-2:] %}"),
            [*TALK[:2], USER, ASSISTANT],
            r"message 1 otherwise when more messages follow|message 0: content",
        ),
        (CHATML, [USER, {**ASSISTANT, "analysis": "deep"}], r"message 1: analysis \('deep'\)"),
        (
            CHATML.replace("{{ message['content'] }}", "{{ message['content'][:3] }}"),
            [USER, {"role": "assistant", "content": "So, no."}],
            r"message 0: content",
        ),
        (
            CHATML.replace(
                "{{ message['content'] }}", "{{ message['content'] ~ message.get('x') }}"
            ),
            [USER, ASSISTANT],
            r"message 1: the chat template adds 'None' to what is learned",
        ),
    ],
)
def test_what_is_lost_or_added_names_the_message(settings, template, messages, said):
    write(Path(settings.path), {"messages": messages})
    with pytest.raises(DataError, match=rf"train\.jsonl:1: .*{said}"):
        opened(settings, tokenizer(template))


def test_a_text_elsewhere_in_the_conversation_does_not_stand_for_one_that_is_lost(settings):
    """The arguments stand in the question too: the call is lost all the same."""
    call = {"type": "function", "function": {"name": "Why", "arguments": {"Why": "?"}}}
    turn = {"role": "assistant", "content": "So.", "tool_calls": [call]}
    write(Path(settings.path), {"messages": [USER, turn]})
    with pytest.raises(DataError, match=r"message 1: tool_calls\[0\]\.function\.name \('Why'\)"):
        opened(settings)


def test_thoughts_of_earlier_turns_may_go(settings):
    strips = CHATML.replace(
        "{{ message['content'] }}",
        "{{ message['content'] if loop.last else message['content'].split('</think>')[-1] }}",
    )
    first = {"role": "assistant", "content": "<think>a b</think>1"}
    write(Path(settings.path), {"messages": [USER, first, USER, ASSISTANT]})
    data = opened(settings, tokenizer(strips), loss_on="each_turn")
    tok = tokenizer(strips)
    assert learned(data, tok, 0) == "<think>a b</think>1<|im_end|>"
    assert "a b" not in tok.decode(data.example(1)[0])


def test_lost_text_may_be_allowed_and_is_counted(settings):
    lines: list[str] = []
    turn = {**ASSISTANT, "reasoning_content": "deep"}
    write(Path(settings.path), {"messages": [USER, turn]}, {"messages": [USER, ASSISTANT]})
    open_data(replace(settings, lost_text="allow"), tokenizer(), seed=0, log=lines.append)
    assert "train: the template does not show reasoning_content in 1 examples " in "\n".join(lines)


def test_the_plain_template_shows_the_content_alone(settings):
    write(Path(settings.path), {"messages": [USER, {**ASSISTANT, "reasoning_content": "deep"}]})
    with pytest.raises(DataError, match=r"message 1: reasoning_content .*plain template"):
        opened(settings, tokenizer(None))


DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}" + CHATML


def test_the_day_does_not_change_tokens(settings):
    write(Path(settings.path), {"messages": [USER, ASSISTANT]})
    tok = tokenizer(DATED)
    assert tok.decode(opened(settings, tok).example(0)[0]).startswith("Today is 26 Jul 2024. ")
    today = datetime.date.today()
    other = replace(settings, date=today.isoformat())
    text = tok.decode(opened(other, tok).example(0)[0])
    assert text.startswith(f"Today is {today:%d %b %Y}. ")
    fingerprints = {Template(tok, config).fingerprint for config in (settings, other)}
    assert len(fingerprints) == 2
    # a template that prints no day does not depend on it
    plain = {Template(tokenizer(), config).fingerprint for config in (settings, other)}
    assert len(plain) == 1


def test_a_day_that_cannot_be_fixed_is_refused(settings):
    write(Path(settings.path), {"messages": [USER, ASSISTANT]})
    computed = DATED.replace("strftime_now('%d %b %Y')", "strftime_now('%d' + '%b')")
    with pytest.raises(ConfigError, match=r"data\.date cannot fix"):
        opened(settings, tokenizer(computed))


def test_variables_of_the_template(settings):
    tok = tokenizer(
        CHATML.replace("assistant\n{%", "assistant\n{{ mode }}{%").replace(
            "{{ message['role'] }}\n",
            "{{ message['role'] }}\n{% if message['role'] == 'assistant' %}{{ mode }}{% endif %}",
        )
    )
    record = {"messages": [USER, ASSISTANT]}
    other = record | {"chat_template_kwargs": json.dumps({"mode": "/b "})}
    write(Path(settings.path), record, other)
    data = open_data(replace(settings, template_kwargs={"mode": "/a "}), tok, 0, quiet)[0]
    texts = [tok.decode(data.example(i)[0]) for i in range(2)]
    assert ["/a So." in texts[0], "/b So." in texts[1]] == [True, True]
    assert learned(data, tok) == "So.<|im_end|>"


SHOWS_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def calls(*arguments: dict, name: str = "get_tide") -> dict:
    made = [{"type": "function", "function": {"name": name, "arguments": a}} for a in arguments]
    return {"role": "assistant", "content": None, "tool_calls": made}


@pytest.mark.parametrize("value", [True, False, None, 4.5, -3, "", "a\nb", {"type": "x", "id": []}])
def test_values_of_any_kind_in_calls_are_there(settings, value):
    write(Path(settings.path), {"messages": [USER, calls({"a": value})]})
    assert len(opened(settings, tokenizer(SHOWS_CALLS))) == 1


@pytest.mark.parametrize("second", [{"port": "Brest"}, {"e": 1}])
def test_each_of_several_calls_is_looked_for(settings, second):
    """A call that is lost is not found in the one before it."""
    turn = calls({"port": "Brest", "depth": 1}, second)
    write(Path(settings.path), {"messages": [USER, turn]})
    assert len(opened(settings, tokenizer(SHOWS_CALLS))) == 1
    first_only = SHOWS_CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    with pytest.raises(DataError, match=r"message 1: tool_calls\[1\]\.function\.name"):
        opened(settings, tokenizer(first_only))


@pytest.mark.parametrize("lost", ["tool", "user"])
def test_a_message_that_an_answer_quotes_is_missed_all_the_same(settings, lost):
    drops = CHATML.replace("messages %}", "messages if message['content'] != '18 C' %}")
    messages = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "Let me look."},
        {"role": lost, "content": "18 C"},
        {"role": "assistant", "content": "It is 18 C now."},
    ]
    write(Path(settings.path), {"messages": messages})
    assert len(opened(settings)) == 1
    with pytest.raises(DataError, match=r"message 2: content \('18 C'\)"):
        opened(settings, tokenizer(drops))


def test_thoughts_are_looked_for_where_every_token_is_learned(settings):
    write(Path(settings.path), {"messages": [USER, {**ASSISTANT, "reasoning_content": "deep"}]})
    with pytest.raises(DataError, match=r"message 1: reasoning_content"):
        opened(settings, loss_on="all")


@pytest.mark.parametrize(
    "asks", ['strftime_now ("%Y")', "strftime_now(  '%Y' )", "strftime_now('%d' ~ '%b')"]
)
def test_other_ways_to_ask_for_the_day(settings, asks):
    write(Path(settings.path), {"messages": [USER, ASSISTANT]})
    tok = tokenizer("{% if strftime_now is defined %}{{ " + asks + " }}{% endif %}" + CHATML)
    if "~" in asks:
        with pytest.raises(ConfigError, match=r"data\.date cannot fix"):
            opened(settings, tok)
    else:
        assert tok.decode(opened(settings, tok).example(0)[0]).startswith("2024<|im_start|>")
