"""`adaptsft.preview`, as a user sees it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from adaptsft.preview import histogram, main
from tests.data.records import ASSISTANT, TALK, USER, write


@pytest.fixture
def command(tmp_path, tiny_model):
    """Arguments of a run over two sources, whose model's weights are gone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    write(tmp_path / "talk.jsonl", {"messages": TALK, "note": 1}, {"messages": [USER, ASSISTANT]})
    half = {**ASSISTANT, "weight": 0.5}
    write(tmp_path / "half.jsonl", *[{"messages": [USER, half]}] * 5)
    sources = [{"path": str(tmp_path / f"{name}.jsonl")} for name in ("talk", "half")]
    return [
        f"model.path={folder}",
        f"data.sources={json.dumps(sources)}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]


def test_it_shows_what_is_learned_without_weights(command, tmp_path, capsys):
    assert main([*command, "--examples", "1"]) == 0
    said = capsys.readouterr().out
    assert "talk: columns that nothing reads: note" in said
    assert "half: 5 examples" in said
    assert "learned: data.loss_on=assistant" in said
    assert "a turn ends with: <|im_end|> (" in said
    assert f"talk, {tmp_path / 'talk.jsonl'}:1: " in said
    assert "<|im_start|>assistant\n⟦It is 4.\n<|im_end|>⟧\n<|im_start|>user\nAnd three?" in said
    assert "⟦So.<|im_end|>⟧ (weight 0.5)" in said
    assert said.count("half.jsonl:") == 1
    assert not Path("preview").exists()


def test_objects_for_programs(command, tmp_path, capsys):
    assert main([*command, "--json", "--all"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 1, 2, 3, 4, 5]
    first = lines[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert first["source"] == "talk" and first["file"] == str(tmp_path / "talk.jsonl")
    assert first["learned_text"] == ["It is 4.\n<|im_end|>", "  Five, ünder 10.<|im_end|>"]
    assert tokenizer.decode(first["ids"]) == first["text"]
    learned = [
        i for i, is_learned in zip(first["ids"], first["learned"], strict=True) if is_learned
    ]
    assert tokenizer.decode(learned) == "".join(first["learned_text"])
    assert first["stop_ids"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert "weights" not in first and set(lines[2]["weights"]) == {0.0, 0.5}


def test_errors_are_those_of_training(command, tmp_path, capsys):
    write(tmp_path / "half.jsonl", {"messages": [USER]})
    assert main(command) == 3
    assert "half.jsonl:1: field 'messages' has no assistant turn" in capsys.readouterr().err
    assert main([*command, "data.los_on=all"]) == 2
    assert "did you mean data.loss_on" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--examples", "-1"])


def test_a_reader_that_has_seen_enough_ends_it_quietly(command):
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "adaptsft.preview", *command])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} --all | head -1"], capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout.startswith("talk: columns")


def test_histogram_counts_every_example():
    import numpy as np

    for lengths in ([5], [3, 4], [2, 2, 900], list(range(10, 700, 7))):
        lines = histogram(np.array(lengths))
        assert sum(int(line.split()[-1]) for line in lines) == len(lengths)
        assert len(lines) <= 12
