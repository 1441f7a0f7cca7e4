"""The recipe of the kernels' README, as it stands there: on one rank, under DDP and under FSDP2 its
steps are those of the whole batch, however the targets lie."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", minversion="1.16")

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as DDP
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig

from adaptsft_kernels.causal_lm import add_fused_loss
from tests.conftest import REPO
from tests.distributed.two_ranks import on_two_ranks
from tests.integrations.parity import arguments

README = REPO / "kernels" / "adaptsft_kernels" / "README.md"
STEPS, ROWS, LENGTH, LR = 2, 8, 12, 4.0
# tokens of each row of a batch that are no targets: the ranks have unequal numbers of them, and
# under accumulation one has none in its first micro-batch
MASKED = (1, 2, 12, 12, 9, 3, 12, 11)


def batches() -> dict[str, Tensor]:
    """input_ids and labels of all steps."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (STEPS * ROWS, LENGTH), generator=generator)
    masked = torch.tensor(MASKED * STEPS)[:, None]
    return {"input_ids": ids, "labels": torch.where(torch.arange(LENGTH) < masked, -100, ids)}


def one_batch() -> dict[str, Tensor]:
    return {name: x[:ROWS] for name, x in batches().items()}


def dataset() -> Dataset:
    return Dataset.from_dict({name: x.tolist() for name, x in batches().items()})


def focus(tokens: Any, state: Any) -> tuple[Tensor, Tensor]:
    """The objective of the README's first example."""
    weight = torch.sigmoid(tokens.logp + 3)
    return -weight * tokens.logp, weight


def dense(model: Any, input_ids: Tensor, labels: Tensor) -> Tensor:
    """The mean of `focus` over the targets, from all logits and by autograd."""
    logits, targets = model(input_ids=input_ids).logits[:, :-1], labels[:, 1:]
    mask = targets != -100
    logp = logits[mask].log_softmax(-1).gather(-1, targets[mask][:, None])
    return -(torch.sigmoid(logp.detach() + 3) * logp).mean()


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()


def weights(model: Any) -> dict[str, Tensor]:
    found = {name: x.detach() for name, x in model.named_parameters()}
    return {
        name: (x.full_tensor() if isinstance(x, DTensor) else x).clone()
        for name, x in found.items()
    }


