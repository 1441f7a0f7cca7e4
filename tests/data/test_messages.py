"""Messages, tools and conversations in the dialects that data sets use."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptsft.data.layout import Layout
from adaptsft.data.messages import read_messages, read_tools
from adaptsft.data.tokenized import open_data
from adaptsft.errors import ConfigError, DataError
from tests.data.records import ASSISTANT, USER, learned, opened, tokenizer, write

FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def read(record: dict, fields: dict | None = None):
    return Layout.of(record, fields or {}).conversation(record)


def roles(record: dict) -> list[str]:
    return [message["role"] for message in read(record).messages]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"from": "human", "value": "Why?"}, USER),
        ({"from": "gpt", "value": "So.", "weight": None}, ASSISTANT),
        ({"role": "model", "content": "So.", "tool_calls": []}, ASSISTANT),
        ({"role": "assistant", "content": [{"type": "text", "text": "So."}]}, ASSISTANT),
        ({"from": "observation", "value": "3"}, {"role": "tool", "content": "3"}),
        (
            {"from": "function_call", "value": '{"name": "add", "arguments": "{\\"a\\": 1}"}'},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 1}'}},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL["function"]])},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ),
    ],
)
def test_a_message_in_several_dialects(message, expected):
    assert read_messages([message], "messages")[0] == [expected]


@pytest.mark.parametrize("value", [[FUNCTION], json.dumps([FUNCTION])])
def test_tools_with_and_without_their_wrapper(value):
    assert read_tools(value, "tools") == [{"type": "function", "function": FUNCTION}]


@pytest.mark.parametrize("value", [None, [], "", "[]", "null"])
def test_no_tools(value):
    assert read_tools(value, "tools") == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, r"content\[0\] is not text"),
        ({**ASSISTANT, "tool_calls": [{"id": 1}]}, r"tool_calls\[0\]: must be \{type: function"),
        (
            {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]},
            r"tool_calls\[0\]\.function\.arguments is not valid JSON",
        ),
        ({**ASSISTANT, "reasoning": {"a": ["x\ud83d"]}}, r"reasoning\.a\[0\] is not valid Unicode"),
        ({**ASSISTANT, "reasoning": float("inf")}, r"reasoning is inf"),
        (
            {**ASSISTANT, "weight": -1},
            r"weight is '-1'; write a number from 1e-06 to 1,000,000, or 0",
        ),
        ({**ASSISTANT, "weight": "0"}, r"weight is '0'"),
        ({**ASSISTANT, "train": "no"}, r"train is 'no'; write true or false"),
    ],
)
def test_what_is_refused_names_the_field(message, said):
    with pytest.raises(DataError, match=rf"^messages, message 1.*{said}"):
        read_messages([USER, message], "messages")


def test_messages_under_another_name_are_seen():
    with pytest.raises(DataError, match=r"'dialog' holds messages: map it, .*\{messages: dialog\}"):
        Layout.of({"dialog": [USER, ASSISTANT]}, {})


def test_weights_of_messages():
    turns = [USER, {**ASSISTANT, "weight": 0.5}, USER, {**ASSISTANT, "train": False}, ASSISTANT]
    assert read({"messages": turns}).weights == [1, 0.5, 1, 0, 1]


def test_system_and_history_come_first():
    record = {
        "instruction": "Why?",
        "output": "So.",
        "system": "Be brief.",
        "history": [["a", "b"]],
    }
    assert roles(record) == ["system", "user", "assistant", "user", "assistant"]
    assert roles({"messages": [USER, ASSISTANT], "system": " ", "history": None}) == [
        "user",
        "assistant",
    ]
    system = {"role": "system", "content": "a"}
    with pytest.raises(DataError, match=r"'system' and in a message too.*fields\.system=none"):
        read({"messages": [system, USER, ASSISTANT], "system": "b"})
    assert roles({"messages": [system, USER, ASSISTANT]}) == ["system", "user", "assistant"]


def test_turns_before_a_completion_are_context():
    found = read({"prompt": [USER, ASSISTANT, USER], "completion": "So."})
    assert found.context == 3
    assert read({"prompt": "Why?", "completion": [ASSISTANT]}).messages == [USER, ASSISTANT]


def test_a_table_and_json_lines_give_the_same(tmp_path, settings):
    """A table's columns have every key that some record has, and null where a record lacks it."""
    records = [
        {"messages": [USER, {**ASSISTANT, "reasoning_content": "deep", "extra": {"a": 1}}]},
        {"messages": [USER, {**ASSISTANT, "extra": {"b": [{"c": 2}, {"d": 3}]}}]},
    ]
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content }}{{ m.extra }}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tok = tokenizer(template)
    write(Path(settings.path), *records)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet")
    lines = opened(settings, tok)
    table = opened(settings, tok, path=str(tmp_path / "train.parquet"))
    for i in range(2):
        assert lines.example(i)[0].tolist() == table.example(i)[0].tolist()


