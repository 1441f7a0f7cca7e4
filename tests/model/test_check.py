"""What the first batch shows: models that mix documents, see later tokens, or have another head."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.models.bamba import modeling_bamba

from adaptsft.config.load import save_config
from adaptsft.config.schema import LoraConfig, ModelConfig
from adaptsft.errors import ConfigError
from adaptsft.model import check as check_module
from adaptsft.model.check import TOLERANCE, check_first_batch
from adaptsft.model.fsdp import ShardedModel
from adaptsft.model.supported import check_verified
from adaptsft.train import main, train
from tests.distributed.two_ranks import on_two_ranks
from tests.model.batches import LENGTHS, built, packed_batch
from tests.model.random_models import (
    STRICT_CODE,
    random_config,
    write_model_with_code,
    write_random_model,
)
from tests.model_types.variants import config_of, variants
from tests.runs import small_config


def not_told(folder: Path) -> Path:
    """A Mamba, whose layers do not tell their mixers where documents begin."""
    return write_random_model(folder, config_of(*variants()["mamba"]))


def check(model: ShardedModel, packing: bool = True) -> None:
    check_first_batch(model, packed_batch(LENGTHS, model.config.vocab_size), packing)


def refusal(model: ShardedModel, packing: bool = True) -> str:
    with pytest.raises(ConfigError) as error:
        check(model, packing)
    return str(error.value)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_that_keeps_documents_apart_passes_and_nothing_changes(
    tiny_model, device, packing, dtype
):
    model, _ = built(tiny_model("gemma2", tied=True), device, compute_dtype=dtype)
    state, attention = torch.get_rng_state(), model.config._attn_implementation
    check(model, packing)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.config._attn_implementation == attention


def fused(projected, *_, outproj_weight, outproj_bias=None, **__):
    """As mamba-ssm's operator for training, which projects by the weight that it is given."""
    return F.linear(projected[..., : outproj_weight.shape[1]], outproj_weight, outproj_bias)


@pytest.mark.parametrize("packing", [True, False])
def test_kernels_that_recurrent_layers_have_for_training_are_tried(
    tmp_path, device, monkeypatch, packing
):
    folder = write_random_model(tmp_path / "model", config_of(*variants()["bamba"]))
    lora = LoraConfig(rank=2, target_modules=["q_proj", "out_proj"])
    plain, adapted = (built(folder, device, lora=on)[0] for on in (LoraConfig(), lora))
    for model in (plain, adapted):
        check(model, packing)
    monkeypatch.setattr(modeling_bamba, "mamba2_split_conv1d_scan_combined", fused)
    assert "log p differs from that of transformers" in refusal(plain, packing)
    said = refusal(adapted, packing)
    assert "take the weights of out_proj without calling" in said and "target_modules" in said
    assert all(module.training for module in adapted.modules())


def test_how_many_tokens_an_expert_has_is_no_leak(tiny_model, device, monkeypatch):
    """A product over groups of tokens may round a row otherwise for another size of its group."""

    def by_group(module, hidden, index, weights):
        out = grouped_mm_experts_forward(module, hidden, index, weights)
        return out * (1 + (index == index[0, 0]).float().mean())

    model, _ = built(tiny_model("qwen3_moe"), device)
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "grouped_mm", by_group)
    monkeypatch.setitem(TOLERANCE, torch.float32, 1e-2)
    check(model)
    assert model.config._experts_implementation == "grouped_mm"
    monkeypatch.setattr("adaptsft.model.check.experts_by_token", lambda model: nullcontext())
    assert "see another document" in refusal(model)


def test_a_mixture_in_bf16_may_differ_by_its_own_sensitivity(tiny_model, device, monkeypatch):
    model, _ = built(tiny_model("qwen3_moe"), device, compute_dtype="bf16")
    monkeypatch.setitem(TOLERANCE, torch.bfloat16, 1e-9)
    check(model)
    own = check_module._own_logp
    monkeypatch.setattr(check_module, "_own_logp", lambda *inputs: own(*inputs) + 0.1)
    assert "log p differs" in refusal(model)
    monkeypatch.undo()
    monkeypatch.setitem(TOLERANCE, torch.bfloat16, 1e-9)
    dense, _ = built(tiny_model("llama"), device, compute_dtype="bf16")
    assert "log p differs" in refusal(dense)


def test_a_model_without_a_causal_mask_is_refused(tmp_path, device):
    config = random_config("bloom", n_layer=2, n_head=4)
    model, _ = built(write_random_model(tmp_path, config), device)
    message = refusal(model)
    assert "BloomForCausalLM" in message and "2 of its 2 decoder layers" in message
    assert "model.attention=eager" in message
    assert "see later tokens" in refusal(model, packing=False)


def test_a_mixer_that_is_not_told_of_documents_is_refused_with_packing(tmp_path, device):
    model, _ = built(not_told(tmp_path), device)
    message = refusal(model)
    assert "another document" in message and "Set data.packing=false" in message
    check(model, packing=False)


