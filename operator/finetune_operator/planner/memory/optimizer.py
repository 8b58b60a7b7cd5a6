"""The optimiser's states."""

from __future__ import annotations

from finetune_api.job.training import Optimizer

ADAM_MOMENTS = 2

BYTES_PER_PARAMETER: dict[Optimizer, float] = {
    "paged_adamw_32bit": 8.0,
    # 8-bit states in blocks of 256 with an fp32 scale each, tensors below 4,096 elements in fp32: measured with
    # bitsandbytes 0.50. Paged ones may move to the host, which costs time, and is not counted on.
    "adamw_8bit": 2.03,
    "paged_adamw_8bit": 2.03,
    "lion": 4.0,
    "lion_8bit": 1.02,
    "paged_lion_8bit": 1.02,
}


def optimiser_bytes_per_parameter(optimizer: Optimizer, parameter_bytes: int, rank: int) -> float:
    """Bytes of state per parameter of the adapter.

    AdamW of PyTorch keeps two moments in the parameter's own precision. Adafactor keeps a row and a column sum of each
    matrix in fp32 (Shazeer and Stern 2018): of a rank-r matrix that is 1/r of it, and little more.
    """
    if optimizer == "adamw_torch_fused":
        return float(ADAM_MOMENTS * parameter_bytes)
    if optimizer == "adafactor":
        return 4.0 / rank + 0.01
    return BYTES_PER_PARAMETER[optimizer]
