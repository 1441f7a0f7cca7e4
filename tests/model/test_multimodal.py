"""Text training of checkpoints whose language model is a part: the part is trained, the rest of the
checkpoint is repeated as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM

from adaptsft import chat, diagnose, plan
from adaptsft.config.schema import LoraConfig, ModelConfig
from adaptsft.data.stop import TurnEnd
from adaptsft.errors import ConfigError
from adaptsft.evals.backends.decode import decode
from adaptsft.evals.backends.hf import HuggingFace, end_tokens
from adaptsft.evals.in_training import generating
from adaptsft.evals.protocol import Sampling
from adaptsft.model.export import export
from adaptsft.model.language import load_whole
from adaptsft.model.pretrained import load_pretrained
from adaptsft.train import train
from tests.conftest import REPO
from tests.model.batches import built, packed_batch
from tests.model.checkpoints import (
    assert_same,
    changed,
    names_in,
    renamed,
    saved,
    trained_and_exported,
    trained_resumed_and_on_two_ranks,
)
from tests.runs import small_config

TEXT: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# three kinds of positions, which are one and the same in a text
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 32,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 64,
}
QWEN_IDS = {"image_token_id": 5, "video_token_id": 6}
PIXTRAL = TOWER | {"model_type": "pixtral", "head_dim": 16}
CLIP = TOWER | {"model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = TOWER | {"model_type": "siglip_vision_model"}


def parts(text: dict[str, Any], vision: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"text_config": TEXT | text, "vision_config": vision, **settings}


MODELS: dict[str, dict[str, Any]] = {
    "gemma3": parts(
        {"sliding_window": 8, "query_pre_attn_scalar": 16},
        TOWER,
        mm_tokens_per_image=4,
        image_token_index=5,
    ),
    "qwen2_vl": parts(
        {"rope_parameters": MROPE},
        {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        **QWEN_IDS,
    ),
    "qwen2_5_vl": parts(
        {"rope_parameters": MROPE}, QWEN_TOWER, **QWEN_IDS, tie_word_embeddings=True
    ),
    "qwen3_vl": parts(
        {"rope_parameters": MROPE},
        QWEN_TOWER | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **QWEN_IDS,
    ),
    "qwen3_5": parts(
        HYBRID | {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
        QWEN_TOWER | {"num_position_embeddings": 16},
        **QWEN_IDS,
    ),
    "qwen3_5_moe": parts(
        HYBRID | EXPERTS | {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
        QWEN_TOWER | {"num_position_embeddings": 16},
        **QWEN_IDS,
    ),
    "qwen3_vl_moe": parts(
        EXPERTS | {"rope_parameters": MROPE, "mlp_only_layers": [0]},
        QWEN_TOWER | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **QWEN_IDS,
    ),
    "glm4v": parts(
        {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
        QWEN_TOWER | {"image_size": 28},
        **QWEN_IDS,
    ),
    "mistral3": parts({"model_type": "mistral"}, PIXTRAL, image_token_index=5),
    "llava": parts({"model_type": "llama"}, CLIP, image_token_index=5),
    "idefics3": parts({"model_type": "llama"}, TOWER, image_token_id=5, scale_factor=2),
    "smolvlm": parts({"model_type": "llama"}, TOWER, image_token_id=5, scale_factor=2),
    "internvl": parts(
        {"model_type": "qwen3"},
        TOWER | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=5,
    ),
    "gemma4": parts(
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 400,
            "num_kv_shared_layers": 0,
            "global_head_dim": 16,
        },
        TOWER | {"num_key_value_heads": 2, "head_dim": 16},
    ),
    "voxtral": {
        "text_config": TEXT | {"model_type": "llama"},
        "audio_config": TOWER,
        "audio_token_id": 5,
        "hidden_size": 64,
    },
}


def multimodal(folder: Path, model_type: str, **settings: Any) -> Path:
    return saved(folder, model_type, AutoModelForMultimodalLM, **MODELS[model_type] | settings)


@pytest.mark.parametrize("model_type", MODELS)
def test_the_loss_of_a_text_is_the_whole_models_and_the_whole_is_exported(
    tmp_path, device, model_type
):
    source = multimodal(tmp_path / "saved", model_type)
    written = trained_and_exported(source, tmp_path / "final", device, AutoModelForMultimodalLM)
    assert written == names_in(source)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (source, tmp_path / "final")
    )
    language = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("self_attn" in name for name in language)
    towers = ("visual.", "vision_tower.", "vision_model.", "audio_tower.")
    kept = {name for name in before if any(tower in name for tower in towers)}
    assert kept and not language & kept


@pytest.mark.parametrize("model_type", MODELS)
def test_an_adapter_of_the_language_part_is_loaded_beside_the_whole(tmp_path, device, model_type):
    source = multimodal(tmp_path / "saved", model_type)
    lora = LoraConfig(rank=2, use_dora=True, target_modules=["q_proj", "down_proj"])
    model, pretrained = built(source, device, lora=lora)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * (1 + number % 3))
    export(model, pretrained, tmp_path / "final", "fp32", TurnEnd())
    loaded = load_whole(tmp_path / "final", torch.float32)
    adapted = {name for name, _ in loaded.named_parameters() if "lora_A" in name}
    towers = ("visual.", "vision_tower.", "vision_model.", "audio_tower.")
    assert adapted and not any(tower in name for name in adapted for tower in towers)
    batch = packed_batch([[16]], pretrained.config.get_text_config().vocab_size)
    assert_same(model.eval(), batch, loaded)


def test_the_guide_names_what_is_tested():
    guide = (REPO / "docs" / "guide.md").read_text()
    assert all(f"`{model_type}`" in guide for model_type in MODELS)


def test_older_and_newer_names_are_written_as_they_were(tmp_path, device):
    source = multimodal(tmp_path / "saved", "llava")
    assert "language_model.model.norm.weight" in names_in(source)

    def newer(tensors):
        for old, new in (
            ("language_model.lm_head", "lm_head"),
            ("language_model.model.", "model.language_model."),
            ("vision_tower", "model.vision_tower"),
            ("multi_modal_projector", "model.multi_modal_projector"),
        ):
            renamed(old, new)(tensors)

    hub = changed(source, tmp_path / "newer", newer)
    written = trained_and_exported(hub, tmp_path / "final", device, AutoModelForImageTextToText)
    assert written == names_in(hub) and not written & names_in(source)

    source = multimodal(tmp_path / "qwen", "qwen2_vl")
    assert {"model.norm.weight", "visual.merger.ln_q.weight"} <= names_in(source)
    hub = changed(source, tmp_path / "qwen_newer", renamed("model.", "model.language_model."))
    written = trained_and_exported(hub, tmp_path / "qwen_f", device, AutoModelForImageTextToText)
    assert written == names_in(hub)


def test_a_stored_head_that_the_outer_config_ties_is_trained(tmp_path, device, capfd):
    source = multimodal(tmp_path / "saved", "mistral3", tie_word_embeddings=False)
    hub = changed(source, tmp_path / "hub", tie_word_embeddings=None)  # the class's default: true
    trained_and_exported(hub, tmp_path / "final", device, AutoModelForImageTextToText)
    assert "lm_head.weight differs from the embeddings" in capfd.readouterr().err
    assert not json.loads((tmp_path / "final" / "config.json").read_text())["tie_word_embeddings"]


def test_a_run_on_text_gives_a_whole_model_that_answers(tmp_path, capsys):
    """From bf16 vision weights in several files, with tokens added and image settings beside."""
    source = multimodal(tmp_path / "saved", "qwen2_5_vl")
    (source / "preprocessor_config.json").write_text('{"image_processor_type": "x"}')
    whole = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    whole.model.visual.bfloat16()
    (source / "model.safetensors").unlink()
    whole.save_pretrained(source, max_shard_size="100KB")
    config = small_config(tmp_path, source, train__max_steps=2, model__add_tokens=["<think>"])
    train(config)
    said = capsys.readouterr().err
    assert "trains the language part of Qwen2_5_VLForConditionalGeneration (0.1" in said

    final = Path(config.run_dir) / "final"
    again, info = AutoModelForImageTextToText.from_pretrained(final, output_loading_info=True)
    assert not any(info.values()), info
    assert (final / "preprocessor_config.json").is_file()
    stored = load_file(final / "model.safetensors")
    for name, tensor in whole.model.visual.state_dict().items():
        assert stored[f"visual.{name}"].dtype == tensor.dtype == torch.bfloat16
        assert torch.equal(stored[f"visual.{name}"], tensor), name
    tokens = again.get_input_embeddings().weight.shape[0]
    assert tokens == again.config.get_text_config().vocab_size >= 369
    asked = ["--prompt", "Add 1, 2", "--max-new-tokens", "4"]
    assert chat.main([config.run_dir, *asked]) == 0
    backend = HuggingFace(str(final), "plain")
    assert backend.loglikelihood([("Add 1, 2", " The sum is 3.")])[0].logprob < 0


@pytest.mark.parametrize(
    "model_type", ["gemma3", pytest.param("qwen3_vl", marks=pytest.mark.nightly)]
)
def test_training_resuming_and_ranks_are_those_of_any_model(tmp_path, model_type):
    trained_resumed_and_on_two_ranks(tmp_path, multimodal(tmp_path / "saved", model_type))


@pytest.mark.parametrize("model_type", ["gemma3", "qwen2_5_vl", "mistral3"])
def test_tasks_in_training_decode_as_the_whole_model_does(tmp_path, device, model_type):
    source = multimodal(tmp_path / "saved", model_type)
    model, pretrained = built(source, device)
    prompts = [[20, 21, 22], [30, 31, 32, 33, 34]]
    asked: Any = (pretrained.tokenizer, prompts, [0, 0], Sampling(0.0, 1.0, 6), set())
    with generating(model):
        ours = decode(model, *asked, context=512, lockstep=True)
    theirs = decode(HuggingFace(str(source)).model, *asked, context=512)
    assert [output.text for output in ours] == [output.text for output in theirs]


def test_plan_and_diagnose_take_the_language_part(tmp_path, capsys):
    source = multimodal(tmp_path / "saved", "qwen2_5_vl")
    data = small_config(tmp_path, source).data.path
    settings = [f"run_dir={tmp_path / 'run'}", f"model.path={source}", f"data.path={data}"]
    settings += ["data.max_length=128", "train.max_steps=1", "train.global_batch_size=5"]
    assert plan.main([*settings, "--gpus", "1", "--gpu-memory", "80"]) == 0
    assert "model: qwen2_5_vl, 0.10 M parameters" in capsys.readouterr().out
    assert diagnose.main([*settings, "sample=5"]) == 0
    assert (tmp_path / "run" / "diagnosis" / "diagnosis.md").is_file()


def test_language_parts_that_cannot_be_trained_are_refused(tmp_path, device):
    text = TEXT | {"cross_attention_layers": [1], "bos_token_id": 1}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    tower |= {"num_global_layers": 1, "attention_heads": 2, "image_size": 28, "patch_size": 14}
    tower |= {"intermediate_layers_indices": [0], "vision_output_dim": 64}
    folder = saved(
        tmp_path / "mllama",
        "mllama",
        AutoModelForImageTextToText,
        text_config=text,
        vision_config=tower,
    )
    with pytest.raises(ConfigError, match=r"mllama_text_model.*not a causal language model"):
        built(folder, device)
    scaled = parts({"model_type": "cohere2", "sliding_window": 8}, SIGLIP, image_token_index=5)
    folder = saved(tmp_path / "aya", "aya_vision", AutoModelForImageTextToText, **scaled)
    with pytest.raises(ConfigError, match=r"logit_scale=.* is not applied by.*AyaVision"):
        built(folder, device)
    folder = saved(
        tmp_path / "git", "git", AutoModelForImageTextToText, **TEXT | {"vision_config": TOWER}
    )
    with pytest.raises(ConfigError, match=r"model_type=git: its attention is its own"):
        built(folder, device)
    folder = multimodal(tmp_path / "layers", "gemma4")
    with pytest.raises(ConfigError, match=r"model\.add_tokens.*per-layer inputs"):
        load_pretrained(ModelConfig(path=str(folder), add_tokens=["<think>"]))
    folder = multimodal(tmp_path / "saved", "qwen2_vl")
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ConfigError, match=rf"1 tensors missing.*{name}"):
        built(changed(folder, tmp_path / "torn", lambda t: t.pop(name)), device)


def test_a_language_part_with_a_plain_head_answers_while_it_trains(tmp_path, device):
    """As the whole model does, with transformers' own cache: for tasks of an evaluation."""
    source = multimodal(tmp_path / "saved", "qwen2_5_vl")
    model, pretrained = built(source, device)
    prompt = pretrained.tokenizer("The quick brown fox").input_ids
    whole = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    expected = whole.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
    with generating(model):
        ends, sampling = end_tokens(model, pretrained.tokenizer), Sampling(max_tokens=6)
        (found,) = decode(
            model, pretrained.tokenizer, [prompt], [0], sampling, ends, context=64, lockstep=True
        )
    answer = expected[0, len(prompt) :].tolist()
    assert found.text == pretrained.tokenizer.decode(answer, skip_special_tokens=True)
