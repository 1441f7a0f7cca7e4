"""The whole path in one process: a run learns, records itself, and refuses what it cannot do before
anything is written."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import chat, export, train as trainer
from adaptsft.errors import ConfigError, NonFiniteError
from adaptsft.objectives.base import register
from adaptsft.objectives.library.functions import nll
from adaptsft.train import main, train
from tests.runs import metrics_of, saved_state, small_config, write_data

nan_at: set[int] = set()
calls = 0


@register("nll_with_accidents")
def nll_with_accidents(logp):
    """NLL whose weight is NaN in the calls of `nan_at`, as an overflow somewhere would make it."""
    global calls
    calls += 1
    loss, s = nll(logp)
    return (loss, s * float("nan")) if calls in nan_at else (loss, s)


@pytest.fixture
def model(tiny_model) -> Path:
    return tiny_model("llama", tied=False)


def test_a_run_learns_and_leaves_what_it_promises(tmp_path, model):
    config = small_config(
        tmp_path,
        model,
        train__max_steps=30,
        checkpoint__every=0,
        data__validation_examples=4,
        eval__every=10,
        log__trackers=["tensorboard"],
        log__every=7,
    )
    result = train(config)
    run = Path(config.run_dir)
    rows = metrics_of(config)
    assert [row["step"] for row in rows] == list(range(1, 31)), (
        "one object per step, whatever log.every"
    )
    assert rows[-1]["nll"] < rows[0]["nll"] - 1
    assert rows[0]["loss"] == rows[0]["nll"], "the objective is NLL"
    assert {"step", "loss", "nll", "mean_p", "alpha", "grad_norm", "lr", "tokens"} <= rows[0].keys()
    assert result["nll"] == rows[-1]["nll"]
    evaluations = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations] == [0, 10, 20, 30]
    assert evaluations[-1]["nll"] < evaluations[0]["nll"] - 1
    assert result["held_out"]["nll"] == evaluations[-1]["nll"]
    assert list((run / "tensorboard").glob("events.*"))
    environment = json.loads((run / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])  # torch adds +cu130, say
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000030"]


def test_tensorboard_holds_the_scalars_and_the_histogram_of_p(tmp_path, model):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(
        tmp_path, model, log__trackers=["tensorboard"], data__validation_examples=4, eval__every=3
    )
    train(config)
    events = EventAccumulator(
        str(Path(config.run_dir) / "tensorboard"), size_guidance={"histograms": 0}
    )
    events.Reload()
    assert {
        "train/loss",
        "train/nll",
        "train/mean_p",
        "train/alpha",
        "train/grad_norm",
        "train/lr",
        "eval/nll",
    } <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/nll")] == list(range(1, 7))
    histogram = events.Histograms("p/data")[-1].histogram_value
    assert histogram.num == metrics_of(config)[-1]["tokens"]
    assert histogram.sum / histogram.num == pytest.approx(metrics_of(config)[-1]["mean_p"], rel=0.1)


def test_the_same_run_again_is_bitwise_the_same(tmp_path, model):
    first, second = (small_config(tmp_path, model, name) for name in ("first", "second"))
    train(first)
    train(second)
    assert metrics_of(first) == metrics_of(second)
    state = saved_state(Path(first.run_dir) / "checkpoints" / "step_00000006")
    for name, tensor in saved_state(Path(second.run_dir) / "checkpoints" / "step_00000006").items():
        assert torch.equal(tensor, state[name])


def test_packing_changes_nothing(tmp_path, model):
    packed, padded = (
        small_config(tmp_path, model, "packed"),
        small_config(tmp_path, model, "padded", data__packing=False, train__micro_batch_size=3),
    )
    train(packed)
    train(padded)
    for ours, theirs in zip(metrics_of(packed), metrics_of(padded), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_neg_p_and_alpha_one_are_one_gradient_and_two_losses(tmp_path, model):
    runs = {}
    for name, settings in {"neg_p": {}, "dft": {}, "alpha": {"objective__alpha": 1.0}}.items():
        config = small_config(tmp_path, model, name, objective__name=name, **settings)
        train(config)
        runs[name] = metrics_of(config)
    for row, dft, alpha in zip(*runs.values(), strict=True):
        assert (
            row["grad_norm"]
            == pytest.approx(dft["grad_norm"], rel=1e-5)
            == pytest.approx(alpha["grad_norm"], rel=1e-5)
        )
        assert row["loss"] == pytest.approx(-row["mean_p"], rel=1e-5)
        assert alpha["loss"] == pytest.approx(1 - alpha["mean_p"], rel=1e-5)
        assert dft["loss"] > 0
        assert row["nll"] == pytest.approx(dft["nll"], rel=1e-5)


def test_schedules_reach_the_metrics(tmp_path, model):
    config = small_config(
        tmp_path, model, objective__name="alpha", controller__name="linear", controller__end=0.5
    )
    train(config)
    assert [row["alpha"] for row in metrics_of(config)] == pytest.approx(
        [i * 0.1 for i in range(6)]
    )


def test_kept_normaliser_divides_by_the_tokens_above_the_threshold(tmp_path, model):
    shared = {
        "objective__name": "threshold",
        "objective__lower_quantile": 0.5,
        "train__max_steps": 1,
        "train__clip_norm": 0.0,
    }
    rows = {}
    for normalizer in ("all", "kept"):
        config = small_config(
            tmp_path, model, normalizer, objective__normalizer=normalizer, **shared
        )
        train(config)
        rows[normalizer] = metrics_of(config)[0]
    share = rows["kept"]["kept"] / rows["kept"]["tokens"]
    assert share == pytest.approx(0.5, abs=0.1), (
        "the step's tokens are a fifth of those the quantile was measured on"
    )
    assert rows["kept"]["loss"] == pytest.approx(rows["all"]["loss"] / share, rel=1e-9)
    assert rows["kept"]["grad_norm"] == pytest.approx(rows["all"]["grad_norm"] / share, rel=1e-5)
    assert rows["kept"]["lower"] == rows["all"]["lower"] > 0


def test_sources_are_told_apart_and_have_their_own_quantiles(tmp_path, model):
    write_data(tmp_path / "a.jsonl", 12, seed=1)
    (tmp_path / "b.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"{i}?", "completion": "zzz zzz zzz zzz"}) + "\n"
            for i in range(8)
        )
    )
    sources = [
        {"path": str(tmp_path / "a.jsonl"), "name": "sums"},
        {"path": str(tmp_path / "b.jsonl"), "weight": 0.5},
    ]
    config = small_config(
        tmp_path,
        model,
        data__path='""',
        data__sources=sources,
        objective__name="threshold",
        objective__lower_quantile=0.3,
    )
    train(config)
    for row in metrics_of(config):
        assert set(row["sources"]) == {"sums", "b"}
        assert sum(part["tokens"] for part in row["sources"].values()) == row["tokens"]
        assert row["sources"]["sums"]["lower"] != row["sources"]["b"]["lower"]


def test_a_step_that_is_not_finite_is_skipped_whole_and_counted(tmp_path, model):
    global calls
    settings = {"objective__name": "nll_with_accidents", "checkpoint__every": 1}
    rows = {"data__packing": False, "train__micro_batch_size": 5}
    config = small_config(tmp_path, model, **settings, **rows)
    calls = 0
    nan_at.clear()
    nan_at.add(3)  # one micro-batch per step: the third step
    train(config)
    rows = metrics_of(config)
    assert [row["skipped"] for row in rows] == [False, False, True, False, False, False]
    before, after = (
        saved_state(Path(config.run_dir) / "checkpoints" / f"step_0000000{step}") for step in (2, 3)
    )
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    assert rows[2]["grad_norm"] is None, "JSON has no NaN"
    assert rows[5]["nll"] < rows[0]["nll"]
    nan_at.update(range(calls + 1, calls + 100))
    with pytest.raises(NonFiniteError, match="5 steps in a row"):
        train(small_config(tmp_path, model, "abort", **settings, train__max_steps=40))
    nan_at.clear()


def test_export_of_an_earlier_step_equals_its_checkpoint(tmp_path, model, capsys):
    config = small_config(tmp_path, model)
    train(config)
    saved = Path(config.run_dir) / "config.yaml"
    # as a run on a GPU may have it
    saved.write_text(saved.read_text().replace("loss_logits: fp32", "loss_logits: bf16"))
    out = tmp_path / "step3"
    assert export.main([config.run_dir, str(out), "--step", "3", "--dtype", "fp32"]) == 0
    state = saved_state(Path(config.run_dir) / "checkpoints" / "step_00000003")
    for name, tensor in AutoModelForCausalLM.from_pretrained(out).state_dict().items():
        assert torch.equal(tensor, state[f"model/{name}"]), name
    assert export.main([config.run_dir, str(out)]) != 0
    assert export.main([config.run_dir, str(tmp_path / "other"), "--step", "77"]) != 0
    assert "there are 3, 6" in capsys.readouterr().err


def test_chat_answers_from_a_run_with_the_ids_of_its_training(tmp_path, model, capsys):
    config = small_config(tmp_path, model, data__template="plain")
    train(config)
    assert (
        chat.main(
            [config.run_dir, "--prompt", "Add 1, 2", "--max-new-tokens", "8", "--temperature", "0"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    final = AutoModelForCausalLM.from_pretrained(
        Path(config.run_dir) / "final", dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(config.run_dir) / "final")
    ids = tokenizer("Add 1, 2\n", return_tensors="pt").input_ids
    expected = final.generate(
        ids, max_new_tokens=8, do_sample=False, eos_token_id=tokenizer.eos_token_id
    )[0, ids.shape[1] :]
    assert printed.strip() == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert chat.main([str(tmp_path / "nothing")]) != 0


def test_exit_codes_and_messages_of_the_command(tmp_path, model, capsys):
    assert main(["--help"]) == 0
    assert "train.global_batch_size" in capsys.readouterr().out
    assert (
        main(
            [f"run_dir={tmp_path / 'r'}", f"model.path={model}", "data.path=x.jsonl", "train.lrr=1"]
        )
        == 2
    )
    assert "did you mean train.lr?" in capsys.readouterr().err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": ""}\n')
    arguments = [
        f"run_dir={tmp_path / 'r'}",
        f"model.path={model}",
        f"data.path={bad}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    assert main(arguments) == 3
    assert f"{bad}:1" in capsys.readouterr().err
    assert not (tmp_path / "r").exists(), "nothing is written before all is checked"
    assert trainer.PREEMPTED not in (0, 1, 2, 3, 4, 5)


def test_an_error_that_only_one_node_has_is_printed_there(monkeypatch, capsys):
    """A second node has a command line of its own; one of its ranks prints."""
    for rank, local, printed in (("8", "0", True), ("9", "1", False)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local)
        assert main(["run_dir=r", "model.path=m", "data.path=d.jsonl", "train.lrr=1"]) == 2
        assert ("did you mean train.lr?" in capsys.readouterr().err) == printed


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ({"train__loss_implementation": "triton"}, "choose torch or auto"),
        ({"train__loss_logits": "bf16"}, "model.compute_dtype=bf16"),
    ],
)
def test_a_loss_that_cannot_run_here_is_refused_before_anything_is_written(
    tmp_path, model, setting, fix
):
    config = small_config(tmp_path, model, **setting, train__device="cpu")
    with pytest.raises(ConfigError, match=fix):
        train(config)
    assert not Path(config.run_dir).exists()


def test_exempt_tokens_keep_nll(tmp_path, model):
    """-p with the end-of-text token exempt: its weight is 1, that of all others p."""
    runs = {}
    for exempt in ("none", "eos"):
        (tmp_path / exempt).mkdir()
        config = small_config(
            tmp_path / exempt,
            model,
            objective__name="neg_p",
            objective__exempt=exempt,
            train__max_steps=1,
        )
        train(config)
        runs[exempt] = metrics_of(config)[0]
    plain, spared = runs["none"], runs["eos"]
    assert plain["weight"] == pytest.approx(plain["mean_p"], rel=1e-4)
    assert spared["nll"] == pytest.approx(plain["nll"], rel=1e-6)
    # each example ends with one such token, of p near 0 in an untrained model
    share = spared["sequences"] / spared["tokens"]
    assert spared["weight"] == pytest.approx(plain["weight"] + share, rel=0.05)


def test_examples_longer_than_the_model_has_positions_for_are_refused(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model("llama", tied=False, max_position_embeddings=16))
    with pytest.raises(
        ConfigError,
        match=r"data.max_length: an example has \d+ tokens, and the model positions for 16",
    ):
        train(config)
    assert not Path(config.run_dir).exists()


def test_a_revision_of_a_folder_is_refused(tmp_path, model):
    with pytest.raises(ConfigError, match=r"model.revision=main: .* is a folder here"):
        train(small_config(tmp_path, model, model__revision="main"))
