"""Records to tokens: layouts, templates and loss masks, the cache, and every kind of bad data."""

import hashlib
import json
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import datasets
import datasets.config as datasets_config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers.processors import TemplateProcessing

from adaptsft.config.schema import DataConfig, SourceConfig
from adaptsft.data.cache import open_data
from adaptsft.data.template import Template
from adaptsft.errors import ConfigError, DataError
from adaptsft.model.tiny import CHATML, bpe_tokenizer
from tests.conftest import REPO

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# like Qwen3's: only the last turn keeps its thoughts
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "Two plus two?"},
    {"role": "assistant", "content": "It is 4.\n"},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "  Five, ünder 10."},
]


def tokenizer(
    chat_template: str | None = CHATML, special: tuple[str, ...] = (), bos: str | None = None
):
    made = bpe_tokenizer([], 259, chat_template)
    made.add_tokens(list(special), special_tokens=True)
    if bos:
        made.add_special_tokens({"bos_token": bos})
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.bos_token_id)]
        )
    return made


def write(path: Path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def settings(tmp_path) -> DataConfig:
    return DataConfig(path=str(tmp_path / "train.jsonl"), cache_dir=str(tmp_path / "cache"))


def learned(data, tok, i: int = 0) -> str:
    ids, mask = data.example(i)
    return tok.decode(ids[mask])


def quiet(line: str) -> None:
    pass


# --- templates and masks


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
    # the text is the template's own, up to the end of the last turn, and begins with at most one begin-of-text token
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
    last, _ = open_data(replace(settings, loss_on="last_turn"), tok, seed=0, log=quiet)
    assert learned(last, tok) == "  Five, ünder 10.<|im_end|>"
    every, _ = open_data(replace(settings, loss_on="all"), tok, seed=0, log=quiet)
    ids, mask = every.example(0)
    assert "Thanks." in tok.decode(ids)
    assert mask.tolist() == [False] + [True] * (len(ids) - 1)


def test_template_that_rewrites_earlier_turns(settings):
    tok = tokenizer(THINKING)
    write(Path(settings.path), {"messages": TALK[:2]}, {"messages": TALK})
    with pytest.raises(DataError, match=r"train\.jsonl:2: .*message 1 .*data\.loss_on=last_turn"):
        open_data(settings, tok, seed=0, log=quiet)
    data, _ = open_data(replace(settings, loss_on="last_turn"), tok, seed=0, log=quiet)
    assert learned(data, tok, 1) == "<think>\n\n</think>\n\n  Five, ünder 10.<|im_end|>"


def test_template_whose_generation_prompt_disagrees(settings):
    tok = tokenizer(CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"))
    write(Path(settings.path), {"messages": TALK})
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*generation prompt"):
        open_data(settings, tok, seed=0, log=quiet)


def test_template_whose_generation_prompt_forgets_the_last_messages(settings):
    """Every prompt begins the conversation, but the second one would have the second question learned."""
    forgetful = (
        "{% for message in messages %}{% if not add_generation_prompt or loop.first %}"
        + CHATML.split("%}", 1)[1]
    )
    tok = tokenizer(forgetful.replace("{% endfor %}", "{% endif %}{% endfor %}"))
    write(Path(settings.path), {"messages": TALK})
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*message 3 .*data\.loss_on=last_turn"):
        open_data(settings, tok, seed=0, log=quiet)


@pytest.mark.parametrize("bos", [None, "<bos>"])
def test_plain_template(settings, bos):
    tok = tokenizer(None, bos=bos)
    write(Path(settings.path), {"prompt": "set {x}", "completion": "\\boxed{4}"})
    settings.prompt_template = "Q: \\text{a} {prompt}\nA: "
    data, _ = open_data(settings, tok, seed=0, log=quiet)
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
    data, _ = open_data(settings, tok, seed=0, log=quiet)
    assert learned(data, tok) == "bc<|im_end|>"
    assert data.target_tokens[0] == 3


# --- layouts and formats

ONE_TURN = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>"
USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


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
    data, _ = open_data(replace(settings, fields=fields), tok, seed=0, log=quiet)
    assert tok.decode(data.example(0)[0]) == ONE_TURN
    assert learned(data, tok) == "So.<|im_end|>"


def test_layouts_of_the_documentation_give_the_same_tokens(tmp_path, settings):
    records = (
        (REPO / "docs" / "data.md").read_text().split("```json\n")[1].split("```")[0].splitlines()
    )
    examples = []
    for number, record in enumerate(records):
        (tmp_path / f"{number}.jsonl").write_text(record)
        data, _ = open_data(
            replace(settings, path=str(tmp_path / f"{number}.jsonl")),
            tokenizer(),
            seed=0,
            log=quiet,
        )
        examples.append([part.tolist() for part in data.example(0)])
    assert len(records) == 4
    assert examples == [examples[0]] * 4


def test_alpaca_input_follows_the_instruction(settings):
    tok = tokenizer()
    write(Path(settings.path), {"instruction": "Add.", "input": "1, 2", "output": "3"})
    data, _ = open_data(settings, tok, seed=0, log=quiet)
    assert "user\nAdd.\n\n1, 2<|im_end|>" in tok.decode(data.example(0)[0])


def test_turns_of_the_prompt_are_not_learned(settings):
    tok = tokenizer()
    write(Path(settings.path), {"prompt": TALK[:3], "completion": TALK[3:]})
    data, _ = open_data(settings, tok, seed=0, log=quiet)
    assert learned(data, tok) == "  Five, ünder 10.<|im_end|>"


def test_every_file_format_gives_the_same_examples(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    tok = tokenizer()
    records = [
        {"prompt": f"Number {i}?", "completion": text}
        for i, text in enumerate(["72", "NA", 'a "b",\nc', "ß"])
    ]
    table = datasets.Dataset.from_list(records)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "a.csv")
    write(tmp_path / "a.jsonl", *records)
    (tmp_path / "a.json").write_text("\ufeff " + json.dumps(records, indent=1) + "\n")
    table.to_parquet(str(tmp_path / "folder" / "train.parquet"))
    seen = []
    for name in ("a.jsonl", "a.parquet", "a.csv", "a.json", "folder"):
        data, _ = open_data(replace(settings, path=str(tmp_path / name)), tok, seed=0, log=quiet)
        seen.append([data.example(i)[0].tolist() for i in range(len(data))])
        assert data.where(3).startswith(str(tmp_path / name))
        assert data.where(3)[-1] == (
            "6" if name == "a.csv" else "4"
        )  # in the csv: a header, and a cell of two lines
        assert data.names == [Path(name).stem]
    assert seen == [seen[0]] * len(seen)
    assert len(seen[0]) == 4
    assert len(list(Path(settings.cache_dir).iterdir())) == 4  # the two tables are the same file


def test_a_folder_with_splits_is_read_by_datasets(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    tok = tokenizer()
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        write(
            folder / f"{split}.jsonl",
            *[{"prompt": "a", "completion": f"{split} {i}"} for i in range(3)],
        )
    for path in (folder, folder):  # the second time from the cache
        data, _ = open_data(replace(settings, path=str(path)), tok, seed=0, log=quiet)
        assert [learned(data, tok, i) for i in range(len(data))] == [
            f"train {i}<|im_end|>" for i in range(3)
        ]
        assert data.where(2) == f"{folder}, train: row 3"
    assert len(list(Path(settings.cache_dir).iterdir())) == 1


def test_messages_in_parquet(tmp_path, settings, monkeypatch):
    """A table fills keys that only some messages have with null, and the template must not see those."""
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [
        {"messages": [{**USER, "name": None}, ASSISTANT]},
        {"messages": [{**USER, "name": "Ann"}, ASSISTANT]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    template = CHATML.replace(
        "{{ message['role'] }}", "{{ message['role'] }}{{ '!' if 'name' in message else '' }}"
    )
    tok = tokenizer(template)
    data, _ = open_data(replace(settings, path=str(tmp_path / "a.parquet")), tok, seed=0, log=quiet)
    assert "user!" not in tok.decode(data.example(0)[0])
    assert "user!" in tok.decode(data.example(1)[0])


def test_a_table_of_several_row_groups(tmp_path, settings):
    table = pa.table(
        {
            "prompt": ["a"] * 2500,
            "completion": [str(i) for i in range(2500)],
            "messages": [[]] * 2500,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    settings.fields = {"messages": "none"}
    tok = tokenizer()
    data, _ = open_data(replace(settings, path=str(tmp_path / "a.parquet")), tok, seed=0, log=quiet)
    assert [learned(data, tok, i) for i in range(2500)] == [f"{i}<|im_end|>" for i in range(2500)]
    assert data.where(2101) == f"{tmp_path / 'a.parquet'}: row 2102"


def test_a_json_array_longer_than_the_read_buffer(tmp_path, settings, monkeypatch):
    monkeypatch.setattr("adaptsft.data.sources.CHUNK", 7)
    records = [{"prompt": "p" * i, "completion": f"ü{i},]"} for i in range(30)]
    tok = tokenizer()
    texts = []
    for indent in (None, 3):
        path = tmp_path / f"{indent}.json"
        path.write_text(json.dumps(records, indent=indent, ensure_ascii=False))
        data, _ = open_data(replace(settings, path=str(path)), tok, seed=0, log=quiet)
        texts.append([learned(data, tok, i) for i in range(len(data))])
    assert texts == [[f"ü{i},]<|im_end|>" for i in range(30)]] * 2


def test_gsm8k(shared_data, settings):
    tok = tokenizer()
    fields = {"prompt": "question", "completion": "answer"}
    path = shared_data / "math" / "gsm8k_test.jsonl"
    data, _ = open_data(replace(settings, path=str(path), fields=fields), tok, seed=0, log=quiet)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(data) == len(lines)
    for i in (0, 700, len(lines) - 1):
        assert learned(data, tok, i) == lines[i]["answer"] + "<|im_end|>"
        assert data.where(i) == f"{path}:{i + 1}"


# --- sources of many files


def shards(folder: Path, counts=(3, 1, 2)) -> list[str]:
    """Files named so that their order is not that of their creation; their examples are numbered through."""
    folder.mkdir()
    numbers = iter(range(sum(counts)))
    contents = [
        [{"prompt": "a", "completion": f"{next(numbers):02}"} for _ in range(count)]
        for count in counts
    ]
    return [write(folder / f"part-{i}.jsonl", *contents[i]) for i in reversed(range(len(counts)))][
        ::-1
    ]


def test_a_pattern_or_folder_is_one_source(tmp_path, settings):
    tok = tokenizer()
    paths = shards(tmp_path / "shards")
    (tmp_path / "shards" / "README.md").write_text("about")
    for path, name in (
        ("shards", "shards"),
        ("shards/*.jsonl", "shards"),
        ("shards/part-*.jsonl", "part"),
        ("**/part-[0-9].jsonl", "part"),
    ):
        data, _ = open_data(replace(settings, path=str(tmp_path / path)), tok, seed=0, log=quiet)
        assert data.names == [name]
        assert [learned(data, tok, i) for i in range(len(data))] == [
            f"{i:02}<|im_end|>" for i in range(6)
        ]
        assert [data.where(i) for i in (0, 2, 3, 4, 5)] == [
            f"{paths[0]}:1",
            f"{paths[0]}:3",
            f"{paths[1]}:1",
            f"{paths[2]}:1",
            f"{paths[2]}:2",
        ]
        assert set(data.source.tolist()) == {0}
    # a part of it still finds its files
    part = data.take(np.array([5, 3]))
    assert [(learned(part, tok, i), part.where(i)) for i in (0, 1)] == [
        ("05<|im_end|>", f"{paths[2]}:2"),
        ("03<|im_end|>", f"{paths[1]}:1"),
    ]
    with pytest.raises(DataError, match=r"none-\*\.jsonl: no file matches"):
        open_data(replace(settings, path=str(tmp_path / "none-*.jsonl")), tok, seed=0, log=quiet)
    with pytest.raises(DataError, match=r"README\.md: unknown extension"):
        open_data(replace(settings, path=str(tmp_path / "shards" / "*")), tok, seed=0, log=quiet)
    odd = write(
        tmp_path / "a[1]*.jsonl", {"prompt": "a", "completion": "odd"}
    )  # a file that is there is no pattern
    data, _ = open_data(replace(settings, path=odd), tok, seed=0, log=quiet)
    assert (data.names, data.where(0)) == (["a[1]*"], f"{odd}:1")


def test_a_new_file_is_the_only_one_tokenised(tmp_path, settings):
    tok = tokenizer()
    settings.path = str(tmp_path / "shards" / "*.jsonl")
    shards(tmp_path / "shards")
    first, _ = open_data(settings, tok, seed=0, log=quiet)
    before = {path.name: path.stat().st_mtime_ns for path in Path(settings.cache_dir).iterdir()}
    added = write(tmp_path / "shards" / "part-1b.jsonl", {"prompt": "a", "completion": "new"})
    second, _ = open_data(settings, tok, seed=0, log=quiet)
    after = {path.name: path.stat().st_mtime_ns for path in Path(settings.cache_dir).iterdir()}
    assert len(after) == 4
    assert before.items() < after.items()
    assert [learned(second, tok, i) for i in (3, 4, 5)] == [
        f"{text}<|im_end|>" for text in ("03", "new", "04")
    ]
    assert second.where(4) == f"{added}:1"
    assert first.fingerprint != second.fingerprint


def test_errors_name_the_file_of_many(tmp_path, settings):
    tok = tokenizer(None)
    settings.path = str(tmp_path / "shards")
    paths = shards(tmp_path / "shards")
    Path(paths[1]).write_text('{"prompt": "a", "completion": ""}\n')
    with pytest.raises(DataError) as error:
        open_data(settings, tok, seed=0, log=quiet)
    assert str(error.value).startswith(f"{paths[1]}:1: field 'completion' is empty")
    write(
        Path(paths[1]),
        {"prompt": "a", "completion": "fine"},
        {"prompt": "a", "completion": "too long for this"},
    )
    with pytest.raises(
        DataError,
        match=r"part-1\.jsonl:2: the example has 20 tokens, more than data\.max_length=10 \(so have 1",
    ):
        open_data(replace(settings, max_length=10, overlong="error"), tok, seed=0, log=quiet)
    dropped, _ = open_data(replace(settings, max_length=10), tok, seed=0, log=quiet)
    assert (len(dropped), dropped.dropped) == (6, [1])
    assert [dropped.where(i) for i in (3, 4)] == [f"{paths[1]}:1", f"{paths[2]}:1"]
    cut, _ = open_data(
        replace(settings, max_length=10, overlong="truncate"), tok, seed=0, log=quiet
    )
    assert (len(cut), cut.truncated, cut.dropped) == (7, [1], [0])
    assert learned(cut, tok, 4) == "too long"
    assert (cut.lengths[4], cut.target_tokens[4]) == (10, 8)


def with_ids(folder: Path, *files: list) -> list[str]:
    """A file per list, of records with these ids; None: a record without one."""
    folder.mkdir(exist_ok=True)
    records = [
        [
            {"prompt": f"{number}", "completion": "b"} | ({} if name is None else {"id": name})
            for name in names
        ]
        for number, names in enumerate(files)
    ]
    return [write(folder / f"{number}.jsonl", *records[number]) for number in range(len(files))]


def test_an_id_of_another_file_is_an_error(tmp_path, settings, monkeypatch):
    """Also where both files are in the cache, and in held-out files. Of the ranks of a run, one compares."""
    settings.path = str(tmp_path / "shards")
    paths = with_ids(tmp_path / "shards", ["x", None, "a-7"], [None, 7], ["7", "a-8", None, "a-7"])
    said = re.escape(
        f"{paths[2]}:4: the id 'a-7' is that of {paths[0]}:3 too; remove one of the two, or set data.fields.id=none if ids"
    )
    for _ in range(2):
        with pytest.raises(DataError, match=f"^{said}"):
            open_data(settings, tokenizer(), seed=0, log=quiet)
        monkeypatch.setattr(Template, "encode", None)  # nothing is tokenised again
    assert len(open_data(settings, tokenizer(), seed=0, log=quiet, verify=False)[0]) == 9
    monkeypatch.undo()
    assert (
        len(open_data(replace(settings, fields={"id": "none"}), tokenizer(), seed=0, log=quiet)[0])
        == 9
    )
    good = write(tmp_path / "good.jsonl", {"prompt": "a", "completion": "b", "id": "a-7"})
    with pytest.raises(DataError, match=f"^{said}"):
        open_data(
            replace(settings, path=good, validation_path=f"{settings.path}/*"),
            tokenizer(),
            seed=0,
            log=quiet,
        )


def test_ids_that_begin_anew_in_each_file_are_told_by_the_second(tmp_path, settings):
    settings.path = str(tmp_path / "shards")
    paths = with_ids(tmp_path / "shards", *[[0, 1, 2]] * 5)
    with pytest.raises(DataError, match=f"^{paths[1]}:1: the id 0 is that of {paths[0]}:1 too"):
        open_data(settings, tokenizer(), seed=0, log=quiet)
    assert (
        len([path for path in Path(settings.cache_dir).iterdir() if path.name != "hashes"]) == 2
    ), "the others are not tokenised first"
    data, _ = open_data(replace(settings, fields={"id": "none"}), tokenizer(), seed=0, log=quiet)
    assert len(data) == 15


def test_ids_are_those_of_a_source(tmp_path, settings):
    paths = with_ids(tmp_path / "shards", ["a"], ["a"])
    sources = [SourceConfig(path=path) for path in paths]
    assert (
        len(
            open_data(replace(settings, path="", sources=sources), tokenizer(), seed=0, log=quiet)[
                0
            ]
        )
        == 2
    )


def test_ids_decide_where_their_digests_agree(tmp_path, settings, monkeypatch):
    """All digests are the same here: an id that is another is no error, one that is the same is found."""
    monkeypatch.setattr("adaptsft.data.cache.digest", lambda value: 5)
    settings.path = str(tmp_path / "shards")
    with_ids(tmp_path / "shards", ["a", "b"], ["c"], ["d"])
    assert len(open_data(settings, tokenizer(), seed=0, log=quiet)[0]) == 4
    paths = with_ids(tmp_path / "shards", ["a", "b"], ["c"], ["a"])
    with pytest.raises(DataError, match=f"^{paths[2]}:1: the id 'a' is that of {paths[0]}:1 too"):
        open_data(settings, tokenizer(), seed=0, log=quiet)


def test_sources_of_many_files(tmp_path, settings):
    """The limit of length is counted for each source, and each finds its own files."""
    tok = tokenizer()
    shards(tmp_path / "a")
    other = write(
        tmp_path / "b.jsonl",
        {"prompt": "a", "completion": "b" * 99},
        {"prompt": "a", "completion": "b"},
    )
    sources = [
        SourceConfig(path=other),
        SourceConfig(path=str(tmp_path / "a")),
        SourceConfig(name="again", path=str(tmp_path / "a")),
    ]
    data, _ = open_data(
        replace(settings, path="", sources=sources, max_length=100), tok, seed=0, log=quiet
    )
    assert data.names == ["b", "a", "again"]
    assert data.source.tolist() == [0] + [1] * 6 + [2] * 6
    assert (data.dropped, data.truncated) == ([1, 0, 0], [0, 0, 0])
    assert [learned(data, tok, i) for i in range(13)] == ["b<|im_end|>"] + [
        f"{i:02}<|im_end|>" for i in range(6)
    ] * 2
    with pytest.raises(
        DataError, match=r"b\.jsonl: no example is left: all 2 .*data\.max_length=20"
    ):
        open_data(
            replace(settings, path="", sources=sources, max_length=20), tok, seed=0, log=quiet
        )


# --- bad data

GOOD = '{"prompt": "a", "completion": "b"}\n'


def talk(*messages) -> str:
    return json.dumps({"messages": messages}) + "\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD + '{"prompt": "a", "compl\n', ["train.jsonl:2", "not valid JSON", "column"]),
        (GOOD + "\n[1, 2]\n", ["train.jsonl:3", "not a JSON object", "list"]),
        (GOOD + '"text"\n', ["train.jsonl:2", "not a JSON object"]),
        (GOOD + '{"prompt": "a"}\n', ["train.jsonl:2", "'completion' is missing", "prompt"]),
        (GOOD + '{"prompt": "a", "completion": null}\n', ["train.jsonl:2", "'completion' is null"]),
        (
            GOOD + '{"prompt": "a", "completion": " \\n"}\n',
            ["train.jsonl:2", "'completion' is empty"],
        ),
        (
            GOOD + '{"prompt": "a", "completion": 72}\n',
            ["train.jsonl:2", "'completion' is not text but int", "72"],
        ),
        (GOOD + '{"prompt": NaN, "completion": "b"}\n', ["train.jsonl:2", "'prompt' is NaN"]),
        (
            GOOD + '{"prompt": "a", "completion": "\\ud83d"}\n',
            ["train.jsonl:2", "'completion'", "surrogate"],
        ),
        (
            GOOD + '{"prompt": ["a"], "completion": "b"}\n',
            ["train.jsonl:2", "'prompt', message 0", "role and content"],
        ),
        (GOOD.encode() + b'{"prompt": "\xff"}\n', ["train.jsonl:2", "not UTF-8"]),
        (
            '{"id": 7, "prompt": "a", "completion": "b"}\n' * 2,
            ["train.jsonl:2", "id 7", "train.jsonl:1", "data.fields.id"],
        ),
        (
            '{"text": "a", "label": "b"}\n',
            ["train.jsonl:1", "layout", "text, label", "data.fields="],
        ),
        ('{"prompt": "a"}\n', ["train.jsonl:1", "layout", "completion"]),
        (
            talk(USER, {"role": "human", "content": "b"}),
            ["train.jsonl:1", "message 1", "'human'", "assistant"],
        ),
        (talk(USER, {"role": "assistant"}), ["train.jsonl:1", "message 1", "content is missing"]),
        (
            talk({"role": "user", "content": None}, ASSISTANT),
            ["train.jsonl:1", "message 0", "content is null"],
        ),
        (
            talk(USER, {"role": "assistant", "content": ""}),
            ["train.jsonl:1", "message 1", "content is empty"],
        ),
        (
            talk({"role": "user", "content": [1]}, ASSISTANT),
            ["train.jsonl:1", "message 0", "content is not text but list"],
        ),
        (talk(USER), ["train.jsonl:1", "no assistant turn"]),
        (talk(ASSISTANT), ["train.jsonl:1", "starts with the assistant"]),
        (talk(), ["train.jsonl:1", "'messages' must be a list"]),
        (
            talk(USER, ASSISTANT) + '{"prompt": "a"}\n',
            ["train.jsonl:2", "'messages' is missing", "prompt"],
        ),
        ("", ["train.jsonl", "empty"]),
        ("\n \n", ["train.jsonl", "no example"]),
        ("[]", ["train.jsonl", "no example"]),
        (
            '[{"prompt": "a", "completion": "b"}, {"prompt": 1}]',
            ["train.jsonl: item 2", "'prompt' is not text"],
        ),
        ('[{"prompt": "a", "completion": "b"}, 3]', ["train.jsonl: item 2", "not a JSON object"]),
        (
            '[{"prompt": "a", "completion": "b"} {"prompt"',
            ["train.jsonl: item 1", "',' or ']' expected"],
        ),
        ('[{"prompt": "a", "completion": "b"},]', ["train.jsonl: item 2", "not valid JSON"]),
        ('[{"prompt": "a", "completion": "b"}', ["train.jsonl: item 1", "ends within the array"]),
        (
            '[{"prompt": "a", "completion": "b"}]\n[{"prompt": "a", "completion": "b"}]',
            ["train.jsonl", "more after the array"],
        ),
        (b'[{"prompt": "\xff"}]', ["train.jsonl", "not UTF-8"]),
    ],
)
def test_bad_record(settings, content, said):
    Path(settings.path).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        open_data(settings, tokenizer(), seed=0, log=quiet)
    for part in said:
        assert part in str(error.value)
    cache = Path(settings.cache_dir)
    assert not cache.exists() or not list(cache.iterdir())


def test_label_of_message_fields(settings):
    """`talk` above covers the fragments; this is one such error in full."""
    write(Path(settings.path), {"messages": [USER, {"role": "bot", "content": "b"}]})
    with pytest.raises(DataError) as error:
        open_data(settings, tokenizer(), seed=0, log=quiet)
    where = f"{settings.path}:1: field 'messages', message 1"
    assert (
        str(error.value)
        == f"{where}: unknown role 'bot'; the roles are system, user, assistant, tool"
    )


def test_braces_in_a_file_name(tmp_path, settings):
    path = tmp_path / "a{0}{b}.jsonl"
    path.write_text(GOOD + "{}")
    with pytest.raises(DataError) as error:
        open_data(replace(settings, path=str(path)), tokenizer(), seed=0, log=quiet)
    assert str(error.value).startswith(f"{path}:2: field 'prompt' is missing")


def test_repeated_ids_are_allowed_where_asked(settings):
    write(Path(settings.path), *[{"id": 7, "prompt": "a", "completion": "b"}] * 2)
    data, _ = open_data(replace(settings, fields={"id": "none"}), tokenizer(), seed=0, log=quiet)
    assert len(data) == 2


def test_bad_table_row(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(
        [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}]
    ).to_parquet(path)
    with pytest.raises(DataError, match=r"a\.parquet: row 2: field 'completion' is null"):
        open_data(replace(settings, path=str(path)), tokenizer(), seed=0, log=quiet)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet"):
        open_data(replace(settings, path=str(path)), tokenizer(), seed=0, log=quiet)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'prompt,completion\n\n"a\nb",c\nd,\n', ":5: field 'completion' is empty"),
        (b"prompt,completion\na,b\na\n", ":3: 1 cells in a table of 2 columns"),
        (b'prompt,completion\na,b\na,"b\n', ":3: not valid CSV"),
        (b"prompt,completion\na,\xff\n", ": not UTF-8"),
        (
            b"question,answer\na,b\n",
            ":2: layout not recognised: the record has the fields question, answer",
        ),
        (b"prompt,completion\n", ": holds no example"),
    ],
)
def test_bad_csv(tmp_path, settings, content, said):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        open_data(replace(settings, path=str(tmp_path / "a.csv")), tokenizer(), seed=0, log=quiet)
    assert f"a.csv{said}" in str(error.value)


def test_missing_file_names_the_nearest(tmp_path, settings):
    write(tmp_path / "training.jsonl", {"prompt": "a", "completion": "b"})
    with pytest.raises(
        DataError, match=r"trainin\.jsonl: no such file; did you mean .*training\.jsonl"
    ):
        open_data(
            replace(settings, path=str(tmp_path / "trainin.jsonl")), tokenizer(), seed=0, log=quiet
        )
    with pytest.raises(DataError, match=r"no such file; there is no folder"):
        open_data(
            replace(settings, path=str(tmp_path / "none" / "a.jsonl")),
            tokenizer(),
            seed=0,
            log=quiet,
        )
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt: unknown extension '\.txt'; .*\.jsonl"):
        open_data(replace(settings, path=str(tmp_path / "a.txt")), tokenizer(), seed=0, log=quiet)
    with pytest.raises(DataError, match="no-such-name/at-all: neither a file here nor a data set"):
        open_data(replace(settings, path="no-such-name/at-all"), tokenizer(), seed=0, log=quiet)


def test_field_maps(settings):
    write(Path(settings.path), {"question": "a", "answer": "b"})
    with pytest.raises(ConfigError, match=r"data\.fields\.promt: .*did you mean prompt"):
        open_data(replace(settings, fields={"promt": "question"}), tokenizer(), seed=0, log=quiet)
    with pytest.raises(
        DataError,
        match=r"train\.jsonl:1: field 'ask' is missing \(data\.fields\.prompt.*question, answer",
    ):
        open_data(
            replace(settings, fields={"prompt": "ask", "completion": "answer"}),
            tokenizer(),
            seed=0,
            log=quiet,
        )


def test_what_templates_refuse(settings):
    write(Path(settings.path), {"messages": [{"role": "system", "content": "Be brief."}, *TALK]})
    gemma = tokenizer(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>")
    with pytest.raises(
        DataError,
        match=r"train\.jsonl:1: the tokenizer's chat template refuses .*System role not supported",
    ):
        open_data(settings, gemma, seed=0, log=quiet)
    with pytest.raises(
        DataError,
        match=r"train\.jsonl:1: the plain template takes one user message.*not system, user, assistant, user",
    ):
        open_data(settings, tokenizer(None), seed=0, log=quiet)
    with pytest.raises(
        ConfigError, match=r"data\.template=chat: the tokenizer has no chat template"
    ):
        open_data(replace(settings, template="chat"), tokenizer(None), seed=0, log=quiet)


def test_the_plain_template_puts_a_system_message_first(settings):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    write(Path(settings.path), {"messages": turns})
    plain = tokenizer(None)
    data, _ = open_data(replace(settings, prompt_template="{prompt} "), plain, seed=0, log=quiet)
    ids, mask = data.example(0)
    assert plain.decode(ids[~mask]).strip() == "Be brief.\n\n2 + 2?"
    assert plain.decode(ids[mask][:-1]) == "4"


# --- length limit, sources, held-out data


def test_overlong_examples(settings):
    tok = tokenizer(None)
    settings.max_length = 8
    write(
        Path(settings.path),
        {"prompt": "abc", "completion": "def"},  # 3 + newline + 3 + end = 8 tokens
        {"prompt": "abc", "completion": "defghi"},
        {"prompt": "abcdefghi", "completion": "j"},  # its answer lies beyond the limit
    )
    lines: list[str] = []
    data, _ = open_data(settings, tok, seed=0, log=lines.append)
    assert data.lengths.tolist() == [8]
    assert (
        "train: 1 examples, 8 tokens, 4 of them learned, 2 examples dropped as too long"
        in lines[-1]
    )
    data, _ = open_data(replace(settings, overlong="truncate"), tok, seed=0, log=lines.append)
    assert data.lengths.tolist() == [8, 8]
    assert data.target_tokens.tolist() == [4, 4]
    assert learned(data, tok, 1) == "defg"
    assert (
        "2 examples, 16 tokens, 8 of them learned, 1 examples dropped as too long, 1 examples truncated"
        in lines[-1]
    )
    with pytest.raises(
        DataError,
        match=r"train\.jsonl:2: the example has 11 tokens, more than data\.max_length=8 \(so have 2",
    ):
        open_data(replace(settings, overlong="error"), tok, seed=0, log=quiet)
    with pytest.raises(DataError, match=r"no example is left: all 3 .*data\.max_length=7"):
        open_data(replace(settings, max_length=7), tok, seed=0, log=quiet)


def test_several_sources(tmp_path, settings):
    tok = tokenizer()
    first = write(
        tmp_path / "first.jsonl", *[{"prompt": "a", "completion": str(i)} for i in range(3)]
    )
    second = write(tmp_path / "second.jsonl", *[{"q": "b", "a": str(i)} for i in range(2)])
    sources = [
        SourceConfig(path=first, weight=2.0),
        SourceConfig(name="quiz", path=second, fields={"prompt": "q", "completion": "a"}),
    ]
    lines: list[str] = []
    data, _ = open_data(replace(settings, path="", sources=sources), tok, seed=0, log=lines.append)
    assert data.names == ["first", "quiz"]
    assert data.weights == [2.0, 1.0]
    assert data.source.tolist() == [0, 0, 0, 1, 1]
    assert [learned(data, tok, i) for i in range(5)] == [f"{i}<|im_end|>" for i in (0, 1, 2, 0, 1)]
    assert data.where(4) == f"{second}:2"
    assert len(lines) == 2
    assert lines[0].endswith("weight 2")
    sources[1].name = "first"
    with pytest.raises(ConfigError, match=r"data\.sources\[1\]\.name=first"):
        open_data(replace(settings, path="", sources=sources), tok, seed=0, log=quiet)


def test_held_out_examples(tmp_path, settings):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": f"{i:02}"} for i in range(20)])
    whole, _ = open_data(settings, tok, seed=0, log=quiet)

    def split(seed: int):
        train, held_out = open_data(
            replace(settings, validation_examples=5), tok, seed=seed, log=quiet
        )
        assert held_out is not None
        return [
            [learned(part, tok, i) for i in range(len(part))] for part in (train, held_out)
        ], train

    (train, held_out), kept = split(seed=1)
    assert len(held_out) == 5
    assert sorted(train + held_out) == [learned(whole, tok, i) for i in range(20)]
    assert split(seed=1)[0] == [train, held_out]
    assert split(seed=2)[0][1] != held_out
    assert kept.fingerprint != whole.fingerprint
    assert kept.fingerprint == split(seed=1)[1].fingerprint
    with pytest.raises(ConfigError, match=r"data\.validation_examples=20: there are only 20"):
        open_data(replace(settings, validation_examples=20), tok, seed=0, log=quiet)
    other = write(tmp_path / "held.jsonl", {"prompt": "a", "completion": "other"})
    _, held = open_data(replace(settings, validation_path=other), tok, seed=0, log=quiet)
    assert held is not None
    assert [learned(held, tok, 0)] == ["other<|im_end|>"]
    assert held.names == ["held"]


# --- the cache


def test_second_open_reads_the_cache(settings):
    tok = tokenizer()
    write(
        Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(2500)]
    )  # more than one record batch
    first, _ = open_data(settings, tok, seed=0, log=quiet)
    folder = next(Path(settings.cache_dir).iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    # what other code does with a tokenizer leaves traces in it, and must not cost the cache
    tok(["a", "bcd"], padding=True, truncation=True, max_length=4)
    second, _ = open_data(replace(settings, max_length=30), tok, seed=1, log=quiet)
    assert [path.name for path in Path(settings.cache_dir).iterdir()] == [folder.name]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for i in (0, 999, 1000, 2499):
        assert learned(second, tok, i) == f"{i}<|im_end|>"
    assert first.fingerprint == second.fingerprint
    assert len(datasets.Dataset.from_file(str(folder / "tokens.arrow"))) == 2500


@pytest.mark.parametrize(
    "change", ["data", "tokenizer", "chat template", "loss_on", "fields", "prompt template"]
)
def test_what_changes_tokens_is_tokenised_again(settings, change):
    write(Path(settings.path), {"prompt": "a", "completion": "b", "other": "c"})
    template = None if change == "prompt template" else CHATML
    open_data(settings, tokenizer(template), seed=0, log=quiet)
    tok, changed = tokenizer(template), settings
    if change == "data":
        write(Path(settings.path), {"prompt": "a", "completion": "B", "other": "c"})
    elif change == "tokenizer":
        tok.add_tokens(["ab"])
    elif change == "chat template":
        tok.chat_template = "Talk:" + CHATML
    elif change == "loss_on":
        changed = replace(settings, loss_on="all")
    elif change == "fields":
        changed = replace(settings, fields={"completion": "other"})
    else:
        changed = replace(settings, prompt_template="Q: {prompt}")
    open_data(changed, tok, seed=0, log=quiet)
    assert len(list(Path(settings.cache_dir).iterdir())) == 2


def test_two_at_once_leave_one_cache(settings):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(1500)])
    opened: list = []
    threads = [
        threading.Thread(
            target=lambda: opened.append(open_data(settings, tok, seed=0, log=quiet)[0])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [learned(data, tok, 1499) for data in opened] == ["1499<|im_end|>"] * 4
    assert len(list(Path(settings.cache_dir).iterdir())) == 1


def test_what_a_killed_process_left_is_ignored(settings):
    tok = tokenizer()
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    open_data(settings, tok, seed=0, log=quiet)
    folder = next(Path(settings.cache_dir).iterdir())
    os.rename(folder, f"{folder}.0123")  # as if killed before the rename
    data, _ = open_data(settings, tok, seed=0, log=quiet)
    assert learned(data, tok) == "b<|im_end|>"


def aged(path: str) -> None:
    """Wait until the file has been as it is for longer than `SETTLED`, which the caller has made short."""
    while time.time() - os.stat(path).st_ctime < 0.05:
        time.sleep(0.01)


def test_the_hash_of_a_file_is_noted_until_the_file_changes(settings, monkeypatch):
    monkeypatch.setattr("adaptsft.data.sources.SETTLED", 0.03)
    tok = tokenizer()
    path = write(Path(settings.path), {"prompt": "a", "completion": "b"})
    aged(path)
    first, _ = open_data(settings, tok, seed=0, log=quiet)
    (note,) = (Path(settings.cache_dir) / "hashes").iterdir()
    assert note.read_text() == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with (
        monkeypatch.context() as patch
    ):  # the note is what is read: without it, there is no way to the hash
        patch.delattr("hashlib.file_digest")
        again, _ = open_data(settings, tok, seed=0, log=quiet, verify=False)
    assert again.fingerprint == first.fingerprint
    # the same size and, as `cp -p` or `touch -r` would have it, the same time of modification
    before = os.stat(path)
    write(Path(path), {"prompt": "a", "completion": "c"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )
    changed, _ = open_data(settings, tok, seed=0, log=quiet)
    assert learned(changed, tok) == "c<|im_end|>"
    # damaged notes are not believed
    aged(path)
    open_data(settings, tok, seed=0, log=quiet)
    for damaged in (Path(settings.cache_dir) / "hashes").iterdir():
        damaged.write_bytes(b"\xff" * 64)
    assert open_data(settings, tok, seed=0, log=quiet)[0].fingerprint == changed.fingerprint


def test_the_hash_of_a_file_just_written_is_not_noted(settings):
    """It could be written again within the granularity of the file system's clock."""
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    open_data(settings, tokenizer(), seed=0, log=quiet)
    assert not (Path(settings.cache_dir) / "hashes").exists()


@pytest.mark.parametrize("name", ["tokens.arrow", "sizes.npy"])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.8])
def test_damaged_cache_is_an_error_that_says_what_to_delete(settings, name, keep):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(1100)])
    open_data(settings, tok, seed=0, log=quiet)
    folder = next(Path(settings.cache_dir).iterdir())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=rf"{folder}: .*delete this folder"):
        open_data(settings, tok, seed=0, log=quiet)


