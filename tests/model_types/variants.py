"""Tiny configurations of every type that transformers has a causal language model for, of the
options in which they differ, and of multimodal types, whose language part is trained."""

import inspect
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adaptsft.model.tiny import SAMPLE_TEXT, bpe_tokenizer
from tests.model.test_multimodal import MODELS as MULTIMODAL

VOCABULARY = len(bpe_tokenizer(SAMPLE_TEXT))
# by whatever name a configuration calls it; each is given what it knows
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 512),
    **dict.fromkeys(("encoder_layers", "pad_token_id"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim", "state_size"), 8),
    **dict.fromkeys(("sliding_window", "window_size"), 6),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim", "head_dim"), 16),
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_key_value_heads": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "ffn_hidden_size": 128,
    "attention_hidden_size": 64,
    "word_embed_proj_dim": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
WINDOW_AND_FULL = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
# two layers with the weights of one transformer block
SHARED_LAYERS = {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
MULTI_HEAD = {"num_key_value_heads": 4}
# latent attention: as many key heads as query heads
LATENT = ("axk1", "axk2", "deepseek_v2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")
LATENT += ("longcat_flash", "minicpm3", "sarvam_mla", "youtu")
# what a type needs beside the sizes
NEEDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LATENT, MULTI_HEAD),
    "bamba": {"attn_layer_indices": [1]},
    "cohere2": WINDOW_AND_FULL,
    "deepseek_v3": MULTI_HEAD | {"first_k_dense_replace": 1},
    # so few tokens to a key of many that short documents have some
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
    },
    "deepseek_v32": MULTI_HEAD | {"mlp_layer_types": ["sparse"] * 2},
    "glm_moe_dsa": MULTI_HEAD | {"mlp_layer_types": ["sparse"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "exaone4": WINDOW_AND_FULL,
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma2": WINDOW_AND_FULL,
    "gemma3_text": WINDOW_AND_FULL,
    "gemma3n_text": WINDOW_AND_FULL
    | {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.5, 0.0], "laurel_rank": 8},
    "gemma4_text": WINDOW_AND_FULL,
    "gemma4_unified_text": WINDOW_AND_FULL,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "modernbert-decoder": WINDOW_AND_FULL,
    "olmo3": WINDOW_AND_FULL,
    "olmo_hybrid": LINEAR_AND_FULL,
    "qwen3_5_text": LINEAR_AND_FULL,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 64},
    # transformers clears the embedding of the padding when it loads it
    "youtu": MULTI_HEAD | {"pad_token_id": None},
    "zamba": SHARED_LAYERS | {"n_mamba_heads": 2},
    "zamba2": SHARED_LAYERS | {"num_mem_blocks": 1, "mamba_ngroups": 1},
    "zaya": {"num_experts_per_tok": 1},
}
# (type, what is different, its settings)
OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "tied", {"tie_word_embeddings": True}),
    ("llama", "biases", {"attention_bias": True, "mlp_bias": True}),
    ("llama", "one key head", {"num_key_value_heads": 1}),
    ("llama", "no grouping of heads", MULTI_HEAD),
    (
        "llama",
        "scaled rotary",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    ("mistral", "no window", {"sliding_window": None}),
    ("ministral", "window in half of the layers", WINDOW_AND_FULL),
    ("qwen2", "tied", {"tie_word_embeddings": True}),
    ("qwen2", "window in half of the layers", {"use_sliding_window": True, **WINDOW_AND_FULL}),
    ("qwen3", "tied", {"tie_word_embeddings": True}),
    ("qwen3", "attention biases", {"attention_bias": True}),
    ("gemma", "untied", {"tie_word_embeddings": False}),
    ("gemma2", "narrow soft caps", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    ("gemma2", "untied", {"tie_word_embeddings": False}),
    ("gemma3_text", "untied", {"tie_word_embeddings": False}),
    ("gemma3_text", "soft cap of the logits", {"final_logit_softcapping": 3.0}),
    ("phi", "q/k norm", {"qk_layernorm": True}),
    ("phi", "partial rotary", {"partial_rotary_factor": 0.25}),
    ("phi3", "no window", {"sliding_window": None}),
    ("phi3", "partial rotary, tied", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    ("cohere", "q/k norm", {"use_qk_norm": True}),
    ("cohere", "logit scale", {"logit_scale": 0.5}),
    ("cohere2", "no window", {"layer_types": ["full_attention"] * 2}),
    (
        "granite",
        "multipliers",
        {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 3.0,
        },
    ),
    ("granite", "tied", {"tie_word_embeddings": True}),
    ("olmo", "clipped q, k, v", {"clip_qkv": 0.1}),
    ("olmo2", "biases", {"attention_bias": True}),
    (
        "stablelm",
        "parallel, q/k norm",
        {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
    ),
    ("starcoder2", "no window, no biases", {"sliding_window": None, "use_bias": False}),
    ("gpt2", "untied", {"tie_word_embeddings": False}),
    ("gpt2", "scale by layer", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt_bigcode", "no multi-query", {"multi_query": False}),
    (
        "gpt_neox",
        "sequential, full rotary",
        {"use_parallel_residual": False, "partial_rotary_factor": 1.0},
    ),
    (
        "opt",
        "norm after, projected embeddings",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    ),
    ("falcon", "new decoder", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", "sequential, ALiBi", {"parallel_attn": False, "alibi": True}),
    ("glm", "no biases", {"attention_bias": False}),
    ("smollm3", "rotary in half of the layers", {"no_rope_layers": [1, 0]}),
    ("exaone4", "no window", {"layer_types": ["full_attention"] * 2, "sliding_window": None}),
    ("olmo3", "no window", {"layer_types": ["full_attention"] * 2}),
    ("seed_oss", "biases", {"attention_bias": True, "attention_out_bias": True}),
    ("ernie4_5", "biases", {"use_bias": True}),
    ("helium", "biases", {"attention_bias": True, "mlp_bias": True}),
    ("nemotron", "biases", {"attention_bias": True, "mlp_bias": True}),
    ("persimmon", "no q/k norm", {"qk_layernorm": False}),
    ("arcee", "biases", {"attention_bias": True, "mlp_bias": True}),
    ("apertus", "biases", {"attention_bias": True}),
    ("lfm2", "attention alone", {"layer_types": ["full_attention"] * 2}),
    (
        "granitemoehybrid",
        "dense, attention alone",
        {"num_local_experts": 0, "layer_types": ["attention"] * 2},
    ),
    (
        "granitemoehybrid",
        "dense, hybrid",
        {"num_local_experts": 0, "layer_types": ["mamba", "attention"]},
    ),
    ("granitemoehybrid", "attention alone", {"layer_types": ["attention"] * 2}),
    ("qwen3_moe", "half of the layers dense", {"mlp_only_layers": [0]}),
    ("qwen3_moe", "weights of the experts as they are", {"norm_topk_prob": False}),
    ("deepseek_v4", "one layer by hash", {"mlp_layer_types": ["hash_moe", "moe"]}),
    ("mixtral", "one expert of many", {"num_local_experts": 8, "num_experts_per_tok": 1}),
    ("jamba", "dense, hybrid", {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1}),
]


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name: (model type, settings beside the sizes). A type's first variant has its name."""
    found = {name: (name, NEEDS.get(name, {})) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    found |= {name: (name, settings) for name, settings in MULTIMODAL.items()}
    for kind, difference, settings in OPTIONS:
        found[f"{kind}: {difference}"] = (kind, NEEDS.get(kind, {}) | settings)
    return dict(sorted(found.items()))


def config_of(model_type: str, settings: dict[str, Any]) -> Any:
    """A tiny configuration with the default tokenizer's vocabulary. Raises whatever the type's own
    validation raises where the sizes do not fit it."""
    if model_type in MULTIMODAL:
        return AutoConfig.for_model(model_type, **settings)
    cls = CONFIG_MAPPING[model_type]
    known = set(inspect.signature(cls.__init__).parameters) | set(cls.attribute_map)
    for base in cls.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return AutoConfig.for_model(model_type, **(sizes | settings))
