"""model.lora: runs are what PEFT computes by hand, on one rank and two, and resume bitwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import chat, export as export_command
from adaptsft.config.load import read_config, save_config
from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.backends.vllm import VLLM
from adaptsft.train import train
from adaptsft.training.optim import learning_rate
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import metrics_of, run_in_process, saved_state, small_config
from tests.training.test_normalizer import tokenised
from tests.training.test_resume import KILLED, micro_batches

LORA: dict[str, Any] = {"model__lora__rank": 4, "model__lora__alpha": 8, "train__lr": 2e-3}
SHORT = LORA | {"train__max_steps": 3}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "dora": {"use_dora": True},
    "one": {"rank": 1},  # of A, the second rank holds nothing
}
# dropout would show a lost seed, several micro-batches and packs a lost gradient
RESUMED: dict[str, Any] = LORA | {"model__lora__dropout": 0.2, "model__lora__use_dora": True}
RESUMED |= {"checkpoint__every": 1}


def settings(method: str) -> dict[str, Any]:
    return SHORT | {f"model__lora__{key}": value for key, value in METHODS[method].items()}


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model("qwen2", tied=True)  # with biases, and the head is the embedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def runs(folder, model) -> Path:
    """Every method trained on one rank, and on two; and a run with dropout on two ranks, whole and
    resumed from step 3."""
    (folder / "two").mkdir()
    for method in METHODS:
        train(small_config(folder, model, method, **settings(method)))
        config = small_config(folder, model, f"{method}-2ranks", **settings(method))
        save_config(config, folder / "two" / f"{method}.yaml")
    save_config(small_config(folder, model, "whole-2ranks", **RESUMED), folder / "two" / "z.yaml")
    _on_two_ranks(folder, "log")
    whole = folder / "whole-2ranks"
    shutil.copytree(whole, folder / "kept")
    for step in (4, 5, 6):
        shutil.rmtree(whole / "checkpoints" / f"step_0000000{step}")
    shutil.rmtree(whole / "final")
    for file in (folder / "two").iterdir():
        if file.name != "z.yaml":
            file.unlink()
    _on_two_ranks(folder, "again")
    return folder


def _on_two_ranks(folder: Path, log: str) -> None:
    codes, printed = on_two_ranks(_train_all, folder / "two", log=folder / log)
    assert codes == [0, 0], printed[-4000:]


def _train_all(folder: Path) -> None:
    for file in sorted(folder.glob("*.yaml")):
        train(read_config(file))


def by_hand(config: Config, start: dict[str, torch.Tensor]) -> tuple[list[float], Any]:
    """The mean NLL of each step, and the model after the last: a PEFT model of transformers and
    torch's AdamW, each example alone, from the adapters `start`."""
    lora, settings = config.model.lora, config.train
    base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=lora.target_modules,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
        ),
    )
    loaded = peft.set_peft_model_state_dict(model, start)
    assert not loaded.unexpected_keys
    assert not any("lora_" in name for name in loaded.missing_keys)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == len(start)
    groups = [
        {"params": [p for p in trained if p.ndim == 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=tuple(settings.betas), eps=settings.eps)
    data, losses = tokenised(config), []
    sampler = BatchSampler(data, config, 1)
    for step in range(settings.max_steps):
        nll = []
        for example in sampler.examples(step):
            ids, mask = (torch.from_numpy(part) for part in data.example(int(example)))
            logits = model(input_ids=ids[None]).logits[0, :-1]
            nll.append(-logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0][mask[1:]])
        loss = torch.cat(nll).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.max_steps, settings)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach().double()))
    return losses, model


