"""The base model's weights."""

from __future__ import annotations

from typing import Literal

from finetune_operator.planner.shape import ModelShape

Quantisation = Literal["none", "fp32", "int8", "nf4", "nf4-double", "gptq"]

BYTES_PER_PARAMETER: dict[Quantisation, float] = {
    # NF4 in blocks of 64 with one fp32 constant each; doubly quantised: 8-bit constants in blocks of 256
    # (Dettmers et al. 2023, section 3; measured with bitsandbytes 0.50: 4.500 and 4.127 bits).
    "none": 2.0,
    "fp32": 4.0,
    # LLM.int8 (Dettmers et al. 2022): a byte, and one fp32 scale per output row.
    "int8": 1.0,
    "nf4": 4.500 / 8,
    "nf4-double": 4.127 / 8,
    # For published rows only: a 16-bit scale and a 4-bit zero per 128 (auto-gptq, qlinear_cuda_old.py).
    "gptq": (4 + 16 / 128 + 4 / 128) / 8,
}

BYTES_PER_EXPERT_PARAMETER: dict[Quantisation, float] = {
    # The runner quantises experts without double quantisation (training/experts.py); LLM.int8 leaves them in 16 bit.
    "int8": 2.0,
    "nf4-double": 4.500 / 8,
}


def weight_bytes(shape: ModelShape, quantisation: Quantisation, unquantised_bytes: int = 2) -> float:
    """Bytes of all weights. Embedding, head and norms are never quantised.

    Args:
        shape: the model.
        quantisation: of the linear layers of the blocks.
        unquantised_bytes: per parameter outside of them; 4 after peft's `prepare_model_for_kbit_training`.
    """
    outside = shape.embedding_parameters + shape.norm_parameters + shape.router_parameters
    outside_bytes = 4 if quantisation == "fp32" else unquantised_bytes
    linear = shape.linear_parameters - shape.expert_parameters
    experts = shape.expert_parameters * _expert_bytes(quantisation)
    return linear * BYTES_PER_PARAMETER[quantisation] + experts + outside * outside_bytes


def block_bytes(shape: ModelShape, quantisation: Quantisation) -> float:
    """Bytes of the matrices of one block."""
    rest = shape.block_parameters - shape.block_expert_parameters
    return rest * BYTES_PER_PARAMETER[quantisation] + shape.block_expert_parameters * _expert_bytes(quantisation)


def _expert_bytes(quantisation: Quantisation) -> float:
    return BYTES_PER_EXPERT_PARAMETER.get(quantisation, BYTES_PER_PARAMETER[quantisation])


def dequantisation_bytes(shape: ModelShape, quantisation: Quantisation) -> float:
    """The largest weight in 16 bit: one is restored at a time for its product, the experts of a block together.

    auto-gptq spreads it over 32 bits first, and then over 8: 3 more than the 16 bits that the block keeps.
    """
    if quantisation in ("none", "fp32"):
        return 0.0
    return (3.0 if quantisation == "gptq" else 2.0) * max(shape.matrices)


def kept_weight_bytes(shape: ModelShape, quantisation: Quantisation) -> float:
    """Restored weights that a block keeps for its backward pass.

    From 128 tokens on auto-gptq restores with PyTorch's own operations, and the product after it keeps its factor.
    """
    return 2.0 * shape.block_parameters if quantisation == "gptq" else 0.0


def element_factor(quantisation: Quantisation) -> int:
    """How much wider activations are than in 16 bit."""
    return 2 if quantisation == "fp32" else 1
