"""A model that was trained on a chat template stops where the template's turns end, whatever its
eos_token is: in transformers' generate(), chat, the evaluators, and tasks during training."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import chat, export
from adaptsft.model.tiny import bpe_tokenizer, make_tiny_model
from adaptsft.train import train
from tests.evals.pipeline import evals, samples_of
from tests.runs import metrics_of, small_config

CAPITALS = {"Capital of Peru?": "Lima.", "Capital of Chile?": "Santiago."}
TASK = """
title: Capitals
group: Capitals
sources: [{file: capitals.jsonl, fields: {question: question, gold: answer}}]
items: 2
prompt: {user: "{question}"}
decoding: {max_tokens: 30}
graders: [math-robust]
columns: {Capitals: math-robust}
"""
# a template of a tokenizer that does not have its end as one token
SPELLED = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def trained(folder: Path, **tokenizer) -> Path:
    """A run folder. The base model is as Qwen2.5's: its turns end otherwise than its eos_token."""
    made = bpe_tokenizer([*CAPITALS, *CAPITALS.values()], 320, **tokenizer)
    made.eos_token = "<|endoftext|>"
    model = make_tiny_model(folder / "model", "qwen2", tokenizer=made)
    generation = json.loads((model / "generation_config.json").read_text())
    assert (
        generation["eos_token_id"] == made.eos_token_id != made.convert_tokens_to_ids("<|im_end|>")
    )
    pairs = [{"question": asked, "answer": answer} for asked, answer in CAPITALS.items()]
    for name in ("data.jsonl", "capitals.jsonl"):
        (folder / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "capitals.yaml").write_text(TASK)
    config = small_config(
        folder,
        model,
        data__fields="{prompt: question, completion: answer}",
        train__max_steps=80,
        train__global_batch_size=2,
        train__lr=3e-3,
        checkpoint__every=0,
        log__every=20,
        eval__tasks=[str(folder / "capitals.yaml")],
        eval__data_dir=folder,
        eval__max_tokens=30,
    )
    train(config)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("chatml"))


def answers(folder: Path, model: Path, *options: str) -> dict[str, tuple[str, str]]:
    """{question: (answer, why it ended)} of the evaluators."""
    out = folder / "evals"
    shutil.rmtree(out, ignore_errors=True)
    task = folder / "capitals.yaml"
    assert not evals(
        "generate", "--model", model, "--tasks", task, "--data-dir", folder, "--out", out, *options
    )
    return {
        list(CAPITALS)[int(row["item_id"])]: (row["output"], row["finish_reason"])
        for row in samples_of(out / "capitals" / "greedy").values()
    }


STOPPED = {question: (answer, "stop") for question, answer in CAPITALS.items()}


def test_generate_of_transformers_stops(run):
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    ends = [tokenizer.convert_tokens_to_ids(end) for end in ("<|im_end|>", "<|endoftext|>")]
    assert json.loads((run / "final/generation_config.json").read_text())["eos_token_id"] == ends
    for question, answer in CAPITALS.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = model.generate(**prompt, max_new_tokens=30, do_sample=False)
        assert tokenizer.decode(ids[0, prompt.input_ids.shape[1] :]) == f"{answer}<|im_end|>"


def test_chat_stops(run, capsys):
    for question, answer in CAPITALS.items():
        assert chat.main([str(run), "--prompt", question, "--temperature", "0"]) == 0
        assert capsys.readouterr().out == f"{answer}\n"


def test_the_evaluators_stop(run):
    assert answers(run.parent, run) == STOPPED


def test_tasks_during_training_stop(run):
    last = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])["tasks"]["capitals"]
    assert [sample["output"] for sample in last["samples"]] == list(CAPITALS.values())
    assert last["truncated"] == 0.0


def test_the_exported_checkpoint_stops(run, tmp_path):
    assert export.main([str(run), str(tmp_path / "out")]) == 0
    exported, final = (
        (folder / "generation_config.json").read_text()
        for folder in (tmp_path / "out", run / "final")
    )
    assert exported == final


def test_a_base_model_asked_in_our_chatml_stops(run, tmp_path):
    """Its files do not say where: neither generation_config.json nor a chat template. Which ends
    were added is part of what samples are known by."""
    base = tmp_path / "base"
    shutil.copytree(run / "final", base)
    (base / "generation_config.json").unlink()
    (base / "chat_template.jinja").unlink()
    assert answers(run.parent, base, "--template", "chatml") == STOPPED
    written = json.loads((run.parent / "evals/capitals/greedy/run.json").read_text())
    assert written["backend"]["stop"] == ["<|im_end|>"]
    assert chat.load(str(base))[2].kind == "plain"


def test_the_end_of_a_turn_can_keep_nll(run):
    """-p with objective.exempt=eos: the weight of the token that ends a turn is 1."""
    weights = {}
    for exempt in ("none", "eos"):
        config = small_config(
            run.parent,
            run.parent / "model",
            exempt,
            data__fields="{prompt: question, completion: answer}",
            objective__name="neg_p",
            objective__exempt=exempt,
            train__max_steps=1,
        )
        train(config)
        weights[exempt] = metrics_of(config)[0]
    row = weights["eos"]
    share = row["sequences"] / row["tokens"]
    assert row["weight"] == pytest.approx(weights["none"]["weight"] + share, rel=0.05)


def test_an_end_that_is_no_token_is_said_and_ends_what_is_ours(tmp_path, capsys):
    run = trained(tmp_path, chat_template=SPELLED)
    said = capsys.readouterr().err
    assert (
        "warning: the chat template ends an answer with '</turn>', which is not one token" in said
    )
    assert answers(tmp_path, run) == STOPPED
    assert chat.main([str(run), "--prompt", "Capital of Peru?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.endswith("Lima.\n")
    last = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])["tasks"]["capitals"]
    assert last["truncated"] == 0.0
