"""Where a model that is judged lies: on one device, or block by block over several GPUs of the pod.

The map is accelerate's "balanced", made of the model's 16-bit sizes and equal limits before anything is loaded: it
never names host memory or disk, on which a model would be asked for days without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.stages import TrainPlan
from finetune_runner.training.device import pick_device

if TYPE_CHECKING:
    import torch

DeviceMap = dict[str, Any]
"""Name of a module -> the device that holds it."""


def judging_devices(plan: TrainPlan | None) -> list[torch.device]:
    """Devices of this process's copy: the next so many GPUs for each process of the pod, in the order of their ranks.

    Raises StageError (GPU_UNAVAILABLE) as `pick_device`.
    """
    import torch

    first = pick_device(plan)
    if first.type != "cuda" or plan is None:
        return [first]
    gpus, rank = plan.judging_gpus, first.index or 0
    return [torch.device("cuda", rank * gpus + offset) for offset in range(gpus)]


def device_map(model_path: Path, devices: Sequence[torch.device]) -> DeviceMap:
    """The map of a model's modules over the devices, whole blocks and tied weights together.

    Raises OSError or ValueError when transformers cannot read the model's configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if len(devices) == 1:
        return {"": devices[0]}
    config = AutoConfig.from_pretrained(str(model_path), trust_remote_code=False)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.bfloat16)
    numbers = balanced(skeleton, len(devices))
    return {name: devices[number] for name, number in numbers.items()}


def balanced(skeleton: Any, gpus: int) -> dict[str, int]:
    """Number of the GPU by module, for a model of which only the sizes count (it may be on the meta device)."""
    from accelerate.utils import get_balanced_memory, infer_auto_device_map
    from accelerate.utils.modeling import compute_module_sizes

    skeleton.tie_weights()
    # Room for twice the model on each: what fits is the planner's to say, this says only where to cut.
    limits = dict.fromkeys(range(gpus), 2 * compute_module_sizes(skeleton)[""])
    whole = list(skeleton._no_split_modules or [])
    memory = get_balanced_memory(skeleton, max_memory=limits, no_split_module_classes=whole)
    found: dict[str, int] = infer_auto_device_map(skeleton, max_memory=memory, no_split_module_classes=whole)
    return found
