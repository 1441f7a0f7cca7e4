"""The layouts of records, and field maps."""

from pathlib import Path

import pytest

from adaptsft.errors import ConfigError, DataError
from tests.conftest import REPO
from tests.data.records import ASSISTANT, USER, learned, opened, tokenizer, write

ONE_TURN = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>"


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"messages": [USER, ASSISTANT], "other": 1}, {}),
        ({"prompt": "Why?", "completion": "So."}, {}),
        ({"prompt": [USER], "completion": [ASSISTANT]}, {}),
        ({"prompt": [USER], "completion": "So."}, {}),
        ({"instruction": "Why?", "input": "", "output": "So."}, {}),
        ({"instruction": "Why?", "output": "So."}, {}),
        ({"question": "Why?", "answer": "So."}, {"prompt": "question", "completion": "answer"}),
        ({"prompt": "Why?", "reply": "So."}, {"completion": "reply"}),
        ({"conversations": [USER, ASSISTANT]}, {"messages": "conversations"}),
        ({"prompt": "Why?", "completion": "So.", "instruction": float("nan"), "id": None}, {}),
    ],
)
def test_layouts(settings, record, fields):
    tok = tokenizer()
    write(Path(settings.path), record)
    data = opened(settings, tok, fields=fields)
    assert tok.decode(data.example(0)[0]) == ONE_TURN
    assert learned(data, tok) == "So.<|im_end|>"


def test_layouts_of_the_documentation_give_the_same_tokens(tmp_path, settings):
    records = (
        (REPO / "docs" / "data.md").read_text().split("```json\n")[1].split("```")[0].splitlines()
    )
    examples = []
    for number, record in enumerate(records):
        (tmp_path / f"{number}.jsonl").write_text(record)
        data = opened(settings, path=str(tmp_path / f"{number}.jsonl"))
        examples.append([part.tolist() for part in data.example(0)])
    assert len(records) == 6
    assert examples == [examples[0]] * 6


def test_alpaca_input_follows_the_instruction(settings):
    tok = tokenizer()
    write(Path(settings.path), {"instruction": "Add.", "input": "1, 2", "output": "3"})
    data = opened(settings, tok)
    assert "user\nAdd.\n\n1, 2<|im_end|>" in tok.decode(data.example(0)[0])


def test_label_of_message_fields(settings):
    """`talk` above covers the fragments; this is one such error in full."""
    write(Path(settings.path), {"messages": [USER, {"role": "bot", "content": "b"}]})
    with pytest.raises(DataError) as error:
        opened(settings)
    where = f"{settings.path}:1: field 'messages', message 1"
    assert (
        str(error.value)
        == f"{where}: unknown role 'bot'; the roles are system, developer, user, assistant, tool"
    )


def test_field_maps(settings):
    write(Path(settings.path), {"question": "a", "answer": "b"})
    with pytest.raises(ConfigError, match=r"data\.fields\.promt: .*did you mean prompt"):
        opened(settings, fields={"promt": "question"})
    with pytest.raises(
        DataError,
        match=r"train\.jsonl:1: field 'ask' is missing \(data\.fields\.prompt.*question, answer",
    ):
        opened(settings, fields={"prompt": "ask", "completion": "answer"})