def first_adapters(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    """What a run starts from: the adapters of one that does not learn."""
    begun = read_config(Path(config.run_dir) / "config.yaml")
    begun.run_dir, begun.train.lr, begun.train.max_steps = str(folder / "start"), 0.0, 1
    train(begun)
    return load_file(folder / "start" / "final" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_that_of_peft_by_hand_on_one_rank_and_on_two(runs, tmp_path, method):
    config = read_config(runs / method / "config.yaml")
    expected, reference = by_hand(config, first_adapters(config, tmp_path))
    assert expected[-1] < expected[0] - 1e-3, "it learns"
    for run in (method, f"{method}-2ranks"):
        losses = [row["loss"] for row in metrics_of(read_config(runs / run / "config.yaml"))]
        assert losses == pytest.approx(expected, rel=1e-6), run
        base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        ids = torch.arange(3, 40)[None]
        loaded = peft.PeftModel.from_pretrained(base, runs / run / "final")
        with torch.no_grad():
            difference = loaded(ids).logits - reference(ids).logits
        assert difference.abs().max() < 2e-4, run


def test_the_start_depends_on_the_seed_and_not_on_the_number_of_ranks(runs, folder, model):
    """Before a step is taken nothing has been summed in another order: bitwise the same."""
    still = LORA | {"model__lora__use_dora": True, "train__lr": 0.0, "train__max_steps": 1}
    for file in (folder / "two").iterdir():
        file.unlink()
    config = small_config(folder, model, "start-2ranks", **still)
    save_config(config, folder / "two" / "start.yaml")
    _on_two_ranks(folder, "start")
    for name, seed in (("start", 0), ("start-seed1", 1)):
        train(small_config(folder, model, name, **still, seed=seed))
    one, two, other = (
        load_file(folder / name / "final" / "adapter_model.safetensors")
        for name in ("start", "start-2ranks", "start-seed1")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())
    some = next(name for name in one if name.endswith("q_proj.lora_A.weight"))
    assert not torch.equal(one[some], other[some])
    bound = one[some].shape[1] ** -0.5
    assert 0.9 * bound < one[some].abs().max() <= bound
    assert all((t == 0).all() for name, t in one.items() if "lora_B" in name)
    weights = load_file(model / "model.safetensors")
    magnitude = next(name for name in one if "magnitude" in name)
    base = magnitude.removeprefix("base_model.model.").replace("lora_magnitude_vector", "weight")
    torch.testing.assert_close(one[magnitude], weights[base].norm(dim=1))


def test_a_checkpoint_holds_the_adapters_alone_and_resumes_bitwise_on_two_ranks(runs):
    state = saved_state(runs / "kept" / "checkpoints" / "step_00000006")
    names = {name for name in state if name.startswith("model/")}
    assert len(names) == 42 and all("lora_" in name for name in names)
    moments = {name for name in state if name.startswith("optimizer/") and "exp_avg" in name}
    assert len(moments) == 2 * len(names)
    again = saved_state(runs / "whole-2ranks" / "checkpoints" / "step_00000006")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    config = read_config(runs / "kept" / "config.yaml")
    whole = [json.loads(x)["loss"] for x in (runs / "kept" / "metrics.jsonl").open()]
    assert [row["loss"] for row in metrics_of(config)] == whole


@pytest.mark.parametrize(
    "more",
    [
        {"train__activation_checkpointing": "full", "train__micro_batch_size": 2},
        {"model__compute_dtype": "bf16", "data__packing": False},
    ],
    ids=["recomputed", "bf16 padded"],
)
@pytest.mark.nightly
def test_resumed_with_dropout_is_bitwise_the_run_that_was_not_stopped(tmp_path, model, more):
    whole = small_config(tmp_path, model, "whole", **RESUMED, **more)
    train(whole)
    resumed = small_config(tmp_path, model, "resumed", **RESUMED, **more)
    resumed.resume = str(Path(whole.run_dir) / "checkpoints" / "step_00000003")
    train(resumed)
    assert metrics_of(resumed) == metrics_of(whole)[3:]
    ends = [saved_state(Path(c.run_dir, "checkpoints/step_00000006")) for c in (whole, resumed)]
    assert all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())
    # the adapters are fp32 whatever the frozen part is computed in
    dtypes = {tensor.dtype for name, tensor in ends[0].items() if name.startswith("model/")}
    assert dtypes == {torch.float32}


@pytest.mark.nightly
def test_killed_and_started_again_it_is_bitwise_the_run_that_was_not(tmp_path, model):
    whole, killed = (
        small_config(tmp_path, model, name, **RESUMED, objective__name="nll_then_killed")
        for name in ("whole", "killed")
    )
    assert run_in_process(whole) == 0
    calls = sum(micro_batches(whole)[:4])
    assert run_in_process(killed, kill_after_calls=calls) == KILLED
    assert not (Path(killed.run_dir) / "final").exists()
    assert run_in_process(killed) == 0
    assert metrics_of(killed) == metrics_of(whole)
    ours, theirs = (
        load_file(Path(config.run_dir) / "final" / "adapter_model.safetensors")
        for config in (killed, whole)
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        (
            {"model__lora__dropout": 0.2, "model__lora__use_dora": True},
            [
                {"train__activation_checkpointing": "full"},
                {"train__activation_checkpointing": "per_op"},
                {"train__reduce_every_micro_batch": True},
            ],
        ),
        pytest.param(
            # one shape, so that little is compiled
            {"data__packing": False, "data__pad_multiple": 128, "train__max_steps": 1},
            [{"train__compile": True}],
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["recomputed", "compiled"],
)
def test_what_changes_speed_and_memory_changes_nothing(tmp_path, tiny_model, settings, others):
    model = tiny_model("qwen2", tied=True, layers=1)
    settings = {"train__max_steps": 3} | settings | LORA
    plain = train(small_config(tmp_path, model, "plain", **settings))
    for number, other in enumerate(others):
        again = train(small_config(tmp_path, model, str(number), **settings, **other))
        assert again["loss"] == pytest.approx(plain["loss"], rel=1e-6), other
        assert again["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4), other


def test_a_base_that_has_changed_is_not_trained_on(tmp_path, model):
    base = shutil.copytree(model, tmp_path / "base")
    config = small_config(tmp_path, base, **LORA, train__max_steps=2, checkpoint__every=1)
    train(config)
    shutil.rmtree(Path(config.run_dir) / "checkpoints" / "step_00000002")
    tensors = AutoModelForCausalLM.from_pretrained(base)
    tensors.model.embed_tokens.weight.data *= 1.001
    tensors.save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"model\.path have changed.*model\.revision"):
        train(config)


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_merged_the_run_is_a_model_of_transformers(runs, tmp_path, model, method):
    """As PEFT merges the folder, tensor by tensor and under the names of the files."""
    run, out = runs / method, tmp_path / "merged"
    assert export_command.main([str(run), str(out), "--merge", "--dtype", "fp32"]) == 0
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, run / "final").merge_and_unload()
    merged = load_file(out / "model.safetensors")
    assert merged.keys() == load_file(model / "model.safetensors").keys()
    for name, tensor in loaded.state_dict().items():
        if name in merged:
            torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
    ids = torch.arange(3, 40)[None]
    whole = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(whole(ids).logits, loaded(ids).logits, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert (out / "generation_config.json").is_file()
    continued = small_config(tmp_path, out, "continued", train__max_steps=1)
    assert train(continued)["loss"] < metrics_of(read_config(run / "config.yaml"))[0]["loss"]


def test_the_export_of_a_step_is_an_adapter_and_merge_needs_one(runs, tmp_path, model, capsys):
    out = tmp_path / "out"
    assert export_command.main([str(runs / "lora"), str(out), "--dtype", "fp32"]) == 0
    assert "as an adapter of" in capsys.readouterr().err
    final = load_file(runs / "lora" / "final" / "adapter_model.safetensors")
    again = load_file(out / "adapter_model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in final.items())
    plain = small_config(tmp_path, model, "plain", train__max_steps=1)
    train(plain)
    assert export_command.main([plain.run_dir, str(tmp_path / "no"), "--merge"]) == 2
    assert "has no adapters" in capsys.readouterr().err


def test_chat_and_evaluation_load_the_base_with_the_adapter(runs, tmp_path, capsys):
    run = runs / "dora"
    model, tokenizer, template = chat.load(str(run))
    assert any("lora_" in name for name, _ in model.named_parameters())
    options = chat.parse([str(run), "--temperature", "0", "--max-new-tokens", "4"])
    chat.answer(model, tokenizer, template, [{"role": "user", "content": "Add 1, 2"}], options)
    backend = HuggingFace(str(run), device="cpu")
    (ours,) = backend.loglikelihood([("Add 1, 2", " 1 + 2 = 3.")])
    out = tmp_path / "merged"
    assert export_command.main([str(run), str(out), "--merge", "--dtype", "fp32"]) == 0
    merged = HuggingFace(str(out), device="cpu", template="chat")
    (theirs,) = merged.loglikelihood([("Add 1, 2", " 1 + 2 = 3.")])
    assert ours.logprob == pytest.approx(theirs.logprob, rel=1e-5)
    other = HuggingFace(str(runs / "lora"), device="cpu")
    assert other.identity["revision"] != backend.identity["revision"]
    with pytest.raises(ConfigError, match=r"holds an adapter.*export RUN OUT --merge"):
        VLLM(str(run), "auto", "auto", 1)
    lost = shutil.copytree(run / "final", tmp_path / "lost")
    adapter = json.loads((lost / "adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = str(tmp_path / "gone")
    (lost / "adapter_config.json").write_text(json.dumps(adapter))
    assert chat.main([str(lost), "--prompt", "a"]) == ConfigError.exit_code
    assert f"an adapter of {tmp_path / 'gone'}" in capsys.readouterr().err


def test_training_on_from_an_adapter_names_the_way(runs, tmp_path):
    config = small_config(tmp_path, runs / "lora" / "final", "on")
    with pytest.raises(ConfigError, match=r"holds an adapter.*adaptsft\.export RUN OUT --merge"):
        train(config)
    done = read_config(runs / "lora" / "config.yaml")
    done.train.lr = 1.0
    with pytest.raises(ConfigError, match=r"adaptsft\.export .*lora OUT --merge"):
        train(done)