def test_in_bf16_logits_of_fp32_are_not_those_of_a_forward_in_fp32(tmp_path, device):
    model, _ = built(not_told(tmp_path), device, compute_dtype="bf16")
    assert model(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.float32
    check(model, packing=False)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_documents_that_leak_past_the_attention_are_seen_in_any_precision(
    tiny_model, device, dtype, monkeypatch
):
    """Every layer calls the seam, and yet a state passes from document to document."""
    model, _ = built(tiny_model("llama", tied=False), device, compute_dtype=dtype)
    norm = type(model.model.layers[1].input_layernorm)
    plain = norm.forward

    def leaking(self, states):
        return plain(self, states) + 1e-2 * states.roll(1, dims=1)

    monkeypatch.setattr(norm, "forward", leaking)
    assert "tokens see" in refusal(model)


def test_remote_code_with_its_own_attention_is_refused_with_packing(tmp_path, device):
    folder = write_model_with_code(tmp_path / "own")
    model, _ = built(folder, device, trust_remote_code=True)
    message = refusal(model)
    assert "2 of its 2 decoder layers" in message and "Set data.packing=false" in message
    check(model, packing=False)


def test_remote_code_that_does_not_take_our_arguments_is_named(tmp_path, device):
    folder = write_model_with_code(tmp_path / "own", STRICT_CODE)
    model, _ = built(folder, device, trust_remote_code=True)
    message = refusal(model)
    assert "model_type=own" in message and "unexpected keyword argument" in message


def test_a_window_that_the_attention_is_not_given_is_refused(tiny_model, device):
    model, _ = built(tiny_model("llama", tied=False), device)
    model.config.sliding_window = 4
    assert "window of the configuration (4)" in refusal(model)


def test_a_head_that_the_loss_does_not_know_is_refused(tiny_model, device):
    model, _ = built(tiny_model("llama", tied=False), device)
    # known to token_loss, unknown to the Llama that computes the logits
    model.config.logit_scale = 0.25
    assert "linear head" in refusal(model)


def test_weights_that_are_not_finite_are_named(tiny_model, device):
    model, _ = built(tiny_model("llama", tied=False), device)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert "are its weights finite?" in refusal(model)


def test_a_rank_without_documents_takes_part(tiny_model, device):
    model, _ = built(tiny_model("llama", tied=False), device)
    batch = packed_batch([[1, 1, 1, 1]], model.config.vocab_size)
    assert not len(batch.targets)
    check_first_batch(model, batch, packing=True)


@pytest.mark.parametrize(
    "setting", [{"train__compile": True}, {"train__activation_checkpointing": "full"}], ids=str
)
def test_a_run_is_refused_before_its_first_step(tmp_path, setting):
    setting |= {"data__packing": True, "model__unverified": True}
    with pytest.raises(ConfigError, match=r"Set data\.packing=false"):
        train(small_config(tmp_path, not_told(tmp_path / "model"), **setting))


def test_what_is_exact_only_without_packing_is_padded_unless_packing_is_asked_for(tmp_path, capfd):
    model, settings = not_told(tmp_path / "model"), {"train__micro_batch_size": 4}
    with pytest.raises(ConfigError, match=r"data\.packing=true does not.*set data\.packing=false"):
        train(small_config(tmp_path, model, data__packing=True, **settings))
    mamba = AutoConfig.from_pretrained(model)
    for packing in (True, False):  # the ranks would share one row either way
        with pytest.raises(ConfigError, match=r"set train\.context_parallel=1"):
            check_verified(ModelConfig(path="x"), mamba, packing, 2)
    config = small_config(tmp_path, model, **settings)
    assert 0 < train(config)["loss"] < 10
    assert config.data.packing is False
    printed = capfd.readouterr().err
    assert "data.packing=auto: false, examples are padded (model_type=mamba" in printed


def test_both_ranks_are_refused_at_once(tmp_path):
    settings = {"model__unverified": True, "data__packing": True}
    config = small_config(tmp_path, not_told(tmp_path / "model"), **settings)
    save_config(config, tmp_path / "run.yaml")
    codes, printed = on_two_ranks(main, [str(tmp_path / "run.yaml")], log=tmp_path / "log")
    assert codes == [2, 2] and "tokens see another document" in printed, printed[-4000:]


def test_a_model_with_code_of_its_own_trains_where_it_is_asked_for_and_exact(tmp_path):
    model = write_model_with_code(tmp_path / "own")
    settings = {"model__trust_remote_code": True, "train__max_steps": 1}
    for reason, more in (
        (r"own code.*model\.unverified=true", {}),
        (r"Set data\.packing=false", {"model__unverified": True}),
    ):
        with pytest.raises(ConfigError, match=reason):
            train(small_config(tmp_path, model, **settings, **more))
    more = {"model__unverified": True, "data__packing": False}
    assert train(small_config(tmp_path, model, **settings, **more))["loss"] > 0
