"""What a model's config.json says, as ModelFacts. Values in, values out; who reads the file is not known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.stages import ModelFacts

LARGEST = 100_000_000
"""No width, count or length of a model is near it."""


def facts_of_config(
    config: Mapping[str, Any], *, parameters: int, file_bytes: int = 0, tied_embeddings: bool | None = None
) -> ModelFacts:
    """Facts of a decoder from its parsed config.json.

    Names differ between architectures; the first that is there counts. Multimodal models keep those of their language
    model under `text_config`.

    Args:
        config: the parsed file.
        parameters: number of parameters, from the weight files; 0 when they are not there.
        file_bytes: size of the weight files.
        tied_embeddings: whether the weight files lack a head; None reads it from the configuration.

    Raises:
        ValueError, TypeError: a value is not what it should be.
    """
    text = _language_model(config)
    hidden = _whole(text, "hidden_size", "n_embd", "d_model")
    heads = _whole(text, "num_attention_heads", "n_head", "num_heads")
    if tied_embeddings is None:
        # Left out, it is the class's own default: false in Llama and its kin, true in Gemma.
        tied_embeddings = bool(text.get("tie_word_embeddings", str(text.get("model_type", "")).startswith("gemma")))
    layers = _whole(text, "num_hidden_layers", "n_layer", "num_layers")
    return ModelFacts(
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0])[:128],
        parameters=parameters,
        hidden_size=hidden,
        layers=layers,
        vocabulary=_whole(text, "vocab_size"),
        context_length=_whole(text, "max_position_embeddings", "n_positions", "seq_length"),
        # GPT-2 and its kin leave n_inner empty: four times the width (transformers, configuration_gpt2.py).
        feed_forward_size=_whole(text, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden,
        attention_heads=heads,
        key_value_heads=_whole(text, "num_key_value_heads", "num_kv_heads") or heads,
        head_size=_whole(text, "qk_nope_head_dim") + _whole(text, "qk_rope_head_dim")
        if _whole(text, "kv_lora_rank")
        else _whole(text, "head_dim") or (hidden // heads if heads else 0),
        tied_embeddings=tied_embeddings,
        **_mixture(text, layers),
        **_latent(text),
        file_bytes=file_bytes,
    )


def mixture_parameters(config: Mapping[str, Any]) -> int:
    """About how many parameters a mixture of experts has, by its configuration; 0 when it does not say.

    Experts of three matrices in every block but the dense ones, shared experts counted; off by 2 % at most for Mixtral,
    Qwen3, DeepSeek-V3 and gpt-oss. Raises as `facts_of_config`.
    """
    facts = facts_of_config(config, parameters=0)
    hidden, wide, layers = facts.hidden_size, facts.feed_forward_size, facts.layers
    experts = 3 * hidden * (facts.experts * facts.expert_size + facts.shared_expert_size)
    attention = 2 * hidden * facts.head_size * (facts.attention_heads + facts.key_value_heads)
    if facts.latent_attention:
        attention = _latent_parameters(facts)
    tables = facts.vocabulary * hidden * (1 if facts.tied_embeddings else 2)
    dense = facts.dense_layers
    found = layers * attention + (layers - dense) * experts + dense * 3 * hidden * wide + tables
    return found if all((layers, hidden, wide, facts.experts, facts.attention_heads)) else 0


def _latent_parameters(facts: ModelFacts) -> int:
    """Parameters of the attention of one block whose queries, keys and values come from narrow vectors."""
    hidden, heads, queries = facts.hidden_size, facts.attention_heads, facts.attention_heads * facts.head_size
    latent, value = facts.key_value_latent_size, facts.value_head_size
    found = facts.query_latent_size * (hidden + queries) or hidden * queries
    found += hidden * (latent + facts.position_size)
    return found + heads * (latent * (facts.head_size - facts.position_size + value) + value * hidden)


def _mixture(text: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Facts of a mixture's experts; none of a dense model."""
    experts = _whole(text, "num_local_experts", "num_experts", "n_routed_experts")
    if experts <= 1:
        return {"experts": experts}
    size = _whole(text, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_dim")
    # Every so many blocks have experts (Qwen2-MoE); some are named that have none.
    every = max(1, _whole(text, "decoder_sparse_step", "interleave_moe_layer_step"))
    dense = max(_whole(text, "first_k_dense_replace"), layers - layers // every, len(text.get("mlp_only_layers") or ()))
    return {
        "experts": experts,
        "active_experts": _whole(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk"),
        "expert_size": size,
        "shared_expert_size": _whole(text, "shared_expert_intermediate_size", "shared_intermediate_size")
        or size * _whole(text, "n_shared_experts"),
        "dense_layers": min(dense, layers),
    }


def _latent(text: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of multi-head latent attention (DeepSeek-V2 and its kin); none where keys are not compressed."""
    latent = _whole(text, "kv_lora_rank")
    if not latent:
        return {}
    return {
        "latent_attention": True,
        "query_latent_size": _whole(text, "q_lora_rank"),
        "key_value_latent_size": latent,
        "position_size": _whole(text, "qk_rope_head_dim"),
        "value_head_size": _whole(text, "v_head_dim"),
    }


def _language_model(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config") or {}
    if not isinstance(inner, Mapping):
        raise TypeError("text_config is not an object")
    return {**config, **inner}


def _whole(config: Mapping[str, Any], *names: str) -> int:
    """The first that is there, 0 when none is. Raises ValueError naming a field that is no such number."""
    name = next((name for name in names if config.get(name)), None)
    if name is None:
        return 0
    try:
        value = int(config[name])
    except (TypeError, ValueError, OverflowError):
        value = -1
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{name} is {str(config[name])[:40]!r}, not a whole number up to {LARGEST:,}")
    return value
