"""The load-balancing loss of a mixture of experts: that of transformers, over the whole step."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adaptsft.config.schema import Config, LoraConfig, ModelConfig, TrainConfig
from adaptsft.data.sampler import BatchSampler
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.errors import ConfigError
from adaptsft.evals.in_training import generating
from adaptsft.model.build import build_model
from adaptsft.model.check import batch_of
from adaptsft.model.fsdp import evaluating
from adaptsft.model.language import causal_lm
from adaptsft.model.pretrained import load_pretrained
from adaptsft.model.router import Routers, _experts
from adaptsft.objectives.build import NLL
from adaptsft.train import train
from adaptsft.training.normalizer import LossNormalizer
from tests.model import document_kernels
from tests.model_types.variants import config_of, variants
from tests.runs import metrics_of, run_in_process, small_config
from tests.training.test_normalizer import ONE_STEP, assert_gradient, tokenised
from tests.training.test_resume import KILLED, assert_same_run, micro_batches, weights

WEIGHT = 0.5
DOCUMENTS = [torch.arange(3, 3 + length) for length in (30, 9, 20, 3)]
TOKENS, TARGETS = 62, 58


@pytest.fixture
def model(tiny_model) -> Path:
    return tiny_model("qwen3_moe", router_aux_loss_coef=WEIGHT)


@pytest.fixture
def dropping(tiny_model) -> Path:
    return tiny_model("qwen3_moe", router_aux_loss_coef=WEIGHT, attention_dropout=0.2)


def by_transformers(config: Config, weight: float) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, load-balancing loss and gradients (fp64) of step 1 by transformers' own forward of one
    padded batch, with its attention mask."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        config.model.path, dtype=torch.float64, experts_implementation="eager"
    )
    model.router_aux_loss_coef = weight
    data = tokenised(config)
    rows = [data.example(int(i)) for i in BatchSampler(data, config, 1).examples(0)]
    length = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (tokens, targets) in enumerate(rows):
        tokens, targets = torch.from_numpy(tokens), torch.from_numpy(targets)
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)] = torch.where(targets, tokens, -100)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        use_cache=False,
        output_router_logits=True,
    )
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return out.loss.item(), out.aux_loss.item(), gradients


@pytest.mark.parametrize("weight", [None, 0.0])
def test_step_1_is_that_of_transformers_however_it_is_split(tmp_path, model, weight):
    ways: list[dict[str, Any]] = [
        {"train__micro_batch_size": 8},
        {"data__packing": False, "train__activation_checkpointing": "full"},
    ]
    setting = {} if weight is None else {"train__router_aux_loss": weight}
    weight = WEIGHT if weight is None else weight
    for number, way in enumerate(ways):
        config = small_config(tmp_path, model, f"{number}", **ONE_STEP | way | setting)
        train(config)
        loss, aux, gradients = by_transformers(config, weight)
        row = metrics_of(config)[0]
        norm = float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())
        assert row["router_aux_loss"] == pytest.approx(aux, rel=1e-6)
        assert row["loss"] + weight * row["router_aux_loss"] == pytest.approx(loss, rel=1e-6)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-6)
        assert_gradient(Path(config.run_dir), gradients)
        (line,) = (Path(config.run_dir) / "experts.jsonl").read_text().splitlines()
        loads = torch.tensor(json.loads(line)["loads"])
        assert loads.shape == (2, 4) and loads.mean(1).tolist() == pytest.approx([1, 1], abs=1e-3)
        assert float(loads.max()) == pytest.approx(row["expert_load_max"], abs=1e-3)
        assert row["expert_load_min"] < 1 < row["expert_load_max"]
        assert 0.5 < row["expert_load_entropy"] < 1


def built(folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> Any:
    device = torch.device("cpu")
    config = ModelConfig(path=str(folder), **(model or {}))
    pretrained, mesh = load_pretrained(config), device_mesh(device, 1)
    return build_model(config, TrainConfig(**settings), pretrained, mesh, device)


def step(model: Any, with_buckets: bool = True) -> tuple[float, float]:
    """Loss, and norm of the gradient, of a step of two micro-batches."""
    model.zero_grad()
    batches = [batch_of([part], with_buckets) for part in (DOCUMENTS[:2], DOCUMENTS[2:])]
    model.routers.start_step(model, batches, TOKENS, 1, 1.0)
    total = 0.0
    for batch in batches:
        loss, _, _ = model.token_loss(batch, NLL, None, 1 / TARGETS)
        loss = model.routers.add_loss(loss)
        loss.backward()
        total += float(loss.detach())
    gradients = [p.grad.full_tensor() for p in model.parameters() if p.grad is not None]
    return total, float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())


def test_what_is_counted_first_is_what_the_training_forward_routes(dropping):
    with process_group("cpu"):
        for settings in ({}, {"activation_checkpointing": "full"}):
            model = built(dropping, **settings)
            routers = model.routers
            step(model)
            with generating(model):  # as for tasks between steps
                model(input_ids=DOCUMENTS[1][None], use_cache=False)
            chosen = routers.sums[-2 * routers.experts : -routers.experts]
            assert torch.equal(routers.share, (chosen / (routers.layers * TOKENS)).float())
            assert not any(one.found for one in routers.all), (
                "a recomputed forward would keep its activations"
            )
            before = routers.sums.clone()
            with evaluating(model):
                model.token_loss(batch_of([DOCUMENTS], True), NLL, None, 1.0)
            assert torch.equal(routers.sums, before) and routers.real is None


def test_frozen_models_and_adapters(model):
    with process_group("cpu"):
        whole = step(built(model))
        head = {"freeze": ["^(?!lm_head)"]}
        on, off = (step(built(model, head, router_aux_loss=weight)) for weight in (WEIGHT, 0.0))
        assert on[0] == pytest.approx(whole[0], rel=1e-6) and on[0] > off[0] + 0.5
        assert on[1] == off[1], "nothing that is trained moves the routers"
        routers = {"freeze": ["gate.weight"]}
        on, off = (step(built(model, routers, router_aux_loss=weight)) for weight in (WEIGHT, 0.0))
        assert on[0] == pytest.approx(whole[0], rel=1e-6)
        assert on[1] != off[1], "what comes before a frozen router learns from its loss"
        lora = {"lora": LoraConfig(rank=2, target_modules=["q_proj", "v_proj"])}
        on, off = (step(built(model, lora, router_aux_loss=weight)) for weight in (WEIGHT, 0.0))
        assert on[0] == pytest.approx(whole[0], rel=1e-6) and on[1] != off[1]


@pytest.mark.nightly  # half a minute of tracing
def test_compiled_layers_record_their_routers(model, monkeypatch):
    document_kernels.use("varlen", monkeypatch, "eager")
    with process_group("cpu"):
        expected = step(built(model), False)
        compiled = built(model, compile=True, activation_checkpointing="full")
        assert compiled.compilation.whole
        before = document_kernels.graphs()
        assert step(compiled, False) == pytest.approx(expected, rel=1e-6)
        graphs = document_kernels.graphs() - before
        assert graphs == 4, "both layers share them: two lengths, each counted, then learned from"


def test_resumed_it_is_the_same_run(tmp_path, dropping):
    two = {"train__max_steps": 2, "log__every": 1, "checkpoint__every": 1}
    whole = small_config(tmp_path, dropping, "whole", **two)
    train(whole)
    first = Path(whole.run_dir) / "checkpoints" / "step_00000001"
    again = small_config(tmp_path, dropping, "again", **two, resume=first)
    train(again)
    assert metrics_of(again) == metrics_of(whole)[1:]
    ours, theirs = weights(again), weights(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.nightly  # three processes
def test_killed_and_resumed_it_is_the_same_run(tmp_path, dropping):
    settings: dict[str, Any] = {"train__max_steps": 2, "objective__name": "nll_then_killed"}
    settings |= {"checkpoint__every": 1}
    whole, killed = runs = [
        small_config(tmp_path, dropping, name, **settings) for name in ("whole", "killed")
    ]
    assert run_in_process(whole) == 0
    assert run_in_process(killed, kill_after_calls=micro_batches(killed)[0] + 2) == KILLED
    assert run_in_process(killed) == 0
    assert_same_run(killed, whole)
    logs = [(Path(run.run_dir) / "experts.jsonl").read_text() for run in runs]
    assert logs[0].splitlines()[-1] == logs[1].splitlines()[-1]


def test_what_cannot_be(tmp_path, model, tiny_model):
    dense = small_config(tmp_path, tiny_model("llama", tied=False), train__router_aux_loss=0.1)
    with pytest.raises(ConfigError, match=r"train\.router_aux_loss=0\.1.*leave it out"):
        train(dense)
    with pytest.raises(ConfigError, match=r"router_aux_loss=-1\.0: must not be negative"):
        small_config(tmp_path, model, train__router_aux_loss=-1)


def test_what_would_change_the_weight_is_refused_before_weights_are_read(
    tmp_path, model, tiny_model, monkeypatch
):
    """Whose weight is the model's own coefficient, too."""

    def load(*_: Any) -> None:
        raise ConfigError("weights are read")

    monkeypatch.setattr("adaptsft.model.build.load_weights", load)
    dense = tiny_model("llama", tied=False)
    summed = {"train__loss_reduction": "micro_batch", "data__packing": False}
    for changed in ({"objective__normalizer": "kept"}, summed):
        with pytest.raises(ConfigError, match=r"router.*\(0\.5\): set train\.router_aux_loss=0"):
            train(small_config(tmp_path, model, **changed))
        for folder, settings in ((model, {"train__router_aux_loss": 0}), (dense, {})):
            with pytest.raises(ConfigError, match="weights are read"):
                train(small_config(tmp_path, folder, **changed, **settings))


