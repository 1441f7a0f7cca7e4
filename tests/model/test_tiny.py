import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.errors import ConfigError, DataError
from adaptsft.model.tiny import (
    ARCHITECTURES,
    bpe_tokenizer,
    char_tokenizer,
    make_tiny_model,
    texts_of,
)
from tests.conftest import REPO

TEXT = "Grüße, 世界! 3 < 4\n\ttabs, two  spaces, it's 2026."


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loads_runs_and_generates(tiny_model, arch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(arch))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(arch))
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings == arch.startswith("gemma")
    ids = tokenizer("The quick", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= ids.shape[1] + 3


@pytest.mark.parametrize("tied", [True, False])
def test_tied_is_a_choice(tmp_path, tied):
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path, "qwen2", tied=tied))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_same_arguments_same_files(tmp_path):
    files = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # the state of the global generator must not matter
        folder = make_tiny_model(tmp_path / name, seed=seed)
        files[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files["a"] == files["b"]
    assert files["a"]["model.safetensors"] != files["c"]["model.safetensors"]


def test_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_tiny_model(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_bpe_knows_chatml(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(chat).input_ids.count(tokenizer.eos_token_id) == 1


def test_char_tokenizer_round_trips_through_a_folder(tmp_path):
    make_tiny_model(tmp_path, tokenizer=char_tokenizer("abc =\n", tags=["<copy>"]))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "<copy>ab c=\na"
    ids = tokenizer(text).input_ids
    assert len(ids) == 8  # the tag is one token, every other character one
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    with pytest.raises(Exception, match="UNK"):
        tokenizer("z")


def test_bpe_learns_from_the_data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"messages": [{"content": "zyzzyva zyzzyva zyzzyva"}]}\n\n{"n": 3, "answer": "zyzzyva"}\n'
    )
    texts = list(texts_of(path))
    assert texts == ["zyzzyva zyzzyva zyzzyva", "zyzzyva"]
    tokenizer = bpe_tokenizer(texts, vocab_size=300)
    assert len(tokenizer("zyzzyva").input_ids) == 1
    assert len(tokenizer("quagga").input_ids) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "gpt5"}, "gpt5.*llama"),
        ({"hidden": 60, "heads": 8}, "hidden=60.*heads=8"),
        ({"hidden": 12, "heads": 4}, "even head size"),
    ],
)
def test_impossible_model_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        make_tiny_model(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_qwen2_with_characters_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="qwen3 or llama"):
        make_tiny_model(tmp_path, "qwen2", tokenizer=char_tokenizer("abc"))


def test_bad_data_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": "b"}\n{"a": \n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: not JSON"):
        list(texts_of(path))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        list(texts_of(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="259"):
        bpe_tokenizer(["a"], vocab_size=100)


def test_command_line(tmp_path, shared_data):
    lines = (shared_data / "math" / "gsm8k_train.jsonl").read_text().splitlines()[:500]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines))
    command = [
        sys.executable,
        "tools/make_tiny_model.py",
        "--arch",
        "qwen2",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--tied",
    ]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "qwen2" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings
    assert model.config.vocab_size == 2048
