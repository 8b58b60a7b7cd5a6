"""GPU memory by component: what is known exactly, and what must grow with what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.model_config import facts_of_config, mixture_parameters
from finetune_api.stages import ModelFacts
from finetune_operator.planner.families import facts_of_shape, known_shapes, nearest_shape, shape_of_name
from finetune_operator.planner.memory.activations import saved_bytes_per_token
from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.breakdown import GIB
from finetune_operator.planner.memory.head import evaluated_logits_bytes
from finetune_operator.planner.memory.inference import InferenceSetup, scoring_memory
from finetune_operator.planner.memory.training import (
    TrainingSetup,
    reference_memory,
    training_memory,
    validation_memory,
)
from finetune_operator.planner.memory.weights import weight_bytes
from finetune_operator.planner.shape import UnknownShapeError, shape_of

LLAMA = known_shapes()["Llama-3.1-8B"]
ALL = tuple(LLAMA.linears)
SETUP = TrainingSetup(LLAMA, "nf4-double", rank=16, micro_batch=4, sequence_length=1024)

# Parameters as the models' own pages say, in billions.
PUBLISHED_PARAMETERS = [
    ("Llama-3.1-8B", 8.03),
    ("Llama-3.1-70B", 70.55),
    ("Llama-3.1-405B", 405.85),
    ("Llama-3.2-1B", 1.236),
    ("Llama-3.2-3B", 3.213),
    ("Llama-2-7B", 6.738),
    ("Llama-2-13B", 13.016),
    ("Mistral-7B", 7.242),
    ("Mistral-Nemo-12B", 12.248),
    ("Qwen2.5-0.5B", 0.494),
    ("Qwen2.5-7B", 7.616),
    ("Qwen2.5-72B", 72.706),
    ("Qwen3-8B", 8.191),
    ("Gemma-2-9B", 9.242),
    ("Phi-3-mini-3.8B", 3.821),
]


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_PARAMETERS)
def test_known_shapes_have_the_parameters_their_makers_say(name: str, billions: float) -> None:
    assert known_shapes()[name].parameters / 1e9 == pytest.approx(billions, rel=0.002)


def test_weights_of_a_known_model() -> None:
    assert weight_bytes(LLAMA, "none") == 2 * LLAMA.parameters
    # After loading, as fms-acceleration measured: 5.88 GB with double quantisation (a first step's state included).
    assert weight_bytes(LLAMA, "nf4-double") / 1e9 == pytest.approx(5.88, rel=0.05)


@pytest.mark.parametrize(
    ("targets", "rank", "millions"),
    # PEFT's print_trainable_parameters for Llama-3.1-8B.
    [("all-linear", 16, 41.943), ("q_proj,v_proj", 16, 6.816), ("all-linear", 8, 20.972)],
)
def test_adapter_parameters_equal_peft(targets: str, rank: int, millions: float) -> None:
    count = adapter_parameters(LLAMA, rank, LLAMA.targets(targets))
    assert count / 1e6 == pytest.approx(millions, rel=0.001)


@pytest.mark.parametrize(
    ("asked", "excluded", "trained"),
    [
        ("all-linear", None, "all-linear"),
        ("all-linear", "down_proj,model.layers.0.mlp.up_proj", "q_proj,k_proj,v_proj,o_proj,up_proj,gate_proj"),
        ("q_proj,v_proj", "v_proj", "q_proj"),
        ("q_proj,v_proj", "vision_tower", "q_proj,v_proj"),
        ("q_proj", "q_proj", "q_proj"),
    ],
)
def test_excluded_modules_have_no_adapter(asked: str, excluded: str | None, trained: str) -> None:
    assert LLAMA.trained(asked, excluded) == trained


def test_saved_activations_equal_the_measured_formulas() -> None:
    """Exact fits on Llama blocks: 16h + 8I + 4kv + 14r + 4n + 8 in one precision, 24h + ... with fp32 adapters."""
    h, wide, kv, n, r = LLAMA.hidden, LLAMA.feed_forward, LLAMA.key_value_width, LLAMA.heads, 16
    rest = 4 * kv + 14 * r + 4 * n + 8
    assert saved_bytes_per_token(LLAMA, r, ALL, dropout=False, adapter_bytes=2) == 16 * h + 8 * wide + rest
    assert saved_bytes_per_token(LLAMA, r, ALL, dropout=False, adapter_bytes=4) == 24 * h + 8 * wide + rest
    query_value = saved_bytes_per_token(LLAMA, 0, ("q_proj", "v_proj"), dropout=False, adapter_bytes=2)
    assert query_value == 14 * h + 6 * wide + 4 * kv + 4 * n + 8


@given(micro=st.integers(1, 16), length=st.integers(16, 8192), rank=st.integers(1, 128))
def test_components_sum_up_and_more_of_anything_needs_more(micro: int, length: int, rank: int) -> None:
    setup = replace(SETUP, micro_batch=micro, sequence_length=length, rank=rank)
    memory = training_memory(setup)
    assert sum(memory.components.values()) == pytest.approx(memory.device_bytes)
    assert memory.allocated_bytes <= memory.reserved_bytes <= memory.device_bytes
    for more in (
        replace(setup, micro_batch=micro + 1),
        replace(setup, sequence_length=length + 16),
        replace(setup, rank=rank + 1),
        replace(setup, quantisation="none"),
        replace(setup, strategy="ddp", gpus=2),
    ):
        assert training_memory(more).device_bytes > memory.device_bytes


def test_checkpointing_and_sharding_need_less() -> None:
    whole = training_memory(SETUP)
    assert training_memory(replace(SETUP, checkpointing=False)).device_bytes > whole.device_bytes
    large = replace(SETUP, shape=known_shapes()["Llama-3.1-70B"], strategy="ddp", gpus=8)
    assert training_memory(replace(large, strategy="fsdp")).device_bytes < training_memory(large).device_bytes * 0.6


def test_validation_logits_are_a_chunk_at_most() -> None:
    for tokens in (16_384, 131_072):
        hidden = 2 * LLAMA.hidden * tokens
        assert evaluated_logits_bytes(LLAMA, tokens) == hidden + 512 * 2**20
    assert evaluated_logits_bytes(LLAMA, 10) == 2 * LLAMA.hidden * 10 + 14 * LLAMA.vocabulary * 10


def test_a_long_row_is_scored_in_little_more_than_it_is_trained_in() -> None:
    """Full logits of 131,072 tokens would take 157 GiB, and the job was refused for them."""
    setup = replace(SETUP, sequence_length=131_072, micro_batch=1)
    scored = scoring_memory(
        InferenceSetup(LLAMA, "none", rows=200, longest_prompt=131_072, max_new_tokens=128, longest_row=131_072)
    )
    assert scored.device_bytes < 45 * GIB
    assert validation_memory(setup, 200, 131_072).device_bytes < training_memory(setup).device_bytes


def test_the_runner_and_the_planner_speak_of_the_same_batches() -> None:
    from finetune_operator.planner.memory import head, inference
    from finetune_runner.evaluation import generation, likelihood
    from finetune_runner.training import label_only

    assert label_only.CHUNK_BYTES == head.CHUNK_BYTES
    assert label_only.BYTES_PER_LOGIT == head.BYTES_PER_CHUNKED_LOGIT
    assert likelihood.TOKENS_PER_BATCH == inference.SCORED_TOKENS
    assert generation.ROWS_PER_BATCH == likelihood.ROWS_PER_BATCH == inference.GENERATED_ROWS
    assert generation.TOKENS_PER_BATCH == inference.GENERATED_TOKENS
    assert generation.CACHE_BYTES_PER_BATCH == inference.GENERATED_CACHE_BYTES
    for name in ("Llama-3.1-8B", "Llama-2-7B", "Qwen2.5-0.5B"):
        shape = known_shapes()[name]
        cache = 4 * shape.layers * shape.key_value_width
        for length in (1, 1000, 1793, 4096, 4097, 40_000, 200_000):
            batch = generation.batches_of([length] * 20, 256, cache)[0]
            assert len(batch) == inference.generated_rows(shape, 20, length, 256), (name, length)


@pytest.mark.parametrize(
    ("name", "prompt", "rows"),
    [("Llama-3.1-8B", 1792, 16), ("Llama-3.1-8B", 1793, 15), ("Llama-2-7B", 1792, 4), ("Llama-2-7B", 100_000, 1)],
)
def test_a_batch_of_answers_keeps_within_the_cache_it_may_take(name: str, prompt: int, rows: int) -> None:
    from finetune_operator.planner.memory import inference

    assert inference.generated_rows(known_shapes()[name], 400, prompt, 256) == rows


def test_the_runner_and_the_planner_speak_of_the_same_reference_passes() -> None:
    from finetune_operator.planner.memory import training
    from finetune_runner.training.objectives import preference

    assert preference.ROWS_PER_BATCH == training.REFERENCE_ROWS
    assert preference.TOKENS_PER_BATCH == training.REFERENCE_TOKENS
    for length in (1, 2048, 2049, 40_000):
        first = next(preference._batches([length] * 20))
        assert len(first) * length == min(8 * length, max(16_384 // length * length, length))


@pytest.mark.parametrize(
    ("objective", "sequences", "length", "larger"),
    [("dpo", 2, 8192, False), ("kto", 1, 8192, False), ("kto", 1, 2048, True)],
)
def test_asking_the_reference_counts_where_a_step_is_smaller(
    objective: str, sequences: int, length: int, larger: bool
) -> None:
    setup = replace(SETUP, micro_batch=1, sequence_length=length, sequences=sequences, checkpointing=True)
    asked = reference_memory(setup, length).device_bytes
    assert (asked > training_memory(setup).device_bytes) is larger, objective


LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
GPT2_CONFIG = {"architectures": ["GPT2LMHeadModel"], "n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257}


@pytest.mark.parametrize(
    ("config", "parameters", "tied", "gated"),
    [
        (LLAMA_CONFIG, 8_030_261_248, False, True),
        ({"text_config": LLAMA_CONFIG, "architectures": ["X"]}, 8_030_261_248, False, True),
        (GPT2_CONFIG, 1_557_611_200, True, False),
    ],
)
def test_shapes_come_from_config_and_weights(config: dict[str, Any], parameters: int, tied: bool, gated: bool) -> None:
    shape = shape_of(facts_of_config(config, parameters=parameters, tied_embeddings=tied))
    assert shape.gated is gated
    assert shape.parameters == pytest.approx(parameters, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"feed_forward_size": 0, "attention_heads": 0}, "does not say: feed-forward size, attention heads"),
        ({"experts": 8}, "mixture of 8 experts, and its configuration does not say how many each token passes"),
        ({"experts": 8, "active_experts": 2}, "does not say how wide they are"),
        ({"experts": 8, "active_experts": 2, "expert_size": 14336}, "not a plain mixture of experts"),
        ({"experts": 8, "architecture": "Qwen3NextForCausalLM"}, "whose blocks are not all attention"),
        ({"latent_attention": True}, "multi-head latent attention"),
        ({"parameters": 46_000_000_000}, "not a plain dense decoder"),
    ],
)
def test_a_shape_is_never_guessed(changes: dict[str, int], why: str) -> None:
    facts: ModelFacts = facts_of_shape("Llama-3.1-8B").model_copy(update=changes)
    with pytest.raises(UnknownShapeError, match=why):
        shape_of(facts)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("s3://models/Qwen2.5-14B-Instruct/", "Qwen2.5-14B"),
        ("hf://Qwen/Qwen3-4B", "Qwen3-4B"),
        ("hf://acme/our-model", None),
    ],
)
def test_known_names(source: str, name: str | None) -> None:
    assert shape_of_name(source) == name


@pytest.mark.parametrize(("parameters", "name"), [(8e9, "Llama-3.1-8B"), (70e9, "Llama-3.1-70B"), (5e12, None)])
def test_nearest_shape(parameters: float, name: str | None) -> None:
    assert nearest_shape(parameters) == name


MIXTURES: dict[str, tuple[float, dict[str, int]]] = {
    "mixtral": (
        46.7,
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "num_local_experts": 8,
        },
    ),
    "qwen3": (
        30.5,
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_experts": 128,
        },
    ),
    "gpt-oss": (
        20.9,
        {
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 201088,
            "num_local_experts": 32,
        },
    ),
    "deepseek-v3": (
        671.0,
        {
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "vocab_size": 129280,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
        },
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_the_size_of_a_mixture_follows_from_its_configuration(name: str) -> None:
    billions, config = MIXTURES[name]
    assert mixture_parameters(config) / 1e9 == pytest.approx(billions, rel=0.02)
    assert mixture_parameters({key: config[key] for key in list(config)[1:]}) == 0
