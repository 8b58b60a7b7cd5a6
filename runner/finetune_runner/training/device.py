"""Where a stage computes, and what it used."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainPlan
from finetune_api.wording import counted
from finetune_runner.errors import StageError
from finetune_runner.training.eager_imports import import_unseen

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of mallopt's parameters, from glibc's malloc.h."""


CPU_STANDS_IN_VARIABLE = "FINETUNE_CPU_STANDS_IN"
"""Set in tests whose nodes advertise GPUs that do not exist."""


def pick_device(plan: TrainPlan | None) -> torch.device:
    """The GPU of this process, or the CPU when the plan has no GPUs (without a plan: when the machine has none).

    Raises:
        StageError: GPU_UNAVAILABLE when the plan has GPUs and this process sees none.
    """
    import torch

    if torch.cuda.is_available() and (plan is None or plan.gpus_per_node > 0):
        # TF32 for what is still computed in fp32: 10 bits of mantissa, several times as fast.
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if plan is not None and plan.gpus_per_node > 0 and os.environ.get(CPU_STANDS_IN_VARIABLE) != "1":
        raise StageError(
            ExitCode.GPU_UNAVAILABLE,
            f"the plan has {counted(plan.gpus_per_node, 'GPU')} per node and PyTorch sees none in this pod",
            hint="look at the node's driver and device plugin (nvidia-smi in a pod); on a pool without GPUs set "
            "gpusPerNode: 0",
            evidence=f"torch {torch.__version__}, built for CUDA {torch.version.cuda or 'no'}",
        )
    # Two OpenMP threads on a shared core collapse (0.57 against 12.95 steps/s measured).
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    _keep_freed_memory()
    return torch.device("cpu")


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of giving them back to the kernel.

    Every step allocates and frees its activations and logits; without this the kernel maps and zeroes those pages anew
    each time. Other C libraries go without.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def deterministic(seed: int) -> None:
    """Seed every generator and refuse kernels whose result depends on scheduling, where there is a choice."""
    import random

    import numpy as np

    import_unseen("torch")
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


def peak_memory_bytes(device: torch.device) -> int:
    """Most GPU memory reserved, or on the CPU the largest resident set of this process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def release_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more: memory that torch keeps for itself is lost to other processes."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
