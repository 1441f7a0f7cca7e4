"""Small files after public reports of runs that learned the wrong thing, or failed without saying
why: tokens and mask, or one message that names file, line and fix."""

import json
import shutil
from pathlib import Path

import pytest

from adaptsft.errors import DataError
from adaptsft.model.tiny import CHATML
from tests.conftest import REPO
from tests.data import real_templates
from tests.data.records import learned, opened, tokenizer

REPORTS = REPO.parent / "shared" / "cases" / "reports"
pytestmark = pytest.mark.skipif(not REPORTS.is_dir(), reason="needs ../shared/cases/reports")
CALL = '<tool_call>\n{"name": "get_tide", "arguments": {"port": "Brest"}}\n</tool_call><|im_end|>'


@pytest.fixture
def report(tmp_path, settings):
    """The example of the first record of a report, as (text, learned text)."""

    def of(name: str, template: str = CHATML, **changes):
        shutil.copy(REPORTS / name, tmp_path / name)
        tok = tokenizer(CHATML) if template == CHATML else real_templates.byte_level(template)
        data = opened(settings, tok, path=str(tmp_path / name), **changes)
        return tok.decode(data.example(0)[0]), learned(data, tok)

    return of


@pytest.fixture
def qwen() -> str:
    return real_templates.template_of("qwen2_5")


def test_tools_and_calls_are_shown_and_learned(report, qwen):
    text, turns = report("tools.jsonl", qwen)
    assert '"description": "Height of the tide at a port."' in text
    assert turns == CALL + "It is 4.2 m.<|im_end|>"


def test_arguments_and_tools_as_json_text_give_the_same(report, qwen):
    assert report("tools_str.jsonl", qwen) == report("tools.jsonl", qwen)


@pytest.mark.parametrize("name", ["tools.jsonl", "tools_str.jsonl", "toolnull.jsonl"])
def test_a_template_that_does_not_show_them_is_an_error(report, name):
    with pytest.raises(DataError, match=rf"{name}:1: .*get_tide.*data\.lost_text=allow"):
        report(name)


def test_nulls_that_a_table_adds_are_no_arguments(report, qwen):
    assert report("toolnull.parquet", qwen) == report("toolnull.jsonl", qwen)


def test_thoughts_that_a_template_drops_are_an_error(report):
    drops = CHATML.replace(
        "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"
    )
    with pytest.raises(DataError, match=r"think1\.jsonl:1: message 1: content .*six sevens"):
        report("think1.jsonl", drops)
    _, turns = report("think1.jsonl", drops, lost_text="allow")
    assert turns == "\n\n42<|im_end|>"
    assert report("think1.jsonl")[1].startswith("<think>\nsix sevens: 42\n</think>\n\n42")


def test_half_a_surrogate_pair_names_line_and_field(report):
    with pytest.raises(DataError, match=r"sur_reason\.jsonl:1: .*reasoning_content.*surrogate"):
        report("sur_reason.jsonl")


def test_a_turn_of_weight_0_is_context(report):
    text, turns = report("weight0.jsonl")
    assert "Five, surely." in text
    assert turns == "Four.<|im_end|>"
    with pytest.raises(DataError, match=r"weight0\.jsonl:1: weights of turns .*loss_on=all"):
        report("weight0.jsonl", loss_on="all")


def test_a_system_column_is_the_system_message(report):
    text, turns = report("sys_col.jsonl")
    assert text.startswith("<|im_start|>system\nAnswer as a ferryman.<|im_end|>\n")
    assert turns == "At nine.<|im_end|>"


@pytest.mark.parametrize("name", ["sharegpt.jsonl", "bare_list.jsonl", "stop.jsonl"])
def test_dialects(report, name):
    text, turns = report(name)
    assert text.startswith("<|im_start|>user\nCapital of Peru?<|im_end|>\n<|im_start|>assistant\n")
    assert turns == "Lima.<|im_end|>"


def test_preferences_say_how_the_chosen_answer_is_learned(report):
    with pytest.raises(DataError, match=r"dpo_list\.jsonl:1: .*data\.fields='\{messages: chosen\}"):
        report("dpo_list.jsonl")
    fields = {"messages": "chosen"}
    assert report("dpo_list.jsonl", fields=fields)[1] == "Lima.<|im_end|>"
    with pytest.raises(DataError, match=r"whole conversation; map it .*\{messages: chosen\}"):
        report("dpo_list.jsonl", fields={"completion": "chosen"})


def test_text_alone_is_learned_whole_where_that_is_meant(report):
    with pytest.raises(DataError, match=r"text_only\.jsonl:1: .*data\.loss_on=all"):
        report("text_only.jsonl")
    text, turns = report("text_only.jsonl", loss_on="all")
    # the text, and the token that ends a text
    assert text == json.loads((REPORTS / "text_only.jsonl").read_text().splitlines()[0])["text"] + (
        "<|im_end|>"
    )
    assert turns == text[1:]


def test_turns_that_a_template_rewrites_are_examples_of_their_own(tmp_path, report, settings):
    qwen3 = real_templates.template_of("qwen3")
    with pytest.raises(DataError, match=r"nothink2\.jsonl:1: .*data\.loss_on=each_turn"):
        report("nothink2.jsonl", qwen3)
    tok = real_templates.byte_level(qwen3)
    path = str(tmp_path / "nothink2.jsonl")
    data = opened(settings, tok, path=path, loss_on="each_turn")
    think = "<think>\n\n</think>\n\n"
    turns = [learned(data, tok, i) for i in range(len(data))]
    assert turns == [f"{think}42<|im_end|>", f"{think}43<|im_end|>"] * 2
    assert [data.where(i) for i in range(4)] == [f"{path}:{line}" for line in (1, 1, 2, 2)]


def test_spaces_of_sentencepiece_stand_where_generation_has_them(tmp_path, settings):
    shutil.copy(REPORTS / "sp.jsonl", tmp_path / "sp.jsonl")
    source = real_templates.template_of("llama3").replace("{{- bos_token }}", "")
    tok = real_templates.sentencepiece(source, everywhere=True)
    data = opened(settings, tok, path=str(tmp_path / "sp.jsonl"))
    messages = json.loads(Path(tmp_path / "sp.jsonl").read_text().splitlines()[0])["messages"]
    text = tok.apply_chat_template(messages, tokenize=False)
    assert data.example(0)[0].tolist() == tok(text, add_special_tokens=False).input_ids
