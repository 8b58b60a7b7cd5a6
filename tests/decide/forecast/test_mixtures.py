"""Mixtures of experts: all of their weights are held, each token is computed with some of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.model_config import facts_of_config
from finetune_operator.planner.families import facts_of_shape, known_shapes, nearest_shape, shape_of_name
from finetune_operator.planner.flops import training_flops_per_token
from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.breakdown import GIB
from finetune_operator.planner.memory.sharding import communication_bytes
from finetune_operator.planner.memory.training import TrainingSetup, training_memory
from finetune_operator.planner.memory.weights import dequantisation_bytes, weight_bytes
from finetune_operator.planner.shape import Mixture, ModelShape, shape_of
from tests.decide.forecast.test_forecast import planned, prepared
from tests.decide.forecast.test_memory import MIXTURES
from tests.decide.world import job_dict

QWEN3, MIXTRAL = (known_shapes()[name] for name in ("Qwen3-30B-A3B", "Mixtral-8x7B"))
ACTIVE = {"num_experts_per_tok": 2}

# Billions of parameters as the models' own pages say: all, and those of a token, both tables counted with them.
PUBLISHED = [
    ("Mixtral-8x7B", 46.7, 12.9),
    ("Mixtral-8x22B", 140.6, 39.1),
    ("Qwen3-30B-A3B", 30.5, 3.3),
    ("Qwen3-235B-A22B", 235.1, 22.2),
    ("OLMoE-1B-7B", 6.92, 1.28),
    ("Qwen1.5-MoE-A2.7B", 14.3, 2.7),
]


@pytest.mark.parametrize(("name", "billions", "active"), PUBLISHED)
def test_known_mixtures_have_the_parameters_their_makers_say(name: str, billions: float, active: float) -> None:
    shape = known_shapes()[name]
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    of_a_token = shape.active_parameters + shape.embedding_parameters
    assert of_a_token / 1e9 == pytest.approx(active, rel=0.02)
    assert shape_of(facts_of_shape(name)) == shape


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "gpt-oss"])
def test_a_mixture_is_described_by_its_configuration(name: str) -> None:
    billions, config = MIXTURES[name]
    shape = shape_of(facts_of_config(config | ACTIVE, parameters=round(billions * 1e9)))
    assert shape.mixture is not None
    assert (shape.mixture.active, shape.mixture.shared, shape.mixture.dense_blocks) == (2, 0, 0)


QWEN2: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 151936,
    "num_experts": 60,
    "num_experts_per_tok": 4,
}


@pytest.mark.parametrize(
    ("config", "shared", "dense"),
    [
        ({}, 5632, 0),
        ({"decoder_sparse_step": 2}, 5632, 12),
        ({"mlp_only_layers": [0, 1, 2]}, 5632, 3),
        ({"mlp_only_layers": None}, 5632, 0),
        ({"shared_expert_intermediate_size": 0, "n_shared_experts": 2, "first_k_dense_replace": 1}, 2816, 1),
    ],
)
def test_shared_experts_and_dense_blocks(config: dict[str, Any], shared: int, dense: int) -> None:
    mixture = shape_of(facts_of_config(QWEN2 | config, parameters=0)).mixture
    assert mixture == Mixture(experts=60, active=4, width=1408, shared=shared, dense_blocks=dense)


def test_only_the_attention_has_an_adapter() -> None:
    assert QWEN3.targets("all-linear") == ("q_proj", "k_proj", "v_proj", "o_proj")
    # PEFT's count for rank 16: r (in + out) of q, k, v and o in 48 blocks.
    assert adapter_parameters(QWEN3, 16, QWEN3.targets("all-linear")) == 48 * 16 * (6144 + 2 * 2560 + 6144)


def test_weights_in_4_bit() -> None:
    """Experts have one scale in fp32 per 64 weights; the router stays in 16 bit, as embedding and head do."""
    assert QWEN3.expert_parameters == 48 * 128 * 3 * 2048 * 768
    attention = QWEN3.linear_parameters - QWEN3.expert_parameters
    outside = QWEN3.embedding_parameters + QWEN3.norm_parameters + 48 * 128 * 2048
    expected = 0.5625 * QWEN3.expert_parameters + 4.127 / 8 * attention + 2 * outside
    assert weight_bytes(QWEN3, "nf4-double") == pytest.approx(expected)
    assert weight_bytes(QWEN3, "nf4-double") / 1e9 == pytest.approx(18.0, rel=0.01)
    assert weight_bytes(QWEN3, "int8") > 2 * QWEN3.expert_parameters, "LLM.int8 leaves experts as they are"
    # One tensor of a block is restored at a time: gate and up of all experts.
    assert dequantisation_bytes(QWEN3, "nf4-double") == 2 * 128 * 2 * 768 * 2048


def test_zero3_holds_the_experts_of_a_block_whole() -> None:
    held = communication_bytes(MIXTRAL, "zero3", "none", gradient_bytes=0, bucket_bytes=0)
    assert held == 2 * 8 * 3 * 4096 * 14336 + 2 * MIXTRAL.embedding_parameters
    held = communication_bytes(QWEN3, "zero3", "none", gradient_bytes=0, bucket_bytes=0)
    assert held == 2e9 + 2 * QWEN3.embedding_parameters


def test_a_token_costs_what_its_experts_cost() -> None:
    dense = replace(QWEN3, mixture=None, feed_forward=8 * 768)
    ours, theirs = (training_flops_per_token(shape, 512, checkpointing=True) for shape in (QWEN3, dense))
    routers = 6 * 48 * 128 * 2048
    assert ours - routers == pytest.approx(theirs, rel=1e-6)


@given(active=st.integers(1, 8), width=st.sampled_from([256, 768, 2048]), length=st.integers(64, 8192))
def test_more_experts_per_token_need_more(active: int, width: int, length: int) -> None:
    def needed(shape: ModelShape) -> float:
        memory = training_memory(TrainingSetup(shape, "nf4-double", rank=16, micro_batch=2, sequence_length=length))
        assert sum(memory.components.values()) == pytest.approx(memory.device_bytes)
        return memory.device_bytes

    shape = replace(QWEN3, mixture=Mixture(16, active, width))
    # Of a short row the head is the peak, which knows no experts.
    assert needed(replace(QWEN3, mixture=Mixture(16, active + 1, width))) >= needed(shape)
    assert needed(replace(QWEN3, mixture=Mixture(17, active, width))) > needed(shape)
    assert needed(replace(QWEN3, mixture=Mixture(16, active, width, shared=width))) > needed(shape)


@pytest.mark.parametrize(
    ("name", "memory_gib", "fit"),
    [("Qwen3-30B-A3B", 32, "Fits"), ("Qwen3-30B-A3B", 16, "DoesNotFit"), ("Mixtral-8x7B", 48, "Fits")],
)
def test_a_mixture_is_planned_as_any_model(name: str, memory_gib: int, fit: str) -> None:
    job = job_dict(method={"type": "qlora"}, training={"maxLength": 1024})
    status = planned(prepared(name, 1024), job, gpuMemoryGib=memory_gib).status
    if fit == "DoesNotFit":
        assert status.phase == "Failed"
        return
    assert status.forecast is not None
    assert status.forecast.fit in ("Fits", "Tight")
    assert weight_bytes(known_shapes()[name], "nf4-double") / GIB < (status.forecast.gpu_memory_gib or 0) < memory_gib


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B"),
        ("hf://mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral-8x7B"),
        ("hf://openai/gpt-oss-20b", "gpt-oss-20b"),
    ],
)
def test_mixtures_are_known_by_name(source: str, name: str) -> None:
    assert shape_of_name(source) == name


def test_a_size_alone_is_no_mixture() -> None:
    """30 billion parameters could be either; what is asked for with --parameters is a dense model."""
    nearest = nearest_shape(30.5e9)
    assert nearest is not None
    assert known_shapes()[nearest].mixture is None