def test_a_router_of_several_layers_ends_in_its_experts():
    """As Zaya's, whose first matrix is larger than the number of experts."""
    several = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 5))
    biased = torch.nn.Linear(8, 5)  # as ERNIE 4.5's
    biased.correction_bias = torch.nn.Parameter(torch.zeros(1, 5))
    assert _experts([several, biased]) == 5


def test_routers_that_transformers_does_not_record():
    """Those of DeepSeek-V4's first layers, where the token's id chooses; and all of a model whose
    routers are not known."""
    with torch.device("meta"):
        found, other = (
            causal_lm(config_of(*variants()[name]), "eager", torch.float32)
            for name in ("deepseek_v4: one layer by hash", "qwen3_moe")
        )
    routers = Routers(found, TrainConfig(router_aux_loss=0.1))
    assert (routers.layers, routers.experts, routers.balanced) == (2, 4, 1)
    other.base_model._can_record_outputs = {}
    assert "no loads are recorded" in str(Routers(other, TrainConfig()))


def test_unit_mass_leaves_the_weight_of_the_router_loss():
    """The correction of the step's gradients undoes what the loss was multiplied by."""
    config: Any = SimpleNamespace(
        train=SimpleNamespace(loss_reduction="step", context_parallel=1),
        objective=SimpleNamespace(normalizer="all", unit_mass=True),
    )
    normalizer = LossNormalizer(config)
    statistics: Any = SimpleNamespace(column=lambda name: torch.ones(1, dtype=torch.float64))
    for mass in (0.01, 0.5, 9.0):
        state: Any = SimpleNamespace(mass=torch.tensor([mass]))
        factor = normalizer.uncorrected(state) * normalizer.correction(statistics, state)
        assert float(factor) == pytest.approx(1.0) and float(normalizer.uncorrected(state)) != 1.0
