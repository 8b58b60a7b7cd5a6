"""PyTorch's allocator of GPU memory: what it is told before torch is imported."""

from __future__ import annotations

from collections.abc import MutableMapping

VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
"""Read once, when the first tensor is put on a GPU."""
EXPANDABLE = "expandable_segments:True"


def prefer_expandable_segments(environment: MutableMapping[str, str]) -> None:
    """Let segments grow instead of keeping blocks of every size that a row ever had; what is set already stays.

    Without, batches of changing lengths pile up cached blocks: ms-swift's Qwen-7B reserved 64 GiB for 33 GiB of tensors
    (docs/forecast.md). Child processes inherit it.
    """
    environment.setdefault(VARIABLE, EXPANDABLE)
