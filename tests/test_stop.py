"""A model that was trained on a chat template stops where the template's turns end, whatever its
eos_token is: in transformers' generate(), chat, the evaluators, and tasks during training."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import chat, export
from adaptsft.model.tiny import CHATML, make_tiny_model
from adaptsft.train import train
from tests.data.records import GEMMA, LLAMA3
from tests.data.templates import MISTRAL, PHI, made
from tests.evals.pipeline import evals, samples_of
from tests.runs import metrics_of, small_config

CAPITALS = {"Capital of Peru?": "Lima.", "Capital of Chile?": "Santiago."}
STOPPED = {question: (answer, "stop") for question, answer in CAPITALS.items()}
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


def trained(folder: Path, tokenizer, arch: str = "qwen2", **settings) -> Path:
    """A run folder. The base model has the tokenizer's eos_token in all of its files."""
    model = make_tiny_model(folder / "model", arch, tokenizer=tokenizer)
    generation = json.loads((model / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
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
        **settings,
    )
    train(config)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """As Qwen2.5's base models: the template ends its turns with another token than eos_token."""
    return trained(tmp_path_factory.mktemp("chatml"), made(CHATML))


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


def generated(final: Path) -> dict[str, str]:
    """{question: answer with its special tokens}, by generate() of transformers."""
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer, found = AutoTokenizer.from_pretrained(final), {}
    for question in CAPITALS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = model.generate(**prompt, max_new_tokens=30, do_sample=False)
        found[question] = tokenizer.decode(ids[0, prompt.input_ids.shape[1] :])
    return found


def ended(end: str) -> dict[str, str]:
    return {question: answer + end for question, answer in CAPITALS.items()}


def test_generate_of_transformers_stops(run):
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    ends = [tokenizer.convert_tokens_to_ids(end) for end in ("<|im_end|>", "<|endoftext|>")]
    assert json.loads((run / "final/generation_config.json").read_text())["eos_token_id"] == ends
    assert generated(run / "final") == ended("<|im_end|>")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        pytest.param(LLAMA3, "<|eot_id|>", id="llama3"),
        pytest.param(GEMMA, "<end_of_turn>", id="gemma", marks=pytest.mark.nightly),
        pytest.param(PHI, "<|end|>", id="phi", marks=pytest.mark.nightly),
        pytest.param(MISTRAL, "</s>", id="mistral", marks=pytest.mark.nightly),
    ],
)
def test_so_do_models_of_other_families(tmp_path, template, end, capsys):
    eos = "</s>" if template is MISTRAL else "<|endoftext|>"
    run = trained(tmp_path, made(template, eos, bos_token="<bos>"), "llama")
    assert {key: text.lstrip() for key, text in generated(run / "final").items()} == ended(end)
    assert {key: (text.strip(), why) for key, (text, why) in answers(tmp_path, run).items()} == (
        STOPPED
    )
    assert chat.main([str(run), "--prompt", "Capital of Peru?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip().endswith("Lima.")


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
    run = trained(tmp_path, made(SPELLED))
    said = capsys.readouterr().err
    assert (
        "warning: the chat template ends an answer with '</turn>', which is no added token" in said
    )
    assert answers(tmp_path, run) == STOPPED
    assert chat.main([str(run), "--prompt", "Capital of Peru?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.endswith("Lima.\n")
    last = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])["tasks"]["capitals"]
    assert last["truncated"] == 0.0


def test_an_end_that_was_added_as_a_token_stops_all_and_is_in_no_answer(tmp_path, capsys):
    """model.add_tokens adds tokens that the tokenizer does not call special."""
    run = trained(tmp_path, made(SPELLED), model__add_tokens=["</turn>"])
    assert "warning" not in capsys.readouterr().err
    assert generated(run / "final") == ended("</turn>")
    assert answers(tmp_path, run) == STOPPED
    assert chat.main([str(run), "--prompt", "Capital of Peru?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.endswith("Lima.\n")
