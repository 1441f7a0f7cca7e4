"""What the tests of the data share: conversations, chat templates, a tokenizer, record files."""

import json
from dataclasses import replace
from pathlib import Path

from tokenizers.processors import TemplateProcessing

from adaptsft.config.schema import DataConfig
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.model.tiny import CHATML, bpe_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# like Qwen3's: only the last turn keeps its thoughts
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "Two plus two?"},
    {"role": "assistant", "content": "It is 4.\n"},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "  Five, ünder 10."},
]
USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


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


def learned(data, tok, i: int = 0) -> str:
    ids, mask = data.example(i)
    return tok.decode(ids[mask])


def quiet(line: str) -> None:
    pass


def shards(folder: Path, counts=(3, 1, 2)) -> list[str]:
    """Files named so that their order is not that of their creation; their examples are numbered
    through."""
    folder.mkdir()
    numbers = iter(range(sum(counts)))
    contents = [
        [{"prompt": "a", "completion": f"{next(numbers):02}"} for _ in range(count)]
        for count in counts
    ]
    return [write(folder / f"part-{i}.jsonl", *contents[i]) for i in reversed(range(len(counts)))][
        ::-1
    ]


def opened(config: DataConfig, tok=None, **changes) -> TokenizedData:
    """The training data of the configuration with these changes."""
    return open_data(replace(config, **changes), tok or tokenizer(), seed=0, log=quiet)[0]