@pytest.fixture(scope="module")
def assert_same_steps(tiny_model) -> Callable[[dict[str, Tensor], bool], None]:
    """Weights after the steps are those of a loop over whole batches: to 1e-5 of their change, and
    the rounding of fp32."""

    @functools.cache
    def whole(tied: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = load(tiny_model(tied=tied))
        before, optimizer = weights(model), torch.optim.SGD(model.parameters(), LR)
        for step in range(STEPS):
            rows = slice(step * ROWS, (step + 1) * ROWS)
            dense(model, **{name: x[rows] for name, x in batches().items()}).backward()
            optimizer.step()
            optimizer.zero_grad()
        return before, weights(model)

    def check(after: dict[str, Tensor], tied: bool) -> None:
        before, expected = whole(tied)
        assert after.keys() == expected.keys()
        for name, x in expected.items():
            allowed = 1e-5 * (x - before[name]).norm() + 1e-7 * x.norm()
            assert (after[name] - x).norm() <= allowed, name

    return check


def settings_of(folder: Path, **more: Any) -> dict[str, Any]:
    return arguments(folder, max_steps=STEPS, optim="sgd", learning_rate=LR, **more)


def run_recipe(model: Path, folder: Path, **more: Any) -> Any:
    """Run the README's first example and its recipe for TRL; the recipe's trainer."""
    first, *others = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (recipe,) = (code for code in others if "import SFTConfig" in code)
    own = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    scope = {"name": str(model), "rows": dataset(), "settings": settings_of(folder, **own | more)}
    exec(first + recipe, scope)
    return scope["trainer"]


SPLITS = {
    "whole": {"per_device_train_batch_size": ROWS},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS},
    "padding-free": {"per_device_train_batch_size": ROWS, "padding_free": True},
    "checkpointed": {"per_device_train_batch_size": ROWS, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_recipe_on_one_rank(split, tiny_model, tmp_path, assert_same_steps):
    trainer = run_recipe(tiny_model(tied=False), tmp_path, **SPLITS[split])
    assert_same_steps(weights(trainer.model), False)


def test_evaluation_in_trl_is_the_nll(tiny_model, tmp_path):
    trainer = run_recipe(tiny_model(), tmp_path, per_device_eval_batch_size=ROWS)
    shown = trainer.evaluate(dataset().select(range(ROWS)))["eval_loss"]
    with torch.no_grad():
        assert shown == pytest.approx(float(trainer.model(**one_batch()).loss), rel=1e-5)


def test_transformers_trainer_takes_the_model_as_it_is(tiny_model, tmp_path, assert_same_steps):
    model = add_fused_loss(load(tiny_model(tied=True)), focus)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": ROWS // 2}
    trainer = Trainer(
        model,
        TrainingArguments(**settings_of(tmp_path, **split)),
        train_dataset=dataset(),
        eval_dataset=dataset().select(range(ROWS)),
    )
    with torch.no_grad():
        nll = float(load(tiny_model(tied=True))(**one_batch()).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(nll, rel=1e-5)
    trainer.train()
    assert_same_steps(weights(model), True)


HALF = {"per_device_train_batch_size": ROWS // 2}
QUARTER = {"per_device_train_batch_size": ROWS // 4, "gradient_accumulation_steps": 2}
# (who shards the model, whether its head is tied, the split); accelerate comes last, as its state
# outlives a trainer
ON_TWO_RANKS = {
    "DDP": ("DDP", False, QUARTER),
    "FSDP2 of transformers": ("transformers", False, HALF),
    "FSDP2 of accelerate": ("accelerate", False, QUARTER),
    "FSDP2 of accelerate, tied": ("accelerate", True, HALF),
}


LOAD, ACCELERATOR = AutoModelForCausalLM.from_pretrained, Trainer.create_accelerator_and_postprocess


def accelerator_that_shards(trainer: Trainer) -> None:
    """What fsdp="full_shard" in TrainingArguments does where there are GPUs."""
    ACCELERATOR(trainer)
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )


def train_on_ranks(models: dict[bool, Path], folder: Path) -> int:
    results = {}
    for name, (how, tied, split) in ON_TWO_RANKS.items():
        with pytest.MonkeyPatch.context() as patch:
            if how == "transformers":
                sharded = functools.partial(LOAD, distributed_config=DistributedConfig(fsdp_size=2))
                patch.setattr(AutoModelForCausalLM, "from_pretrained", sharded)
            if how == "accelerate":
                patch.setattr(Trainer, ACCELERATOR.__name__, accelerator_that_shards)
            trainer = run_recipe(models[tied], folder / "out", ddp_backend="gloo", **split)
        wrapped = trainer.model_wrapped
        assert dist.get_world_size() == 2
        assert isinstance(wrapped, DDP if how == "DDP" else FSDPModule)
        results[name] = weights(trainer.model)
    if dist.get_rank() == 0:
        torch.save(results, folder / "weights.pt")
    return 0


@pytest.fixture(scope="module")
def on_ranks(tiny_model, tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    models = {tied: tiny_model(tied=tied) for tied in (False, True)}
    codes, printed = on_two_ranks(train_on_ranks, models, folder, log=folder / "log")
    assert codes == [0, 0], printed
    return torch.load(folder / "weights.pt")


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_the_recipe_on_two_ranks(name, on_ranks, assert_same_steps):
    _, tied, _ = ON_TWO_RANKS[name]
    assert_same_steps(on_ranks[name], tied)


def test_without_labels_or_in_evaluation_the_model_is_what_it_was(tiny_model):
    batch, model, plain = one_batch(), load(tiny_model()), load(tiny_model())
    add_fused_loss(model, focus)
    assert torch.equal(model(batch["input_ids"]).logits, plain(batch["input_ids"]).logits)
    assert torch.equal(model.eval()(**batch).loss, plain(**batch).loss)
    count = torch.tensor(7)
    shown, expected = (x(**batch, num_items_in_batch=count).loss for x in (model, plain))
    assert torch.equal(shown, expected)


def test_labels_that_are_shifted_and_a_batch_without_targets(tiny_model):
    batch, model = one_batch(), add_fused_loss(load(tiny_model()), focus)
    loss = model(**batch)["loss"]
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    assert torch.equal(model(batch["input_ids"], shift_labels=shifted)["loss"], loss)
    nothing = batch | {"labels": torch.full_like(batch["labels"], -100)}
    model(**nothing)["loss"].backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


HEADS = {
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 8.0},
    "phi": {},  # has a bias
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_heads_cap_scale_and_bias_are_the_models(kind):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 200}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, **HEADS[kind], attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).train()
    for parameter in model.get_output_embeddings().parameters():
        parameter.data.normal_()
    expected = dense(model, **one_batch())
    torch.testing.assert_close(add_fused_loss(model, focus)(**one_batch())["loss"], expected)


def test_under_autocast_the_head_computes_in_its_dtype(tiny_model):
    model = load(tiny_model())
    with torch.autocast("cpu", torch.bfloat16):
        expected = dense(model, **one_batch()).item()
        loss = add_fused_loss(model, focus)(**one_batch())["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and model.lm_head.weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=5e-3)


def test_adapters_are_trained_through_it_but_not_the_heads(tiny_model):
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    for model in (
        get_peft_model(add_fused_loss(load(tiny_model()), focus), lora),
        add_fused_loss(get_peft_model(load(tiny_model()), lora), focus),
    ):
        loss = model(**one_batch())["loss"]
        model.eval()
        torch.testing.assert_close(loss, dense(model, **one_batch()))
        loss.backward()
        trained = [name for name, x in model.named_parameters() if x.grad is not None]
        assert trained and all("lora" in name for name in trained)
    lora = LoraConfig(r=2, target_modules=["lm_head"])
    model = get_peft_model(add_fused_loss(load(tiny_model(tied=False)), focus), lora)
    with pytest.raises(ValueError, match="carries an adapter"):
        model(**one_batch())


def test_what_the_loss_would_leave_out_is_refused(tiny_model):
    model = load(tiny_model())
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match="adds a loss"):
        add_fused_loss(model, focus)
    model = load(tiny_model())
    model.config.logit_scale = 0.25  # which this model does not apply
    with pytest.raises(ValueError, match=r"other logits.*logit_scale=0\.25"):
        add_fused_loss(model, focus)
