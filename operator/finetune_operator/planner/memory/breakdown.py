"""Memory of one GPU, taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30

CONTEXT_BYTES = 1_300_000_000
"""CUDA context and workspaces, outside PyTorch's allocator. Fitted: 0.85e9 on the calibration rows with CUDA 12, 1.3e9
on those with CUDA 11.8; the larger is planned with."""
FRAGMENTATION_SHARE = 0.11
"""Reserved but unused, of what comes and goes within a step. Fitted: calibration rows with a fused head."""
FRAGMENTATION_SHARE_FULL_LOGITS = 0.27
"""The same where the logits exist in full: few, very large blocks. Fitted: calibration rows with full logits."""

GROWING_CACHE_SHARE = 0.27
"""The same of keys and values, which every step makes anew a little larger: as for other large blocks, not measured."""

_STAYS = frozenset({"weights", "adapter", "gradients", "optimiser", "masterCopy", "communication"})
"""Allocated once: they do not fragment."""


@dataclass(frozen=True)
class Breakdown:
    """Bytes by component at the moment of the peak, without fragmentation and context."""

    allocated: Mapping[str, float]
    outside_bytes: float = CONTEXT_BYTES
    """Outside of PyTorch's allocator: CUDA context, and NCCL's buffers where there are several GPUs."""
    fragmentation_share: float = field(default=FRAGMENTATION_SHARE)
    stranded_bytes: float = 0.0
    """Held beyond the tensors at least, whatever the share: stranding.py, for published rows only."""

    @property
    def allocated_bytes(self) -> float:
        """What tensors need: `torch.cuda.max_memory_allocated`."""
        return sum(self.allocated.values())

    @property
    def fragmentation_bytes(self) -> float:
        """What the allocator holds beyond that."""
        grown = self.allocated.get("keyValueCache", 0.0)
        moving = sum(size for name, size in self.allocated.items() if name not in _STAYS) - grown
        return max(self.fragmentation_share * moving + GROWING_CACHE_SHARE * grown, self.stranded_bytes)

    @property
    def reserved_bytes(self) -> float:
        """What PyTorch holds: `torch.cuda.max_memory_reserved`."""
        return self.allocated_bytes + self.fragmentation_bytes

    @property
    def device_bytes(self) -> float:
        """What the GPU must have: `nvidia-smi`."""
        return self.reserved_bytes + self.outside_bytes

    @property
    def least_bytes(self) -> float:
        """Below this no allocator can make it fit: no fragmentation at all, nor what only some runs show."""
        return self.allocated_bytes - self.allocated.get("inputGradients", 0.0) + self.outside_bytes

    @property
    def components(self) -> dict[str, float]:
        """All parts of `device_bytes`, largest first."""
        parts = {**self.allocated, "fragmentation": self.fragmentation_bytes, "context": self.outside_bytes}
        return dict(sorted(((n, size) for n, size in parts.items() if size > 0), key=lambda part: -part[1]))