@pytest.mark.parametrize("name", ["tokens.arrow", "sizes.npy"])
def test_a_flipped_bit_in_the_cache_is_noticed(settings, name):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(1100)])
    open_data(settings, tok, seed=0, log=quiet)
    file = next(Path(settings.cache_dir).iterdir()) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"sha256.*delete this folder"):
        open_data(settings, tok, seed=0, log=quiet)


def test_progress_has_a_share_and_an_eta(settings, monkeypatch):
    monkeypatch.setattr("adaptsft.data.cache.PROGRESS_EVERY", 0.0)
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(2000)])
    lines: list[str] = []
    open_data(settings, tokenizer(), seed=0, log=lines.append)
    assert lines[0].startswith("tokenising train: 1,000 examples, ")
    assert "ETA" in lines[0]
    assert "100%" in lines[1]


def test_a_cache_that_cannot_be_written(tmp_path, settings):
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir="):
        open_data(
            replace(settings, cache_dir=str(tmp_path / "file")), tokenizer(), seed=0, log=quiet
        )


def test_arrays(settings):
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    data, _ = open_data(settings, tokenizer(), seed=0, log=quiet)
    ids, mask = data.example(0)
    assert (ids.dtype, mask.dtype) == (np.int64, np.bool_)
    assert (data.lengths.dtype, data.target_tokens.dtype, data.source.dtype) == (
        np.int32,
        np.int32,
        np.int16,
    )
