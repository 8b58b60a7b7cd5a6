"""The peak while the model is loaded and, with a strategy that cuts it, put into parts."""

from __future__ import annotations

from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.breakdown import CONTEXT_BYTES, Breakdown
from finetune_operator.planner.memory.sharding import Strategy, adapter_shards, offloaded, outside_bytes, shards
from finetune_operator.planner.memory.training import TrainingSetup
from finetune_operator.planner.memory.weights import block_bytes, weight_bytes

COPIES: dict[Strategy, int] = {"fsdpBase": 2, "fsdp": 3}
"""Of a part while it is cut, itself counted."""


def loading_memory(setup: TrainingSetup) -> Breakdown:
    """Memory of one GPU, before the first step.

    A whole model is read onto the GPU tensor by tensor, and a tensor that is quantised is there in 16 bit as well
    (transformers, core_model_loading.py: one at a time). A model that is cut comes from host memory block by block,
    embedding and head last (runner, training/strategies).
    """
    shape = setup.shape
    weight_shards = shards(setup.strategy, setup.gpus)[0]
    targets = shape.targets(setup.target_modules)
    parameters = adapter_parameters(shape, setup.rank, targets, dora=setup.dora)
    parts = {
        "weights": weight_bytes(shape, setup.quantisation, setup.unquantised_bytes) / weight_shards,
        "adapter": float(parameters * setup.adapter_bytes) / adapter_shards(setup.strategy, setup.gpus),
    }
    parts |= {name: 0.0 for name in offloaded(setup.offload) if name in parts}
    parts["loading"] = _whole_bytes(setup) if weight_shards > 1 else _quantised_bytes(setup)
    outside = CONTEXT_BYTES + outside_bytes(setup.strategy, setup.gpus)
    return Breakdown({name: size for name, size in parts.items() if size > 0}, outside)


def _quantised_bytes(setup: TrainingSetup) -> float:
    """The largest tensor before it is quantised, a block's experts together; LLM.int8 copies one in bf16 to fp16."""
    if setup.quantisation in ("none", "fp32"):
        return 0.0
    return (4.0 if setup.quantisation == "int8" else 2.0) * max(setup.shape.matrices)


def _whole_bytes(setup: TrainingSetup) -> float:
    """The largest part that is whole before it is cut; FSDP1 copies it into one flat tensor first.

    Under other trainers it comes from one process, put into flat tensors for the way (FSDP's sync_module_states).
    """
    shape = setup.shape
    block = block_bytes(shape, setup.quantisation)
    outside = (4.0 if setup.quantisation == "fp32" else 2.0) * shape.embedding_parameters
    return max(block, outside) * COPIES.get(setup.strategy, 1)