def test_unknown_columns_are_named_once(settings):
    lines: list[str] = []
    write(Path(settings.path), {"prompt": "a", "completion": "b", "meta": 1, "score": 2})
    for _ in range(2):  # also from the cache
        lines.clear()
        open_data(settings, tokenizer(), seed=0, log=lines.append)
        assert [line for line in lines if "nothing reads" in line] == [
            "train: columns that nothing reads: meta, score"
        ]


def test_a_mapped_column_that_no_record_has(settings):
    write(Path(settings.path), {"messages": [USER, ASSISTANT]})
    with pytest.raises(
        DataError, match=r"train\.jsonl: no record has the field 'tolls'.*fields\.too"
    ):
        opened(settings, fields={"tools": "tolls"})
    assert learned(opened(settings, fields={"tools": "none"}), tokenizer()) == "So.<|im_end|>"


def test_the_layout_that_the_user_maps_comes_first(settings):
    record = {"messages": [USER, ASSISTANT], "problem": "Which?", "solution": "That."}
    fields = {"prompt": "problem", "completion": "solution"}
    assert [m["content"] for m in read(record, fields).messages] == ["Which?", "That."]
    with pytest.raises(ConfigError, match=r"data\.fields\.prompt: .*map all fields of one layout"):
        Layout.of(record, {"prompt": "problem"})


def test_messages_as_json_text_in_a_table_of_text():
    record = {"prompt": json.dumps([USER]), "completion": json.dumps([ASSISTANT])}
    assert read(record).messages == [USER, ASSISTANT]


def test_history_follows_the_system_message():
    system = {"role": "system", "content": "Be brief."}
    record = {"messages": [system, USER, ASSISTANT], "history": [["a", "b"]]}
    assert roles(record) == ["system", "user", "assistant", "user", "assistant"]


def test_what_is_not_learned_may_be_empty():
    empty = {"role": "assistant", "content": ""}
    assert read({"prompt": [USER, empty, USER], "completion": "So."}).context == 3
    read({"messages": [USER, {**empty, "weight": 0}, USER, ASSISTANT]})
    with pytest.raises(DataError, match="is empty"):
        read({"messages": [USER, empty]})


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "add", "parameters": {"a": {"type": "number"}}},
        {"name": "add", "arguments": {"a": "number"}},
        {"name": "add", "parameters": "number"},
    ],
)
def test_tools_whose_parameters_are_no_schema_are_refused(tool):
    with pytest.raises(DataError, match=r"tools, tool 0: parameters (must be|is not valid JSON)"):
        read_tools([tool], "tools")


def test_other_forms_of_a_schema():
    schema = {"type": "object", "properties": {"a": {"type": "number"}}}
    for tool in ({"parameters": json.dumps(schema)}, {"input_schema": schema}):
        (read,) = read_tools([{"name": "add"} | tool], "tools")
        assert read["function"] == {"name": "add", "parameters": schema}


@pytest.mark.parametrize("switch", ["train", "training", "loss"])
def test_switches_that_keep_a_turn_from_being_learned(switch):
    turns = [USER, {**ASSISTANT, switch: False}, USER, {**ASSISTANT, switch: True}]
    assert read({"messages": turns}).weights == [1, 0, 1, 1]


def test_an_unknown_switch_is_named(settings):
    said: list[str] = []
    write(Path(settings.path), {"messages": [USER, {**ASSISTANT, "masked": True}]})
    open_data(settings, tokenizer(), seed=0, log=said.append)
    assert "train: columns that nothing reads: masked of messages" in said


def test_columns_with_half_a_surrogate_pair_are_printed(settings):
    said: list[str] = []
    Path(settings.path).write_text('{"prompt": "a", "completion": "b", "\\ud83d": 1}\n')
    open_data(settings, tokenizer(), seed=0, log=said.append)
    assert "train: columns that nothing reads: \\ud83d" in said
    Path(settings.path).write_text('{"\\ud83d": 1}\n')
    with pytest.raises(DataError, match=r"the fields \\ud83d"):
        opened(settings)


def test_dates_that_were_texts_are_explained(settings, tmp_path):
    table = pa.table({"prompt": ["a"], "completion": pa.array([0], pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 1: .*but datetime.*store the column as text"):
        opened(settings, path=str(tmp_path / "a.parquet"))
