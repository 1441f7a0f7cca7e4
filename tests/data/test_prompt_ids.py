"""A prompt has the very ids in training that generation starts from: real chat templates, several
shapes of conversation, byte-level and SentencePiece tokenizers."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from adaptsft.data.encoding import Encoder
from adaptsft.data.layout import Conversation
from adaptsft.data.template import Template
from adaptsft.errors import DataError
from tests.data import real_templates

FAMILIES = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "llama3_1", "llama3_2", "gemma")
FAMILIES += ("gemma3", "phi3", "phi3_5", "cohere", "cohere2", "gptoss", "lfm2", "glm4moe")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_tide",
            "description": "Height of the tide.",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "get_tide", "arguments": {"port": "Brest"}}}
SHAPES = {
    "one turn": [("user", "How high is the tide?"), ("assistant", "It is 4.2 m.")],
    "two turns": [
        ("user", "Write f."),
        ("assistant", "def f():\n    return 4"),
        ("user", "Why?\n\n"),
        ("assistant", "The tide is ünder 4."),
    ],
    "tools": [
        ("user", "How high is the tide at Brest?"),
        ("call", ""),
        ("tool", "4.2 m"),
        ("assistant", "It is 4.2 m."),
    ],
}
# templates that show no calls, or take no tools
WITHOUT_TOOLS = {"llama3", "gemma", "gemma3", "phi3", "phi3_5", "cohere", "cohere2", "lfm2"}
# templates that rewrite earlier turns when the conversation goes on
REWRITES = {"qwen3", "gptoss"}


def conversation(shape: str) -> Conversation:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call00001", **CALL}]}
        if role == "call"
        else {"role": role, "content": content}
        for role, content in SHAPES[shape]
    ]
    tools = TOOLS if shape == "tools" else []
    return Conversation(messages, [1.0] * len(messages), tools)


def made(kind: str, family: str):
    source = real_templates.template_of(family)
    if kind == "byte-level":
        return real_templates.byte_level(source)
    return real_templates.sentencepiece(source, everywhere=kind == "Llama 2")


@pytest.mark.parametrize("kind", ["byte-level", "Llama 2", "Mistral"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_in_training_is_the_prompt_of_generation(settings, kind, family, shape):
    talk = conversation(shape)
    if shape == "tools" and family in WITHOUT_TOOLS:
        with pytest.raises(DataError, match=r"get_tide|refuses the conversation"):
            Template(made(kind, family), settings).examples(talk)
        return
    settings.loss_on = "each_turn" if family in REWRITES else "assistant"
    tokenizer = made(kind, family)
    template = Template(tokenizer, settings)
    turns = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
    encoded = Encoder(tokenizer).encode(template.examples(talk))
    assert len(encoded) == (len(turns) if settings.loss_on == "each_turn" else 1)
    for number, i in enumerate(turns):
        ids, weights = encoded[number if len(encoded) > 1 else 0]
        prompt = template.prompt_ids(talk.messages[:i], talk.tools)
        assert ids[: len(prompt)].tolist() == prompt
        assert weights[len(prompt)] == 1
        assert weights[len(prompt) - 1] == 0


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7"])
def test_mistrals_own_sentencepiece_models(settings, tmp_path, version):
    folder = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    pytest.importorskip("sentencepiece")
    (model,) = folder.glob(f"*.model.{version}")
    shutil.copy(model, tmp_path / "tokenizer.model")
    named = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | {"unk_token": "<unk>"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
        "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    talk, template = conversation("two turns"), Template(tokenizer, settings)
    ids, weights = Encoder(tokenizer).encode(template.examples(talk))[0]
    for i in (1, 3):
        prompt = template.prompt_ids(talk.messages[:i])
        assert ids[: len(prompt)].tolist() == prompt and weights[len(prompt)] == 1
